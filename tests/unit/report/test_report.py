import json
import re
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from peftly.errors import ConfigError
from peftly.report import write_comparison, write_report
from peftly.report.charts import bar_chart, draw_rates, line_chart
from peftly.report.comparison import comparison_note, comparison_row, comparison_table, pick_samples

ENVIRONMENT = {
    "versions": {"python": "3.11.7", "peftly": "0.1.0", "torch": "2.13.0", "bitsandbytes": None},
    "system": "Linux 6.1 x86_64",
    "cpu": "A CPU",
    "cpu_cores": 2,
    "cpu_bf16": "avx512_bf16",
    "cuda": [],
    "threads": 2,
}
VOID = {"meta", "link", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Text and attributes of a page; fails on tags that do not close."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "tweets"
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "base: smollm2-135m\ndata:\n  train: tweets.jsonl\nmethod:\n  name: lora\n  rank: 8\nout: runs/tweets\n"
    )
    records = [{"kind": "step", "step": step, "loss": 3 / step} for step in range(1, 81)]
    records += [
        {"kind": "evaluation", "step": step, "loss": 2.5 / step, "accuracy": 0.5 + step / 200, "macro_f1": 0.6}
        for step in (40, 80)
    ]
    records.append({"kind": "save", "folder": "adapter"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "data.json").write_text(json.dumps({"lines": ["train: 200 rows, 3 truncated <at 512>"]}))
    (folder / "evaluation.json").write_text(
        json.dumps(
            {
                "split": "test",
                "loss": 0.321,
                "perplexity": 1.378,
                "token_accuracy": 0.91,
                "accuracy": 0.87,
                "macro_f1": 0.86,
                "labels": ["complaint", "no complaint"],
                "confusion": [[130, 20], [19, 131]],
                "samples": [
                    {"text": "<script>alert(1)</script> & so on", "gold": "complaint", "predicted": "complaint"},
                    {"text": "@shop thanks 😀", "gold": "no complaint", "predicted": "complaint"},
                ],
            }
        )
    )
    summary = {"parameters": 4_608, "bytes": 19_000, "seconds": 61.25, "steps": 80, "best_step": 40}
    summary["environment"] = ENVIRONMENT
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_run_page_shows_everything_and_needs_no_other_file(run_folder):
    report = write_report(run_folder)
    source = report.read_text()
    page = Page(source)
    text = " ".join(" ".join(page.texts).split())
    for expected in (
        "lora on smollm2-135m, best after step 40 of 80",
        "87.0%",
        "4,608",
        "19 KB",
        "61.2 s",
        "130",
        "truncated <at 512>",
        "<script>alert(1)</script> & so on",
        "rank: 8",
        "bitsandbytes not installed",
        "avx512_bf16",
    ):
        assert expected in text, expected
    assert "<script" not in source
    assert all(address.startswith("#") for address in page.addresses), page.addresses
    assert "prefers-color-scheme: dark" in source
    assert source.count("<svg") == 2
    assert "@import" not in source
    assert "url(http" not in source


def test_run_page_shows_epochs_and_generated_answers(run_folder):
    records = [
        {"kind": "step", "step": step, "epoch": step / 2, "loss": 2.0, "trained_tokens": 5, "seconds": 4 * step}
        for step in (1, 2, 3)
    ]
    records.append({"kind": "evaluation", "step": 2, "epoch": 1.0, "loss": 1.0, "best": True, "seconds": 8.5})
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (run_folder / "data.json").write_text('{"lines": [], "splits": {"train": {"unit": "token"}}}')
    scores = {"split": "validation", "loss": 1.0, "perplexity": 2.718, "generated": 16, "exact_match": 0.25}
    scores |= {"rouge_1": 0.5, "rouge_l": 0.456, "chrf": 61.23456, "bleu": 12.0, "bleu_tokenizer": "zh"}
    (run_folder / "evaluation.json").write_text(json.dumps(scores))
    summary = {"parameters": 1, "bytes": 1, "seconds": 1.0, "steps": 3, "planned_steps": 10, "best_step": 2}
    summary |= {"stopped_early": True, "stop_reason": "no better loss in 2 evaluations", "peak_memory_bytes": 1.49e9}
    summary |= {"estimated_memory_bytes": 1.23e9}
    (run_folder / "summary.json").write_text(json.dumps({**summary, "environment": ENVIRONMENT}))
    text = " ".join(" ".join(Page(write_report(run_folder).read_text()).texts).split())
    assert "best after step 2 of 3, stopped early of 10 planned: no better loss in 2 evaluations" in text
    assert "1.0 s training, peak memory 1.49 GB (estimated: 1.23 GB)" in text
    assert "epoch step training loss training perplexity validation loss validation perplexity" in text
    assert "1 2 2 7.389 1 2.718 8.5 best 1.5 3 2 7.389 — — 3.5" in text
    assert "generated answers 16 exact match 25.0% ROUGE-1 50.0% ROUGE-L 45.6% chrF 61.23 BLEU 12" in text
    assert "compare 16 generated answers with the expected ones" in text
    assert "sacrebleu with its tokenizer zh" in text


def test_run_page_has_charts_of_gradients_speed_and_memory(run_folder):
    numbers = {"loss": 2.0, "grad_norm": 1.25, "tokens_per_second": 800.0, "memory_bytes": 1_500_000_000}
    later = {"kind": "step", "epoch": 1.0, **numbers}
    earlier = {key: value for key, value in later.items() if key != "memory_bytes"}  # as version 0.1.0 wrote them
    for records, titles in (([later], 3), ([earlier], 2), ([{**earlier, "grad_norm": None}], 1)):
        content = "".join(json.dumps({**record, "step": step}) + "\n" for record in records for step in (1, 2))
        (run_folder / "metrics.jsonl").write_text(content)
        source = write_report(run_folder).read_text()
        found = [
            text
            for text in ("peak memory: 1.5 at step 1", "speed: 800 at step 1", "gradient norm: 1.25 at step 1")
            if text in source
        ]
        assert (len(found), source.count("<svg")) == (titles, 1 + titles)


def test_pages_without_matplotlib_name_the_package_once(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (run_folder / "quickstart.json").write_text(json.dumps(comparison_results()))
    for write in (write_report, lambda folder: write_comparison(folder, "quickstart.json")):
        source = write(run_folder).read_text()
        text = " ".join(Page(source).texts)
        assert text.count("Charts need matplotlib: pip install 'peftly[report]'") == 1
        assert "<svg" not in source
        assert "not installed" in text, "the rest of the page is there"


def test_pages_without_charts_need_no_matplotlib(run_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    (run_folder / "metrics.jsonl").unlink()
    assert "matplotlib" not in write_report(run_folder).read_text()


def test_run_page_is_the_same_when_written_again(run_folder):
    first = write_report(run_folder).read_text()
    assert write_report(run_folder).read_text() == first


def test_run_page_of_a_run_that_has_just_started(run_folder):
    for name in ("evaluation.json", "summary.json", "data.json", "metrics.jsonl"):
        (run_folder / name).unlink()
    Page(write_report(run_folder).read_text())


def test_run_page_needs_a_run(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path)


def test_charts_share_no_ids_and_describe_their_numbers():
    loss = line_chart({"training": [(1, 2.0), (2, 1.0)]}, title="Loss & more", x_label="step", y_label="loss")
    bars = bar_chart({"base": {"accuracy": 0.5}, "LoRA": {"accuracy": 0.75}}, title="Scores")
    assert "training: 2 at step 1, 1 at 2" in loss
    assert "Loss &amp; more" in loss
    assert "LoRA: accuracy 75.0%" in bars
    ids = [set(re.findall(r'<(?:clipPath|path|g) id="(?:m|p)?([0-9a-f]{8,})"', picture)) for picture in (loss, bars)]
    assert not ids[0] & ids[1]
    for picture in (loss, bars):
        assert "#01020" not in picture
        assert "var(--ink)" in picture
        assert 'role="img"' in picture


def test_a_chart_of_shares_goes_from_0_to_100_percent():
    """Equal scores had an axis up to 1.04, or below 0."""
    scores = line_chart({"accuracy": [(4, 1.0)]}, title="Scores", x_label="step", y_label="score", is_share=True)
    names = [name for name in re.findall(r">([^<>]+)</text>", scores) if name not in ("step", "score", "accuracy")]
    assert names == ["0", "1", "2", "3", "4", "0%", "25%", "50%", "75%", "100%"]


def test_no_points_no_chart():
    assert line_chart({"training": []}, title="Loss", x_label="step", y_label="loss") == ""


def test_a_loss_that_is_no_number(run_folder):
    """NaN is null in the files of a run."""
    records = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        if record["kind"] == "evaluation":
            record["loss"] = None
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    evaluation = json.loads((run_folder / "evaluation.json").read_text())
    evaluation |= {"loss": None, "perplexity": None, "accuracy": None, "macro_f1": None}
    (run_folder / "evaluation.json").write_text(json.dumps(evaluation))
    source = write_report(run_folder).read_text()
    assert "not a number" in " ".join(Page(source).texts)
    assert "training: 3 at step 1" in source
    assert "validation: " not in source


def test_charts_leave_out_what_is_no_number():
    nan, infinity = float("nan"), float("inf")
    loss = {"training": [(1, nan), (2, None), (3, infinity)]}
    assert line_chart(loss, title="Loss", x_label="step", y_label="loss") == ""
    loss["training"] += [(number, nan if number % 2 else 1.0) for number in range(4, 200)]
    assert "training: 1 at step 4, 1 at 198" in line_chart(loss, title="Loss", x_label="step", y_label="loss")
    assert bar_chart({"base": {"accuracy": nan}}, title="Scores") == ""
    bars = bar_chart({"base": {"accuracy": nan, "F1": 0.5}, "$\\frac$ <b>": {"accuracy": 0.75}}, title="Scores")
    assert "base: F1 50.0%; $\\frac$ &lt;b&gt;: accuracy 75.0%" in bars


def comparison_results() -> dict:
    def row(name, folder, right):
        predictions = ["complaint" if number < right else "no complaint" for number in range(6)]
        return {
            "name": name,
            "folder": folder,
            "accuracy": right / 6,
            "macro_f1": right / 7,
            "parameters": 10 * right,
            "bytes": 1000 * right if folder else 0,
            "seconds": 12.5,
            "predictions": predictions,
        }

    return {
        "title": "peftly quickstart",
        "subtitle": "complaint or not",
        "texts": [f"tweet {number} <b>" for number in range(6)],
        "gold": ["complaint"] * 6,
        "rows": [row("untouched base", None, 3), row("prompt tuning", "prompt_tuning", 5), row("LoRA", "lora", 6)],
        "data": ["train: 200 rows"],
        "environment": ENVIRONMENT,
    }


def test_a_comparison_with_scores_that_are_no_numbers(tmp_path):
    results = comparison_results()
    results["rows"][1] |= {"accuracy": None, "macro_f1": None, "loss": None}
    (tmp_path / "quickstart.json").write_text(json.dumps(results))
    assert "—" in " ".join(Page(write_comparison(tmp_path, "quickstart.json").read_text()).texts)


def test_comparison_links_each_run(tmp_path):
    (tmp_path / "quickstart.json").write_text(json.dumps(comparison_results()))
    page = Page(write_comparison(tmp_path, "quickstart.json").read_text())
    assert [address for address in page.addresses if not address.startswith("#")] == [
        "prompt_tuning/report.html",
        "lora/report.html",
    ]
    text = " ".join(page.texts)
    for expected in ("tweet 0 <b>", "100.0%", "6 KB", "12.5 s"):
        assert expected in text, expected


def test_a_comparison_of_runs_of_several_tasks_shows_the_scores_that_each_has(tmp_path):
    results = comparison_results()
    tagger, writer, _ = results["rows"]
    tagger |= {"accuracy": None, "macro_f1": None, "entity_f1": 0.625, "loss": 0.5}
    writer |= {"accuracy": None, "macro_f1": None, "loss": 1.25}
    results |= {"texts": []}
    (tmp_path / "results.json").write_text(json.dumps(results))
    text = " ".join(Page(write_comparison(tmp_path, "results.json").read_text()).texts)
    for expected in ("entity F1", "62.5%", "macro-F1", "85.7%", "1.25"):
        assert expected in text, expected
    (tmp_path / "results.json").write_text(json.dumps(results | {"rows": [writer]}))
    page = write_comparison(tmp_path, "results.json").read_text()
    assert ("<svg" in page, "macro-F1" in page, "1.25" in page) == (False, False, True)


def test_samples_with_different_predictions_come_first():
    samples = pick_samples(comparison_results(), 4)
    assert [sample["text"][:7] for sample in samples] == ["tweet 3", "tweet 4", "tweet 5", "tweet 0"]


def test_lines_that_a_disk_has_damaged_are_left_out_of_the_charts(run_folder):
    file = run_folder / "metrics.jsonl"
    lines = file.read_bytes().splitlines()
    file.write_bytes(b"\n".join([b'{"kind": "step", "step": 1, "los', b"\xff", b"[]", *lines[1:]]))
    source = write_report(run_folder).read_text()
    assert "training: 1.5 at step 2" in source


def _limits(monkeypatch, draw):
    """Return the limits of the vertical axis of a chart."""
    from matplotlib.figure import Figure

    axes = []
    add_subplot = Figure.add_subplot
    monkeypatch.setattr(Figure, "add_subplot", lambda self: axes.append(add_subplot(self)) or axes[-1])
    draw()
    return axes[0].get_ylim()


def test_a_loss_that_diverges_leaves_room_for_the_losses_before_it(tmp_path, monkeypatch):
    """The axis began as far below zero as the last loss was high, and the curve was a line at the top."""
    losses = [0.012, 0.009, 0.0, 22.9]
    rates = [1e-6, 1e-5, 1e-4, 1e-3]
    low, high = _limits(monkeypatch, lambda: draw_rates(tmp_path / "a.png", rates, losses, losses, None))
    assert -0.003 < low < 0
    assert 0.03 < high < 0.032


def test_a_small_chart_of_near_values_has_room_above_them(monkeypatch):
    """The highest values were cut."""
    points = {"memory": [(1, 0.84), (2, 0.878)]}
    labels = {"title": "Memory", "x_label": "step", "y_label": "GB"}
    assert _limits(monkeypatch, lambda: line_chart(points, is_small=True, **labels)) == (
        0,
        pytest.approx(0.948, abs=1e-3),
    )
    monkeypatch.undo()
    assert _limits(monkeypatch, lambda: line_chart({"a": [(1, 0.0)]}, is_small=True, **labels)) == (0, 1)


def test_long_names_below_bars_are_slanted():
    """The names of a grid were written on top of each other."""
    for count, is_slanted in ((2, False), (8, True)):
        names = [f"prompt_tuning_smollm2-135m_{index}" for index in range(count)]
        bars = bar_chart({name: {"accuracy": 0.5} for name in names}, title="Scores")
        assert ("rotate(-30" in bars) is is_slanted


def test_a_comparison_says_on_which_examples_and_how_much_an_accuracy_varies():
    """Twelve validation examples, which had chosen the epoch, looked like a test."""

    def row(split, count, accuracy):
        return comparison_row("a", None, split=split) | {"examples": count, "accuracy": accuracy}

    note = comparison_note([row("validation", 12, 0.75), row("validation", 12, 0.5), comparison_row("probe", None)])
    assert note == (
        "scores of 12 validation examples, which also chose the best weights, so new examples have lower scores on "
        "average; two standard errors of an accuracy are 29 points"
    )
    assert comparison_note([row("test", 300, 1.0) | {"is_together": True}]) == (
        "scores of 300 test examples; the training time is that of all runs together"
    )
    assert comparison_note([row("test", 300, 1.0), row("test", 200, 1.0)]) is None
    assert comparison_note([row("test", None, None)]) is None


def test_names_that_differ_at_their_ends_can_be_told_apart_on_a_narrow_screen():
    """They were cut, and all jobs of an ablation looked alike."""
    names = [f"num_virtual_tokens=100,init=text,base=smollm2-135m,seed={seed}" for seed in (1, 2)]
    rows = [comparison_row(name, None, parameters=10, size=100, seconds=1.0) for name in names]
    screen = Console(file=StringIO(), width=60)
    screen.print(comparison_table(rows))
    cells = [line.split("│")[1].strip() for line in screen.file.getvalue().splitlines() if "│" in line]
    assert "".join(cells) == "".join(names)

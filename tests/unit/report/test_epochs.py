"""The table of epochs, with values by hand."""

import json
import math

import pytest
from rich.console import Console

from peftly.report.epochs import epoch_rows, epoch_table


def step(number, loss, trained=1, per_epoch=2):
    of_run = {"kind": "step", "step": number, "epoch": number / per_epoch, "seconds": 10 * number}
    return {**of_run, "loss": loss, "trained_tokens": trained}


def evaluation(number, loss, *, best=False, per_epoch=2, **scores):
    of_run = {"kind": "evaluation", "step": number, "epoch": number / per_epoch, "seconds": 10 * number + 3}
    return {**of_run, "loss": loss, "best": best, **scores}


def test_losses_and_perplexities_of_epochs():
    records = [step(1, 3.0, 10), step(2, 1.0, 30), evaluation(2, 2.0, best=True), step(3, 1.0), step(4, 0.0)]
    records += [evaluation(4, 2.5)]
    found = epoch_rows(records, has_tokens=True)
    names = ("training loss", "training perplexity", "validation loss", "validation perplexity")
    assert found.columns == ["epoch", "step", *names, "seconds"]
    assert found.rows == [
        ["1", "2", "1.5", f"{math.exp(1.5):.4g}", "2", f"{math.exp(2):.4g}", "23.0"],  # (3 * 10 + 1 * 30) / 40
        ["2", "4", "0.5", f"{math.exp(0.5):.4g}", "2.5", f"{math.exp(2.5):.4g}", "20.0"],
    ]
    assert found.best == 0


def test_the_last_evaluation_of_an_epoch_counts():
    records = [
        step(1, 1.0),
        evaluation(1, 3.0, best=True),
        step(2, 1.0),
        evaluation(2, 4.0, accuracy=0.5),
        step(3, 1.0),
    ]
    found = epoch_rows(records, has_tokens=False)
    assert found.columns == ["epoch", "step", "training loss", "validation loss", "accuracy", "seconds"]
    assert found.rows == [["1", "2", "1", "4", "50.0%", "23.0"], ["1.5", "3", "1", "—", "—", "7.0"]]
    assert found.best == 0


def test_runs_without_validation_or_with_numbers_that_overflow():
    found = epoch_rows([step(1, 1.0), step(2, 800.0)], has_tokens=True)
    assert found.columns == ["epoch", "step", "training loss", "training perplexity", "seconds"]
    assert (found.rows, found.best) == ([["1", "2", "400.5", f"{math.exp(400.5):.4g}", "20.0"]], None)
    assert epoch_rows([step(1, 800.0)], has_tokens=True).rows == [["0.5", "1", "800", "inf", "10.0"]]
    assert epoch_rows([], has_tokens=True).rows == []
    assert epoch_rows([{**step(1, 1.0), "loss": None}], has_tokens=True).rows == [["0.5", "1", "—", "—", "10.0"]]


def test_records_without_times_have_no_seconds():
    record = {key: value for key, value in step(1, 1.0).items() if key != "seconds"}
    assert epoch_rows([record], has_tokens=False).rows == [["0.5", "1", "1", "—"]]


def run_folder(folder, epochs, best, *, has_tokens=True):
    """Write the metrics of a run with these epochs, of which one is the best."""
    folder.mkdir()
    (folder / "data.json").write_text(json.dumps({"splits": {"train": {"unit": "token" if has_tokens else "example"}}}))
    scores = {"accuracy": 0.877, "macro_f1": 0.765}
    records = [
        record
        for number in range(1, epochs + 1)
        for record in (
            step(number, 2.345, per_epoch=1),
            evaluation(number, 3.456, best=number == best, per_epoch=1, **scores),
        )
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def lines_of(table, width):
    console = Console(width=width, color_system=None)
    with console.capture() as shown:
        console.print(table)
    return [line.rstrip() for line in shown.get().splitlines()]


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_of_a_run_is_whole_on_a_narrow_screen(tmp_path, width):
    *_, first, second = lines_of(epoch_table({"": run_folder(tmp_path / "a", 2, 1)}), width)
    numbers = ["2.345", f"{math.exp(2.345):.4g}", "3.456", f"{math.exp(3.456):.4g}", "87.7%", "76.5%"]
    assert first.split() == ["1", *numbers, "13.0", "best"]
    assert second.split() == ["2", *numbers, "10.0"]


def test_the_table_of_a_long_run_has_its_best_epoch_and_both_ends(tmp_path):
    lines = lines_of(epoch_table({"": run_folder(tmp_path / "a", 100, 50)}), 80)
    shown = [line.split()[0] for line in lines if line.split()[0] in ("…", *map(str, range(101)))]
    ends = [*map(str, range(1, 13))], [*map(str, range(89, 101))]
    assert shown == [*ends[0], "…", "50", "…", *ends[1]]
    assert [line.split()[0] for line in lines if line.endswith("best")] == ["50"]


def test_runs_side_by_side_share_a_short_table(tmp_path):
    runs = {"tags": run_folder(tmp_path / "a", 9, 2, has_tokens=False)}
    runs |= {f"member_{number}": run_folder(tmp_path / f"b{number}", 9, 9) for number in range(5)}
    lines = lines_of(epoch_table(runs), 80)
    rows = [line.split() for line in lines if line.startswith("member_4")]
    assert [row[1] for row in rows] == ["1", "2", "…", "8", "9"]
    (best,) = [line.split() for line in lines if line.startswith("tags") and line.endswith("best")]
    assert best == ["tags", "2", "2.345", "—", "3.456", "—", "87.7%", "10.0", "best"]


def test_a_run_without_a_step_has_no_table(tmp_path):
    assert epoch_table({"": tmp_path}) is None

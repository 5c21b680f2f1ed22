"""Predictions for rows: those of the evaluation, in any form, and the same bytes after a kill."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import perturb
from tiny_tasks import opened, prepared, tagged_rows

from peftly import (
    LoRA,
    attach,
    classify,
    evaluate,
    evaluate_ensemble,
    generate,
    load_base,
    predict,
    save_adapter,
    tag_words,
)
from peftly.data import load_data, read_prompt_rows
from peftly.errors import AdapterError, ConfigError, DataError
from peftly.runs import OpenRun, PredictionRequest, PredictSettings, RowPredictions, predict_file
from peftly.utils import file_changes

TEXTS = ["late again", "great service, thanks for the help", "nobody answers", "love the store", "crashed twice again"]
LABELLED = [{"text": f"{text} {number}", "label": ("a", "b b")[number % 2]} for number, text in enumerate(TEXTS * 2)]
ANSWERS = [{"prompt": f"say {text}", "completion": text} for text in TEXTS]
pytestmark = pytest.mark.filterwarnings("ignore:.*has no weights for")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, tiny_llama_folder):
    """A causal model with two adapters, and the data of rows with labels."""
    model, tokenizer = opened(tiny_llama_folder)
    data = load_data(LABELLED, tokenizer, validation="none", max_length=24)
    for seed, name in enumerate(("one", "two")):
        attach(model, LoRA(rank=2), name=name, seed=seed)
        perturb((parameter for parameter in model.parameters() if parameter.requires_grad), scale=0.5, seed=seed)
    return OpenRun(model, tokenizer, data.row_format), data


def without_targets(rows: list[dict], target: str) -> list[dict]:
    return [{name: value for name, value in row.items() if name != target} for row in rows]


@pytest.mark.parametrize(
    ("task", "architecture"),
    [
        ("sequence_classification", "bert"),
        ("token_classification", "bert"),
        ("seq2seq_lm", "t5"),
        ("causal_lm", "llama"),
    ],
)
def test_rows_without_targets_have_the_predictions_of_the_evaluation(task, architecture, task_base, tmp_path):
    rows = tagged_rows(1)[:9] if task == "token_classification" else LABELLED
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path, rows, validation="none")
    expected = evaluate(model, tokenizer, data.train, data.row_format).predictions
    new = without_targets(rows, data.row_format.target)
    found = predict(OpenRun(model, tokenizer, data.row_format), new, batch_size=4)
    assert without_targets(without_targets(found, "prediction"), "probabilities") == new
    for row, prediction in zip(found, expected, strict=True):
        assert (
            " ".join(row["prediction"]) if data.row_format.kind == "tags" else row["prediction"]
        ) == prediction.predicted
        if data.row_format.kind == "label":
            assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-5)
            assert max(row["probabilities"], key=row["probabilities"].get) == row["prediction"]


@pytest.mark.parametrize("architecture", ["llama", "t5"])
def test_answers_are_those_of_generate_in_any_batch(architecture, task_base, tmp_path):
    task = "seq2seq_lm" if architecture == "t5" else "causal_lm"
    model, tokenizer, data = prepared(task, task_base(architecture), tmp_path, ANSWERS, validation="none")
    prompts = [data.row_format.format_prompt(row) for row in ANSWERS]
    settings = {"max_new_tokens": 6, "temperature": 2.0, "seed": 3}
    expected = [text.strip() for text in generate(model, tokenizer, prompts, **settings)]
    for batch_size in (1, 3):
        rows = predict(OpenRun(model, tokenizer, data.row_format), ANSWERS, batch_size=batch_size, **settings)
        assert [row["prediction"] for row in rows] == expected


def test_copies_of_a_row_draw_different_answers_in_any_batch(task_base, tmp_path):
    model, tokenizer, data = prepared("causal_lm", task_base("llama"), tmp_path, ANSWERS, validation="none")
    run, settings = OpenRun(model, tokenizer, data.row_format), {"max_new_tokens": 6, "temperature": 2.0, "seed": 3}
    found = [predict(run, ANSWERS[:1] * 4, batch_size=size, **settings) for size in (1, 4)]
    assert found[0] == found[1]
    assert len({row["prediction"] for row in found[0]}) == 4


@pytest.mark.parametrize("length", [16, 512])
def test_long_rows_are_cut_as_in_training(length, labelled):
    run, _ = labelled
    rows = [{"text": " ".join(TEXTS * number) + " end", "label": "a"} for number in (1, 3, 6)]
    data = load_data(rows + LABELLED[1:2], run.tokenizer, validation="none", max_length=length)
    expected = evaluate(run.model, run.tokenizer, data.train, data.row_format).predictions
    found = predict(OpenRun(run.model, run.tokenizer, data.row_format), rows, max_length=length)
    for row, prediction in zip(found, expected[:3], strict=True):
        odds = prediction.log_probabilities["a"] - prediction.log_probabilities["b b"]
        assert row["probabilities"]["a"] == pytest.approx(1 / (1 + 2.718281828459045**-odds), abs=2e-6)


@pytest.mark.parametrize(
    ("labels", "problem", "kind"),
    [(["score"], None, float), (["x", "y"], "regression", dict), (["x", "y"], "multi_label_classification", list)],
)
def test_classifiers_of_other_tools_take_a_template(labels, problem, kind, task_base):
    model, tokenizer = opened(task_base("bert"), task="sequence_classification", labels=labels)
    model.config.problem_type = problem
    run = OpenRun(model, tokenizer)
    found = predict(run, LABELLED, template="{text}")
    scores = classify(model, tokenizer, [row["text"] for row in LABELLED])
    for row, values in zip(found, scores, strict=True):
        assert isinstance(row["prediction"], kind)
        numbers = (
            row["prediction"]
            if kind is dict
            else {"score": row["prediction"]}
            if kind is float
            else row["probabilities"]
        )
        assert numbers == pytest.approx(values, abs=1e-6)
        if kind is list:
            assert row["prediction"] == [label for label in labels if values[label] >= 0.5]
    with pytest.raises(ConfigError, match="records no row format; give the template"):
        predict(run, LABELLED)


def test_members_of_an_ensemble_vote(labelled):
    run, data = labelled
    expected = evaluate_ensemble(run.model, run.tokenizer, data.train, data.row_format, ["one", "two"], vote="mean")
    rows = read_prompt_rows(without_targets(LABELLED, "label"))
    settings = PredictSettings(batch_size=3, max_length=24)
    predictions = RowPredictions(run, rows, data.row_format, settings, members=("one", "two"), vote="mean")
    answers = {index: answer for batch in predictions.batches() for index, answer in zip(*batch, strict=True)}
    for index, prediction in enumerate(expected.together.predictions):
        assert answers[index].prediction == prediction.predicted
        for label, value in prediction.log_probabilities.items():
            assert answers[index].probabilities[label] == pytest.approx(2.718281828459045**value, abs=2e-6)


def test_rows_that_give_nothing_to_read_stay_with_an_empty_prediction(labelled):
    run, _ = labelled
    rows = [{"text": "late"}, {"text": " "}, {"text": None}, {"id": 4}, {"text": "great"}]
    found = predict(run, rows, batch_size=2)
    assert [row["prediction"] is None for row in found] == [False, True, True, True, False]
    assert found[1] == {"text": " ", "prediction": None, "probabilities": None}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}, {"text": 3}], "row 2: field 'text' holds a number where a text is needed"),
        ([{"tweet": "a"}], "the prompts need the field 'text', which no row has; the rows have 'tweet'"),
        ([{"text": "a", "prediction": "b"}], "has 'prediction', the names that predictions get"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows, message, labelled):
    with pytest.raises((DataError, ConfigError), match=message):
        predict(labelled[0], rows)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_llama_folder):
    """A saved adapter whose rows have labels."""
    folder = tmp_path_factory.mktemp("adapter")
    base = load_base(str(tiny_llama_folder), dtype="float32")
    data = load_data(LABELLED, base.tokenizer, validation="none")
    attach(base.model, LoRA(rank=2))
    save_adapter(base.model, folder / "adapter", notes={"row_format": data.row_format.to_dict()})
    rows = [{"ID": number + 50, "text": f"{TEXTS[number % 5]} {'x ' * (number % 7)}{number}"} for number in range(23)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(adapter: Path, out: Path, **settings):
    settings = {"batch_size": 4} | settings
    source = settings.pop("source", str(adapter / "rows.jsonl"))
    return predict_file(PredictionRequest(str(adapter / "adapter")), source, out, **settings)


def stop_after(count: int):
    """Return a function that ends the process at a batch, as a kill does."""

    def on_batch(done: int, _total: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    return on_batch


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("torn", [False, True])
def test_a_killed_prediction_continues_and_writes_the_same_bytes(ending, torn, adapter, tmp_path, monkeypatch):
    whole, out = tmp_path / f"whole.{ending}", tmp_path / f"out.{ending}"
    write(adapter, whole)
    monkeypatch.setattr("peftly.runs.row_predictions._WINDOW_BATCHES", 2)
    with pytest.raises(KeyboardInterrupt, match=r"of 23 rows are kept; the same command continues"):
        write(adapter, out, on_batch=stop_after(9))
    assert not out.exists()
    journal = tmp_path / f"out.{ending}.unfinished"
    kept = (journal / "answers.jsonl").read_text().splitlines()
    if torn:
        file_changes.append(journal / "answers.jsonl", kept[0].encode()[:20])
    counted = []
    original = RowPredictions._predict
    monkeypatch.setattr(RowPredictions, "_predict", lambda *args: counted.append(args) or original(*args))
    result = write(adapter, out)
    assert result.num_continued == sum(len(json.loads(line)["rows"]) for line in kept) > 8
    assert sum(len(prompts) for _, prompts, _ in counted) == 23 - result.num_continued, "no row is predicted twice"
    assert out.read_bytes() == whole.read_bytes()
    assert not journal.exists()


def change_data(adapter: Path) -> dict:
    rows = (adapter / "rows.jsonl").read_text().replace("late", "soon")
    (adapter / "changed.jsonl").write_text(rows)
    return {"source": str(adapter / "changed.jsonl")}


def change_adapter(adapter: Path) -> dict:
    tensors = adapter / "adapter" / "adapter_model.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-1] + b"\x01")
    return {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {"batch_size": 2}, "--batch-size was 4 and is 2; give --overwrite to begin again"),
        (lambda _: {"limit": 9}, "the number of rows was 23 and is 9"),
        (lambda _: {"generation": {"temperature": 0.5}}, "--temperature was the default and is 0.5"),
        (change_data, "the data changed"),
        (change_adapter, "the adapter changed"),
    ],
)
def test_another_prediction_is_not_continued(change, message, adapter, tmp_path):
    tensors = adapter / "adapter" / "adapter_model.safetensors"
    before = tensors.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(adapter, tmp_path / "out.jsonl", on_batch=stop_after(5))
    try:
        with pytest.raises(ConfigError, match=message):
            write(adapter, tmp_path / "out.jsonl", **change(adapter))
    finally:
        tensors.write_bytes(before)
    assert write(adapter, tmp_path / "out.jsonl", overwrite=True).num_continued == 0
    with pytest.raises(ConfigError, match="exists; give --overwrite"):
        write(adapter, tmp_path / "out.jsonl")


def test_answers_over_another_base_of_the_same_name_are_not_continued(adapter, tiny_llama_folder, tmp_path):
    base, out = tmp_path / "base", tmp_path / "out.jsonl"
    shutil.copytree(tiny_llama_folder, base)
    request, source = PredictionRequest(str(adapter / "adapter"), str(base)), str(adapter / "rows.jsonl")
    with pytest.raises(KeyboardInterrupt):
        predict_file(request, source, out, batch_size=4, on_batch=stop_after(5))
    weights = load_file(base / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="the files of the base changed; give --overwrite to begin again"):
        predict_file(request, source, out, batch_size=4)


def test_no_tag_is_predicted_from_values_that_are_no_numbers(task_base, tmp_path):
    model, tokenizer, data = prepared(
        "token_classification", task_base("bert"), tmp_path, tagged_rows(1)[:4], validation="none"
    )
    with torch.no_grad():
        next(parameter for name, parameter in model.named_parameters() if "classifier" in name).fill_(float("nan"))
    rows = tagged_rows(1)[:2]
    with pytest.raises(AdapterError, match="values that are not numbers"):
        predict(OpenRun(model, tokenizer, data.row_format), rows)
    with pytest.raises(AdapterError, match="values that are not numbers"):
        tag_words(model, tokenizer, [row[data.row_format.words_field] for row in rows])


def test_a_submission_to_raft_has_the_number_and_the_label_of_each_row(adapter, tmp_path):
    out = tmp_path / "predictions.csv"
    assert write(adapter, out, form="raft").notes == ()
    lines = out.read_text().splitlines()
    assert lines[0] == "ID,Label"
    assert [line.partition(",")[0] for line in lines[1:]] == [str(number + 50) for number in range(23)]
    assert {line.partition(",")[2] for line in lines[1:]} <= {"a", "b b"}
    result = write(adapter, out, form="raft", source=[{"text": "late"}, {"text": "great"}], overwrite=True)
    assert [line.partition(",")[0] for line in out.read_text().splitlines()] == ["ID", "0", "1"]
    assert result.notes == ("no field is named ID: the IDs are the indices of the rows, from 0",)
    with pytest.raises(ConfigError, match="a submission to RAFT is a CSV file"):
        write(adapter, tmp_path / "out.jsonl", form="raft")


def test_rows_with_targets_are_scored(adapter, tmp_path):
    unknown = [{"text": "late", "label": "other"}, {"text": "late", "label": "Unlabeled"}, {"text": "late"}]
    result = write(adapter, tmp_path / "out.jsonl", source=[*LABELLED, *unknown])
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    hits = sum(row["prediction"] == row["label"] for row in written[: len(LABELLED)])
    assert (result.num_scored, result.scores["accuracy"]) == (len(LABELLED), hits / len(LABELLED))
    assert result.notes == (
        "not in the scores: 1 row with a label that the model cannot predict (first: test: row 11, 'other')",
    )
    assert written[-2]["label"] == "Unlabeled"
    assert write(adapter, tmp_path / "new.jsonl").scores == {}


def test_a_chosen_label_of_an_untouched_base(tiny_llama_folder, tmp_path):
    request = PredictionRequest(None, str(tiny_llama_folder), "{text}\nLabel:", labels=("late", "great"))
    result = predict_file(request, LABELLED[:3], tmp_path / "out.json", batch_size=2)
    rows = json.loads((tmp_path / "out.json").read_text())
    assert set(result.counts) <= {"late", "great"}
    assert [list(row) for row in rows] == [["text", "label", "prediction", "probabilities"]] * 3

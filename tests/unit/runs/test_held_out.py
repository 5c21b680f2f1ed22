"""The held-out examples of a finished run: the rows of its training, or a refusal."""

import json
import random
from pathlib import Path

import pytest

from peftly import open_run
from peftly.adapters import open_adapters
from peftly.data import DataConfig, RowFormat, load_data
from peftly.errors import ConfigError, DataError
from peftly.methods import LoRA
from peftly.runs import RunConfig, changed_rows_line, held_out_examples, held_out_split, run
from peftly.training import TrainConfig

ROWS = [{"text": f"text number {number}", "label": ("late", "great")[number % 2]} for number in range(30)]
CHATS = [
    {"messages": [{"role": "user", "content": f"ask {number}"}, {"role": "assistant", "content": f"say {number}"}]}
    for number in range(30)
]


def write(file: Path, rows: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module", params=["label", "chat"])
def finished(request, tmp_path_factory, tiny_llama_folder):
    """A run, the data file, its rows and the prompts of its training and validation."""
    folder = tmp_path_factory.mktemp(request.param)
    file, rows = folder / "rows.jsonl", ROWS if request.param == "label" else CHATS
    write(file, rows)
    data = DataConfig(train=str(file), validation_fraction=0.2)
    train = TrainConfig(max_steps=1, generation_examples=0)
    config = RunConfig(
        base=str(tiny_llama_folder), data=data, method=LoRA(rank=2), train=train, out=str(folder / "run")
    )
    run(config)
    opened = open_run(str(folder / "run"))
    loaded = load_data(data, opened.tokenizer)
    return opened, folder / "run", file, rows, loaded


@pytest.fixture
def changed(finished):
    """A function that writes other rows to the data file of the run, until the end of the test."""
    _, _, file, rows, _ = finished
    yield lambda new: write(file, new)
    write(file, rows)


def extra(rows: list[dict], count: int) -> list[dict]:
    """Further rows like the first."""
    new = json.dumps(rows[0]).replace("text number 0", "other @").replace("ask 0", "other @")
    return [json.loads(new.replace("@", str(number))) for number in range(count)]


def test_the_rows_of_the_training_are_found_in_changed_data(finished, changed):
    opened, folder, _, rows, loaded = finished
    expected = list(loaded.validation.examples)
    assert 0 < len(expected) < len(rows)
    shuffled = [*extra(rows, 40), *rows]
    random.Random(0).shuffle(shuffled)
    unreadable = {"text": "praise", "label": "a new label", "messages": [{"role": "user", "content": ""}]}
    for new in (rows, rows[::-1], shuffled, [*rows, unreadable]):
        changed(new)
        found = held_out_split(opened, None, run=folder)
        assert list(found.split.examples) == expected
        assert list(found.split.encoded) == list(loaded.validation.encoded)
        assert found.lines == [f"{len(expected)} validation examples of the run"]
    assert set(loaded.train.examples).isdisjoint(expected) if rows is ROWS else True


def test_held_out_rows_that_are_gone_are_refused(finished, changed):
    opened, folder, file, rows, loaded = finished
    gone = loaded.validation.examples[0]
    others = [row for row, example in zip(rows, loaded.row_format.examples(rows), strict=True) if example != gone]
    assert len(others) == len(rows) - 1
    changed([*others, *extra(rows, 20)])
    with pytest.raises(DataError) as error:
        held_out_split(opened, None, run=folder)
    count = len(loaded.validation.examples)
    assert str(error.value) == (
        f"{file} was changed after the training: 1 of the {count} rows held out for validation are no longer in it; "
        "give the rows to evaluate on with --data"
    )
    # `merge` says why it compares on other texts.
    adapters = open_adapters(str(folder))
    with pytest.raises(DataError, match="changed after the training"):
        held_out_examples(adapters, opened.model, opened.tokenizer)


def test_a_missing_file_is_named_with_the_way_out(finished, changed):
    opened, folder, file, _, _ = finished
    file.unlink()
    with pytest.raises(DataError, match=rf"^{file}: no such file.*; give the rows to evaluate on with --data$"):
        held_out_split(opened, None, run=folder)


def test_a_changed_answer_is_another_row(finished, changed):
    opened, folder, _, rows, loaded = finished
    answer = str(loaded.validation.examples[0].messages[-1:] or loaded.validation.examples[0].prompt)
    number = int("".join(filter(str.isdigit, answer)))
    text = json.dumps(rows[number]).replace("great", "LATE").replace("late", "great").replace("LATE", "late")
    new = json.loads(text.replace(f"say {number}", "another answer"))
    assert new != rows[number]
    changed([*rows[:number], new, *rows[number + 1 :]])
    with pytest.raises(DataError, match="1 of the"):
        held_out_split(opened, None, run=folder)


def test_rows_that_were_trained_on_are_counted(finished, tmp_path):
    opened, folder, file, rows, loaded = finished
    num_trained = len(loaded.train.examples)
    lines = held_out_split(opened, str(file), run=folder).lines
    assert lines[1].startswith(
        f"{num_trained} of {len(rows)} rows have a prompt that the adapter was trained on (first: {file}:"
    )
    write(tmp_path / "new.jsonl", extra(rows, 5))
    assert held_out_split(opened, str(tmp_path / "new.jsonl"), run=folder).lines == [
        f"5 examples of {tmp_path / 'new.jsonl'}"
    ]


def test_changed_training_rows_are_counted(finished, changed):
    """As `inspect RUN` says it."""
    opened, folder, file, rows, loaded = finished
    assert changed_rows_line(folder, loaded) is None
    assert changed_rows_line(file, loaded) is None
    changed(extra(rows, 6))
    now = load_data(DataConfig(train=str(file), validation_fraction=0.0), opened.tokenizer)
    assert changed_rows_line(folder, now) == (
        f"the data were changed after the training: {len(loaded.train.examples)} of the "
        f"{len(loaded.train.examples)} training rows of the run are gone, and 6 rows were added"
    )


def test_runs_without_digests(finished, changed, tmp_path):
    """Runs of version 0.1.0 record numbers of rows only."""
    opened, folder, _, rows, loaded = finished
    old = tmp_path / "run"
    (old / "adapter").mkdir(parents=True)
    (old / "config.yaml").write_text((folder / "config.yaml").read_text())
    content = json.loads((folder / "data.json").read_text())
    assert content.pop("digests")["version"] == 2
    (old / "data.json").write_text(json.dumps(content))
    found = held_out_split(opened, None, run=old / "adapter")
    assert list(found.split.examples) == list(loaded.validation.examples)
    assert found.lines[1].startswith("the run records no digests of its rows")
    changed([*rows, *extra(rows, 10)])
    with pytest.raises(
        DataError, match="was changed after the training: its train split has 32 rows, and the run had 24"
    ):
        held_out_split(opened, None, run=old)


@pytest.mark.parametrize("content", ["{", '{"splits": {}, "digests": {"version": 2, "validation": "%"}}', "[]"])
def test_a_damaged_file_of_digests(finished, tmp_path, content):
    opened, folder, file, _, _ = finished
    damaged = tmp_path / "run"
    damaged.mkdir()
    (damaged / "config.yaml").write_text((folder / "config.yaml").read_text())
    (damaged / "data.json").write_text(content)
    with pytest.raises(DataError, match=r"data.json is damaged .*give the rows to evaluate on with --data"):
        held_out_split(opened, None, run=damaged)
    assert "is damaged" in held_out_split(opened, str(file), run=damaged).lines[1]


def test_long_texts_are_cut_into_the_same_pieces(tiny_llama_folder, tmp_path):
    file = tmp_path / "rows.jsonl"
    write(file, [{"text": f"text number {number} " * 20} for number in range(10)])
    data = DataConfig(train=str(file), max_length=32, long_texts="pieces")
    train = TrainConfig(max_steps=1)
    config = RunConfig(
        base=str(tiny_llama_folder), data=data, method=LoRA(rank=2), train=train, out=str(tmp_path / "run")
    )
    rows = run(config).evaluation.rows
    opened = open_run(str(tmp_path / "run"))
    found = held_out_split(opened, None, run=tmp_path / "run")
    expected = load_data(data, opened.tokenizer).validation
    assert rows == len(expected.encoded) > 1
    assert list(found.split.encoded) == list(expected.encoded)


def test_a_run_without_held_out_rows(finished, tmp_path):
    opened, folder, _, _, _ = finished
    other = tmp_path / "run"
    other.mkdir()
    (other / "config.yaml").write_text((folder / "config.yaml").read_text())
    content = json.loads((folder / "data.json").read_text())
    del content["digests"]["validation"]
    (other / "data.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="neither test nor validation examples; give --data"):
        held_out_split(opened, None, run=other)


def test_labels_of_a_run_without_digests_keep_the_order_of_the_adapter(finished, tmp_path):
    """Version 0.1.0 ordered numbers by their texts."""
    opened, *_ = finished
    file = tmp_path / "rows.jsonl"
    write(file, [{"text": f"text number {number}", "label": number % 12} for number in range(36)])
    labels = tuple(sorted(map(str, range(12))))
    config = opened.config.model_copy(update={"data": DataConfig(train=str(file)), "out": str(tmp_path)})
    old = opened._replace(config=config, row_format=RowFormat("label", "{text} is", "label", labels))
    found = held_out_split(old, None, run=tmp_path)
    assert found.row_format.labels == labels
    assert found.split.examples[0].prompt.endswith(" is")
    assert len(found.split.encoded) == len(found.split.examples) > 0

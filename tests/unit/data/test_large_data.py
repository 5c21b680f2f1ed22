"""Rows and examples by the million: stored as bytes, made on access, the same as small ones."""

import csv
import errno
import gc
import json
import random
import threading
import tracemalloc
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import datasets
import pytest
from data_tokenizers import family
from hypothesis import given, settings
from hypothesis import strategies as st

import peftly
from peftly.data import EncodedExample, EncodedExamples, Rows, epoch_steps, input_lengths, token_counts
from peftly.data.rows import StoredRows
from peftly.data.storage import ByteStore
from peftly.data.validation import choose_validation
from peftly.errors import DataError
from peftly.training.checkpoint import digest
from peftly.training.steps import examples_of_steps

STORAGE, SPLIT = import_module("peftly.data.storage"), import_module("peftly.data.split")
TOKENIZER = family("byte_level")
ROWS = [{"text": f"order {n} " + "late " * (n % 7), "label": "no" if n % 4 else "yes"} for n in range(600)]


@pytest.fixture
def in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store everything in files: in the folder that is returned."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PEFTLY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(STORAGE, "MEMORY_BYTES", 100)
    monkeypatch.setattr(STORAGE, "_BLOCK_BYTES", 70)
    return tmp_path / "home"


def json_lines(name: str, rows: list[dict]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def test_bytes_come_back_from_memory_and_from_a_file_without_a_name(in_files):
    store, strings = ByteStore(), [bytes([n]) * (n % 50) for n in range(90)]
    for number, string in enumerate(strings):
        store.append(string)
        assert store[number] == string
        assert store[number // 2] == strings[number // 2]
    assert store == strings
    assert list(store) == strings
    assert b"".join(store.blocks()) == b"".join(strings)
    assert max(map(len, store.blocks())) == 70
    assert in_files.is_dir()
    assert not list(in_files.iterdir())


def test_few_bytes_make_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("PEFTLY_HOME", str(tmp_path / "home"))
    store = ByteStore()
    store.append(b"x" * 1000)
    assert store == [b"x" * 1000]
    assert not (tmp_path / "home").exists()


def test_a_full_disk_is_one_line(in_files, monkeypatch):
    class FullDisk:
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(STORAGE.tempfile, "TemporaryFile", lambda **_: FullDisk())
    with pytest.raises(
        DataError, match=r"^.*/home: cannot store [\d,]+ bytes of data there \(No space left on device\)"
    ):
        peftly.load_data(json_lines("rows.jsonl", ROWS), TOKENIZER)


def test_an_error_of_the_tokenizer_leaves_no_thread_and_no_frozen_objects(in_files, monkeypatch):
    monkeypatch.setattr(SPLIT, "_BATCH_EXAMPLES", 7)
    monkeypatch.setattr(SPLIT, "encode_for", lambda *_, **__: pytest.fail("broken"))
    threads, calls = threading.active_count(), []
    monkeypatch.setattr(gc, "get_freeze_count", lambda: 0)
    monkeypatch.setattr(gc, "freeze", lambda: calls.append("freeze"))
    monkeypatch.setattr(gc, "unfreeze", lambda: calls.append("unfreeze"))
    with pytest.raises(pytest.fail.Exception, match="broken") as caught:
        peftly.load_data(json_lines("rows.jsonl", ROWS), TOKENIZER)
    assert caught.tb is not None
    assert threading.active_count() == threads
    assert calls == ["freeze", "unfreeze"]


def test_a_cache_folder_that_is_a_file_is_one_line(in_files):
    in_files.write_text("")
    with pytest.raises(DataError, match=r"cannot store [\d,]+ bytes of data there \(File exists\); .* PEFTLY_HOME"):
        peftly.load_data(json_lines("rows.jsonl", ROWS), TOKENIZER)


def test_a_sequence_is_like_a_list():
    examples = [EncodedExample([n], [False]) for n in range(5)]
    stored = EncodedExamples(examples)
    assert stored == examples
    assert examples == stored
    assert stored != examples[:4]
    assert stored[1:4] == examples[1:4]
    assert stored[-1] == examples[-1]
    assert stored[::-2] == examples[::-2]
    assert [*reversed(stored)] == examples[::-1]
    assert examples[2] in stored
    for wrong in (5, -6):
        with pytest.raises(IndexError):
            stored[wrong]


numbers = st.lists(st.integers(-100, 2**31 - 1), max_size=6)


@st.composite
def encoded_examples(draw):
    ids = draw(numbers)
    return EncodedExample(
        ids,
        draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids))),
        draw(st.integers(0, 10**6)),
        label=draw(st.none() | st.integers(0, 1000)),
        tags=draw(st.none() | numbers),
        answer=draw(st.none() | numbers),
        token_type_ids=draw(st.none() | numbers),
        prompt_positions=tuple(draw(numbers)),
    )


@given(st.lists(encoded_examples(), max_size=6))
@settings(deadline=None, max_examples=60)
def test_every_encoded_example_comes_back(examples):
    stored = EncodedExamples(examples)
    assert list(stored) == examples
    assert [type(flag) for example in stored for flag in example.trained] == [bool] * sum(
        len(example.trained) for example in examples
    )
    assert list(token_counts(stored)) == token_counts(examples) == [example.num_tokens for example in examples]
    assert list(input_lengths(stored)) == input_lengths(examples) == [len(example.input_ids) for example in examples]
    assert digest(stored) == digest(examples)


def test_the_hash_of_examples_knows_each_part_and_the_order():
    example = EncodedExample([1, 2], [False, True])
    changes = [
        {"input_ids": [1, 3]},
        {"trained": [True, True]},
        {"num_truncated": 1},
        *({name: values} for name in ("tags", "answer", "token_type_ids") for values in ([], [0, 0])),
        {"label": 0},
        {"prompt_positions": (0,)},
    ]
    variants = [example, *(replace(example, **change) for change in changes)]
    assert len({digest([variant]) for variant in variants}) == len(variants)
    assert digest(variants) != digest(variants[::-1])


def test_a_changed_copy_is_no_stored_example():
    stored = EncodedExamples([EncodedExample([1], [False])])
    assert stored[0].position == (id(stored), 0)
    assert replace(stored[0], input_ids=[2]).position is None


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "memory"])
def test_data_in_files_are_the_same_as_in_memory(in_files, monkeypatch, name):
    json_lines("rows.jsonl", ROWS)
    with Path("rows.csv").open("w") as file:
        writer = csv.DictWriter(file, ["text", "label"])
        writer.writeheader()
        writer.writerows(ROWS)
    datasets.Dataset.from_list(ROWS).to_parquet("rows.parquet")
    monkeypatch.setattr(SPLIT, "_BATCH_EXAMPLES", 7)
    source = ROWS if name == "memory" else name
    stored = peftly.load_data(source, TOKENIZER, max_length=20)
    monkeypatch.undo()
    monkeypatch.chdir(in_files.parent)
    expected = peftly.load_data(source, TOKENIZER, max_length=20)
    assert stored == expected
    assert stored.report.splits["train"].truncated > 0
    assert [example.prompt for example in stored.validation.examples] == [
        example.prompt for example in expected.validation.examples
    ]


def test_dropped_rows_are_in_no_sequence(in_files):
    rows = [{"prompt": f"p{n}", "completion": "" if n % 3 == 1 else f"c{n}"} for n in range(50)]
    data = peftly.load_data(json_lines("rows.jsonl", rows), TOKENIZER, validation_fraction=0)
    assert [example.completion.strip() for example in data.train.examples] == [
        row["completion"] for row in rows if row["completion"]
    ]
    assert len(data.train.encoded) == len(data.train.examples) == 33
    assert data.report.splits["train"].first_dropped == "rows.jsonl: line 2"


def test_the_first_dropped_row_can_be_the_last_row(in_files):
    rows = [{"prompt": "p", "completion": "c"}] * 2 + [{"prompt": "p", "completion": ""}]
    data = peftly.load_data(json_lines("rows.jsonl", rows), TOKENIZER, validation_fraction=0)
    assert data.report.splits["train"].first_dropped == "rows.jsonl: line 3"


def test_a_row_takes_little_memory(tmp_path, monkeypatch, in_files):
    json_lines("rows.jsonl", ROWS * 4)
    peftly.load_data("rows.jsonl", TOKENIZER)
    tracemalloc.start()
    data = peftly.load_data("rows.jsonl", TOKENIZER)
    present, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(data.train.encoded) == 2160
    assert present / 2400 < 120  # as Python lists: 3,600 bytes


def test_a_dataset_is_not_copied(monkeypatch):
    data = datasets.Dataset.from_list(ROWS)
    monkeypatch.setattr(datasets.Dataset, "to_list", lambda _: pytest.fail("copied"))
    shuffled = data.select(range(len(ROWS) - 1, -1, -1))
    loaded = peftly.load_data(shuffled, TOKENIZER, validation_fraction=0)
    assert loaded.train.encoded == peftly.load_data(ROWS[::-1], TOKENIZER, validation_fraction=0).train.encoded


@pytest.mark.parametrize("as_dict", [False, True])
def test_a_stream_is_read_once_and_stored(as_dict):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    numbers_of = [{**row, "label": int(row["label"] == "yes")} for row in ROWS]
    stream = datasets.Dataset.from_list(numbers_of, features=features).to_iterable_dataset()
    loaded = peftly.load_data(datasets.IterableDatasetDict(train=stream) if as_dict else stream, TOKENIZER)
    expected = peftly.load_data(ROWS, TOKENIZER)
    assert loaded.train.encoded == expected.train.encoded
    assert loaded.validation.encoded == expected.validation.encoded


def test_a_stream_that_ends_early_and_half_a_character_are_one_line():
    def rows():
        yield from ROWS[:3]
        raise ConnectionError("the Hub is gone\nsecond line")

    stream = datasets.IterableDataset.from_generator(rows)
    with pytest.raises(DataError, match=r"^train: the stream of rows ended after 3 rows \(the Hub is gone\)$"):
        peftly.load_data(stream, TOKENIZER)
    halves = datasets.IterableDataset.from_generator(lambda: iter([{"text": "a\ud83d", "label": "no"}]))
    with pytest.raises(DataError, match=r"^train: row 1 holds half of a character"):
        peftly.load_data(halves, TOKENIZER)


def test_stored_rows_know_all_fields_in_order_and_a_value_that_json_lacks_is_null():
    rows = StoredRows()
    for row in ({"b": 1}, {"b": 2, "a": 1}, {"c": object()}):
        rows.append(row)
    assert Rows("rows", rows).fields == ["b", "a", "c"]
    assert list(rows) == [{"b": 1}, {"b": 2, "a": 1}, {"c": None}]


def test_the_orders_are_those_of_earlier_versions():
    lengths = [3, 1, 2, 9, 4, 4, 4, 1, 7, 5, 5]
    assert list(epoch_steps(lengths, 2, seed=5, epoch=1)) == [[1, 9], [2, 0], [4, 5], [6, 8], [7, 10], [3]]
    assert choose_validation([1, 2, 2, 3, 4, 5, 6, 7, 8, 9], [0, 0, 0, 1, 1, 1, 1, 1, -1, -1], 0.4, 7) == [0, 3, 4, 9]


@pytest.mark.parametrize("stored", [False, True])
def test_a_run_that_stops_in_an_epoch_continues_with_the_very_next_examples(stored):
    draw = random.Random(0)
    examples = [
        EncodedExample([n] * length, [False] * length) for n, length in enumerate(draw.choices(range(1, 9), k=53))
    ]
    source = EncodedExamples(examples) if stored else examples
    whole = list(examples_of_steps(source, 4, end=40, seed=3))
    assert sorted(example.input_ids[0] for step in whole[:14] for example in step) == list(range(53))
    for stop in (1, 9, 14, 20, 39):  # 14 steps are an epoch
        assert list(examples_of_steps(source, 4, first=stop, end=40, seed=3)) == whole[stop:]

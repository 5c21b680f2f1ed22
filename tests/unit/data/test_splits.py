import copy
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import datasets
import pytest
from data_tokenizers import family
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import DataConfig, Example, encode, label_ids, load_data
from peftly.data.overlaps import prompt_key
from peftly.data.validation import choose_validation
from peftly.errors import ConfigError, DataError

TOKENIZER = family("byte_level")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    return tmp_path


def write(name: str, rows: list[dict[str, object]]) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def tweets(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"text": f"order {n}", "label": "no" if n % 4 else "yes"} for n in range(start, start + count)]


def load(**config: object):
    return load_data(DataConfig(**config), TOKENIZER)


def refusal(**config: object) -> str:
    with pytest.raises(DataError) as caught:
        load(**config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def overlaps(data) -> list[tuple[str, str, int, str]]:
    return [
        (name, finding.kind, finding.count, finding.samples[0])
        for name, finding in data.report.findings
        if finding.kind.startswith("in_")
    ]


def test_three_files():
    data = load(
        train=write("a.jsonl", tweets(8)),
        validation=write("b.jsonl", tweets(4, 8)),
        test=write("c.jsonl", tweets(3, 12)),
    )
    assert [len(split.examples) for split in (data.train, data.validation, data.test)] == [8, 4, 3]
    assert data.row_format.labels == ("no", "yes")
    for split in (data.train, data.validation, data.test):
        for example, encoded in zip(split.examples, split.encoded, strict=True):
            assert encoded == encode(example, TOKENIZER, 512)
            assert (
                encoded.input_ids[encoded.trained.index(True) :] == label_ids(data.row_format, TOKENIZER)[example.label]
            )
    assert data.report.findings == []
    assert list(data.report.splits) == ["train", "validation", "test"]


def test_the_report_counts_rows_and_tokens():
    rows = [
        {"prompt": "Why?", "completion": "no"},
        {"prompt": "late " * 50, "completion": "yes"},
        {"prompt": "x", "completion": ""},
    ]
    data = load(train=write("a.jsonl", rows), validation=write("b.jsonl", rows[:1]), max_length=20)
    report = data.report.splits["train"]
    whole = encode(Example("late " * 50, "yes"), TOKENIZER, 10_000)
    assert (report.rows, report.examples, report.dropped, report.truncated) == (3, 2, 1, 1)
    assert report.tokens_cut == len(whole.input_ids) - 20
    assert report.first_dropped == "a.jsonl: line 3"
    assert report.tokens == sum(len(encoded.input_ids) for encoded in data.train.encoded)
    assert report.trained_tokens == sum(sum(encoded.trained) for encoded in data.train.encoded)
    assert len(data.train.examples) == len(data.train.encoded) == 2
    assert data.report.lines() == [
        f"train: 3 rows of a.jsonl, {report.tokens} tokens, {report.trained_tokens} of them trained; 1 truncated by "
        f"{report.tokens_cut} tokens; 1 dropped (first: a.jsonl: line 3)",
        f"validation: 1 row of b.jsonl, {data.report.splits['validation'].tokens} tokens, "
        f"{data.report.splits['validation'].trained_tokens} of them trained",
        "problem: train: 1 × row dropped: its answer is empty (first: a.jsonl: line 3)",
        "problem: validation: 1 × example with a prompt that the train split has, too "
        "(first: b.jsonl: line 1: as a.jsonl: line 1)",
        "note: train: 1 × example with a prompt that is shortened to fit max_length "
        f"(first: a.jsonl: line 2: {report.tokens_cut} removed)",
        "read as prompt and completion (prompt + completion), the prompt as '{prompt}'",
        "1 completion got a space in front, since the prompt ends without one (first: 'Why?' + ' no'); --set "
        "data.add_space=false leaves them as written",
    ]
    assert json.loads(json.dumps(data.report.to_dict()))["splits"]["train"]["truncated"] == 1


def test_labels_are_counted():
    data = load(train=write("a.jsonl", tweets(8)), validation="a.jsonl")
    assert data.report.splits["train"].labels == {"no": 6, "yes": 2}
    assert "(no: 6, yes: 2)" in data.report.lines()[0]


def test_only_tags_that_are_learned_are_counted():
    rows = [{"tokens": ["my", "\u200b", "order", "late"], "tags": ["O", "B", "B", "I"]}]
    report = load_data(rows, family("wordpiece"), task="token_classification", max_length=5).report.splits["train"]
    assert (report.trained_tokens, report.labels) == (3, {"B": 1, "I": 1, "O": 1})
    report = load_data(rows, family("wordpiece"), task="token_classification", max_length=4).report.splits["train"]
    assert (report.trained_tokens, report.labels) == (2, {"B": 1, "O": 1})


def test_a_tenth_becomes_validation_by_label_and_seed():
    write("a.jsonl", tweets(80))
    data = load(train="a.jsonl")
    assert data.report.splits["validation"].labels == {"no": 6, "yes": 2}
    assert data.report.splits["train"].labels == {"no": 54, "yes": 18}
    assert "validation is 8 rows taken from a.jsonl by seed 0" in data.report.notes
    texts = [{example.prompt for example in split.examples} for split in (data.train, data.validation)]
    assert texts[0] | texts[1] == {f"order {n}\nLabel:" for n in range(80)}
    assert not texts[0] & texts[1]
    assert load(train="a.jsonl") == data
    assert load(train="a.jsonl", seed=1).validation != data.validation
    order = [int(example.prompt.split()[1]) for example in data.train.examples]
    assert order == sorted(order)  # the other rows stay in the order of the file


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), min_size=1, max_size=60),
    st.floats(0.01, 0.9),
    st.integers(0, 5),
)
@settings(deadline=None, max_examples=80)
def test_every_label_keeps_a_row_and_its_share(rows, fraction, seed):
    examples = [Example(f"{text}", label, label) for text, label in rows]
    keys = [prompt_key(example) for example in examples]
    chosen = choose_validation(keys, ["abc".index(label) for _, label in rows], fraction, seed)
    assert sorted(set(chosen)) == chosen
    labels = Counter(label for _, label in rows)
    taken = Counter(examples[index].label for index in chosen)
    for label, count in labels.items():
        assert taken[label] < count
        assert taken[label] <= fraction * count + 1
        assert taken[label] >= min(int(fraction * count), count - 1)
    wanted = max(1, round(fraction * len(rows)))
    assert len(chosen) <= wanted
    if len(rows) > len(labels):
        assert chosen


def test_a_split_makes_no_overlaps_if_possible():
    rows = tweets(10) + tweets(10)[:6]
    data = load(train=write("a.jsonl", rows), validation_fraction=0.25)
    assert overlaps(data) == []
    both = load(train=write("b.jsonl", tweets(4) * 2), validation_fraction=0.25)
    assert overlaps(both)[0][2] == 2


def test_no_validation_when_none_can_be_taken_or_is_wanted():
    data = load(train=write("a.jsonl", tweets(1)))
    assert data.validation is None
    assert "no validation split: there are too few rows to take one from training" in data.report.notes
    data = load(train=write("a.jsonl", tweets(9)), validation_fraction=0)
    assert data.validation is None
    assert "no validation split: validation_fraction is 0" in data.report.notes
    assert len(data.train.examples) == 9


def test_rows_in_two_splits_are_reported_with_their_locations():
    write("a.jsonl", tweets(8) + tweets(8))
    write("b.jsonl", tweets(4, 6))
    data = load(train="a.jsonl", validation="b.jsonl", test=write("c.jsonl", tweets(3, 7)))
    assert overlaps(data) == [
        ("validation", "in_train", 2, "b.jsonl: line 1: as a.jsonl: line 7"),  # the first of the two there
        ("test", "in_train", 1, "c.jsonl: line 1: as a.jsonl: line 8"),
        ("test", "in_validation", 3, "c.jsonl: line 1: as b.jsonl: line 2"),
    ]


def test_conversations_with_the_same_question_are_in_two_splits():
    def talk(question, answer):
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    tokenizer = copy.deepcopy(TOKENIZER)
    turns = "{% for m in messages %}{{ m['role'] + m['content'] + '</s>' }}{% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}assistant{% endif %}"
    write("a.jsonl", [talk("a", "b"), talk("c", "d")])
    write("b.jsonl", [talk("c", "other"), talk("e", "d")])
    data = load_data(DataConfig(train="a.jsonl", validation="b.jsonl"), tokenizer)
    assert overlaps(data) == [("validation", "in_train", 1, "b.jsonl: line 1: as a.jsonl: line 2")]
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"^a\.jsonl: line 1: the tokenizer has no chat template"):
        load_data(DataConfig(train="a.jsonl", validation="b.jsonl"), tokenizer)


def test_a_data_sets_own_splits():
    part = datasets.Dataset.from_list(tweets(8))
    datasets.DatasetDict(train=part, dev=part.select([0]), test=part.select([1, 2]), unused=part).save_to_disk("set")
    data = load(train="set")
    assert [len(split.examples) for split in (data.train, data.validation, data.test)] == [8, 1, 2]
    assert "validation is the split 'dev' of set" in data.report.notes
    own = load(train="set", validation=write("b.jsonl", tweets(2)))
    assert own.report.splits["validation"].source == "b.jsonl"
    datasets.DatasetDict(one=part, two=part).save_to_disk("other")
    assert refusal(train="other") == "other: has the splits 'one', 'two', none of them 'train'"
    datasets.DatasetDict(one=part).save_to_disk("single")
    assert load(train="single").report.splits["train"].source == "single [one]"


def test_a_test_split_without_labels_is_left_out_unless_it_was_asked_for():
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})

    def part(labels):
        return datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}, features=features)

    datasets.DatasetDict(train=part([0, 1, 0]), test=part([-1, -1])).save_to_disk("set")
    data = load(train="set")
    assert data.test is None
    assert "set [test] has no value in 'label', so it is no test split" in data.report.notes
    assert refusal(train="set", test="set") == (
        "set [test]: no trained token is left in any of 2 rows: 2 × row dropped: its label is empty (first: set "
        "[test]: row 1)"
    )


def test_a_label_never_seen_in_training():
    write("a.jsonl", tweets(8))
    write("b.jsonl", [*tweets(2), {"text": "x", "label": "maybe"}])
    expected = (
        "b.jsonl: line 3: label 'maybe' is in none of the training rows; they have 'no', 'yes'; rows "
        "without a known label are for peftly predict"
    )
    assert refusal(train="a.jsonl", validation="b.jsonl") == expected
    assert refusal(train="a.jsonl", validation="a.jsonl", test="b.jsonl") == expected


def test_no_trained_token_left_in_any_row():
    write("a.jsonl", [{"prompt": "x", "completion": ""}, {"prompt": "y", "completion": " "}])
    assert refusal(train="a.jsonl", validation_fraction=0) == (
        "a.jsonl: no trained token is left in any of 2 rows: 2 × row dropped: its answer is empty (first: a.jsonl: "
        "line 1)"
    )
    write("b.jsonl", [{"prompt": "x", "completion": "z"}])
    assert refusal(train="b.jsonl", validation="a.jsonl").startswith("a.jsonl: no trained token is left")


def test_a_bad_row_is_named_with_its_file_and_line():
    Path("a.jsonl").write_text('\n{"text": "a", "label": "b"}\n\n{"text": "a"}\n')
    assert refusal(train="a.jsonl") == "a.jsonl: line 4 has no field 'label'; it has 'text'"
    write("b.jsonl", tweets(3))
    Path("c.csv").write_text("txt,label\na,yes\n")
    assert refusal(train="b.jsonl", validation="c.csv") == (
        "c.csv: the validation rows have no field 'text', which the training rows have; they have 'txt', 'label': give "
        "other rows with --validation, or --validation none"
    )


def test_every_label_leaves_the_same_part_of_a_long_prompt():
    rows = [{"text": "late " * 40, "label": label} for label in ("complaint", "my order never arrived")] * 3
    data = load(train=write("a.jsonl", rows), validation="a.jsonl", max_length=40)
    heads = {tuple(encoded.input_ids[: encoded.trained.index(True)]) for encoded in data.train.encoded}
    assert len(heads) == 1
    assert data.report.splits["train"].truncated == 6


@pytest.mark.parametrize("wrong", [{"max_length": 1}, {"validation_fraction": 1.0}, {"seed": -1}, {"trian": "x"}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=r"^DataConfig"):
        DataConfig(train="a.jsonl", **wrong)


def test_the_package_imports_no_large_library():
    code = (
        "import peftly.data, sys; print({'torch', 'transformers', 'datasets', 'numpy', 'pyarrow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_conversation_with_empty_answers_is_no_validation_row():
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] + '</s>' }}{% endfor %}"
    for empty in ("", " \n"):
        answers = ["good day" if number % 3 == 0 else empty for number in range(12)]
        rows = [
            {"messages": [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": answer}]}
            for n, answer in enumerate(answers)
        ]
        for seed in range(4):
            data = load_data(DataConfig(train=write("a.jsonl", rows), validation_fraction=0.2, seed=seed), tokenizer)
            report = data.report.splits["validation"]
            assert (report.rows, report.dropped) == (1, 0)
            assert (data.report.splits["train"].examples, data.report.splits["train"].dropped) == (3, 8)

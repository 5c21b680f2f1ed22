"""The checks of the data: each finds the defect with its count and examples, and finds nothing in sound data."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from data_tokenizers import family

from peftly.data import FINDING_KINDS, EncodedExample, load_data
from peftly.data.checks import EncodingChecks
from peftly.data.findings import FindingCounter
from peftly.data.report import LengthReport
from peftly.errors import DataError
from peftly.report import length_rows

PLAIN = family("byte_level")
TURNS = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
OPENING = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def chat_tokenizer(template: str = TURNS + OPENING):
    tokenizer = copy.deepcopy(PLAIN)
    tokenizer.chat_template = template
    return tokenizer


def talk(question: str, *answers: str, **marks: Any) -> dict[str, Any]:
    turns = [{"role": "assistant", "content": answer, **marks} for answer in answers]
    return {"messages": [{"role": "user", "content": question}, *turns]}


def found(rows, tokenizer=PLAIN, split="train", **settings) -> dict[str, tuple[int, tuple[str, ...]]]:
    """Return count and samples of each finding of a split."""
    settings.setdefault("validation_fraction", 0)
    report = load_data(rows, tokenizer, **settings).report
    return {finding.kind: (finding.count, finding.samples) for name, finding in report.findings if name == split}


def texts(count: int) -> list[dict[str, str]]:
    return [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(count)]


def labels(count: int) -> list[dict[str, str]]:
    return [{"text": f"order {n}", "label": "no" if n % 3 else "yes"} for n in range(count)]


def test_sound_data_have_no_findings():
    for rows in (texts(50), labels(50), labels(4), texts(1), [{"text": f"line {n}"} for n in range(50)]):
        assert found(rows) == {}
    talks = [talk(f"question {n}", f"answer {n}") for n in range(20)]
    assert found(talks, chat_tokenizer()) == {}
    few_shot = [{"text": f"{n} of {label}", "label": f"intent {label}"} for label in range(30) for n in range(3)]
    assert found(few_shot) == {}
    assert found(texts(20), test=texts(30)[20:], split="test") == {}


@pytest.mark.parametrize("name", ["complaints", "messages"])
def test_the_sample_data_have_no_findings(name):
    sample = Path(load_data.__code__.co_filename).parents[1] / "sample_data" / name
    report = load_data(
        sample / "train.jsonl", PLAIN, validation=sample / "validation.jsonl", test=sample / "test.jsonl"
    ).report
    assert report.findings == []


def test_each_reason_to_drop_a_row_is_counted_by_itself():
    rows = [*texts(2), {"prompt": "a", "completion": " "}, {"prompt": "b", "completion": ""}]
    assert found(rows) == {"empty_answer": (2, ("train: row 3", "train: row 4"))}
    ends = found([*texts(2), {"prompt": "a", "completion": f" {PLAIN.eos_token}"}])
    assert set(ends) == {"empty_answer", "repeated_end"}
    talks = [
        talk("a", "b"),
        {"messages": [{"role": "user", "content": "nobody answers"}]},
        {"messages": [{"role": "assistant", "content": "nobody asked"}]},
    ]
    assert found(talks, chat_tokenizer())["no_assistant_turn"] == (2, ("train: row 2", "train: row 3"))
    unmarked = [talk("a", "b"), talk("c", "d", weight=0)]
    assert found(unmarked, chat_tokenizer()) == {"untrained_turns": (1, ("train: row 2",))}
    long_template = "{% for m in messages %}" + "word " * 20 + "{{ m['content'] }}<|im_end|>{% endfor %}"
    dropped = found([talk("a", "b"), talk("c " * 9, "d", "e")], chat_tokenizer(long_template), max_length=100)
    assert "no_room" not in dropped
    with pytest.raises(DataError, match=r"in any of 1 row at max_length=3: 1 × row dropped: max_length leaves no room"):
        load_data([talk("a", "b")], chat_tokenizer(), max_length=3, validation_fraction=0)


def test_a_cut_answer_is_a_problem_and_a_shortened_prompt_is_not():
    rows = [{"prompt": "long " * 30, "completion": "short"}, {"prompt": "short", "completion": "long " * 30}, *texts(2)]
    report = load_data(rows, PLAIN, max_length=20, validation_fraction=0).report
    kinds = {finding.kind: (finding.is_problem, finding.rows) for _, finding in report.findings}
    assert kinds == {"cut_answer": (True, (1,)), "cut_prompt": (False, (0,))}
    assert found([{"text": "long " * 50}, {"text": "a b"}], max_length=20)["cut_text"][0] == 1
    talks = [talk("long " * 30, "short"), talk("short", "long " * 30), talk("a", "b")]
    cut = found(talks, chat_tokenizer(), max_length=60)
    assert (cut["cut_turns"][1][0][:12], cut["cut_answer"][1][0][:12]) == ("train: row 1", "train: row 2")


def test_an_answer_without_an_end_token():
    no_end = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    no_end += "{% if add_generation_prompt %}assistant: {% endif %}"
    rows = [talk("a", "b"), talk("c", "d")]
    count, samples = found(rows, chat_tokenizer(no_end)).get("no_end_token", (0, ()))
    check = EncodingChecks("causal_lm", PLAIN, "chat")
    word = PLAIN("a")["input_ids"][0]
    end = PLAIN.eos_token_id
    assert check(EncodedExample([word, word, word], [False, True, True])) == [("no_end_token", "")]
    assert check(EncodedExample([word, word, end, word, word], [False, True, True, False, True])) == [
        ("no_end_token", "")
    ]
    assert check(EncodedExample([word, word, end], [False, True, True])) == []
    assert (count, samples) in [(2, ("train: row 1", "train: row 2")), (0, ())]  # 0: the encoder adds the end


def test_special_tokens_that_stand_twice():
    word, start, end = PLAIN("a")["input_ids"][0], PLAIN.bos_token_id, PLAIN.eos_token_id
    causal = EncodingChecks("causal_lm", PLAIN, "completion")
    twice = [("doubled_special_token", "<s>")]
    assert causal(EncodedExample([start, start, word, end], [False, False, True, True])) == twice
    kinds = [kind for kind, _ in causal(EncodedExample([word, word, end, end], [False, True, True, True]))]
    assert "doubled_special_token" in kinds
    assert causal(EncodedExample([start, word, word, end], [False, False, True, True])) == []
    classes = EncodingChecks("sequence_classification", PLAIN, "label")
    pair = [start, word, end, end, word, end]  # two texts, as RoBERTa reads them
    assert classes(EncodedExample(pair, [False] * 6, label=0)) == []
    answers = EncodingChecks("seq2seq_lm", PLAIN, "completion")
    doubled = EncodedExample([word], [False], answer=[word, end, end])
    assert "doubled_special_token" in [kind for kind, _ in answers(doubled)]


def test_copies_and_contradictions():
    rows = [*labels(20), {"text": "order 3", "label": "yes"}, {"text": "order 4", "label": "yes"}]
    assert found(rows) == {
        "contradiction": (2, ("train: row 5: 'no', and 'yes' in train: row 22",)),
        "duplicate": (1, ("train: row 21: as train: row 4",)),
    }
    answers = [*texts(20), {"prompt": "question 4", "completion": "another"}]
    assert found(answers) == {"other_answer": (2, ("train: row 5: another answer in train: row 21",))}
    assert found([*texts(20), *texts(20)])["many_duplicates"][0] == 20
    tagged = [{"tokens": ["a", str(n)], "tags": ["O", "X"]} for n in range(5)]
    report = load_data(
        [*tagged, {"tokens": ["a", "1"], "tags": ["X", "X"]}], PLAIN, task="token_classification", validation_fraction=0
    ).report
    assert [(finding.kind, finding.count) for _, finding in report.findings] == [("contradiction", 2)]


def test_what_follows_the_last_answer_of_a_conversation_does_not_count():
    rows = [talk(f"question {n}", f"answer {n}") for n in range(12)]
    for row in rows:
        row["messages"].append({"role": "user", "content": "thanks"})
    assert list(found(rows, chat_tokenizer())) == ["messages_after_last_turn"]
    same = [*rows[:11], talk("question 3", "answer 3")]
    assert found(same, chat_tokenizer())["duplicate"] == (1, ("train: row 12: as train: row 4",))


def test_a_prompt_that_another_split_has():
    in_test = found(labels(20), test=[{"text": "order 7", "label": "no"}, {"text": "new", "label": "no"}], split="test")
    assert in_test == {"in_train": (1, ("test: row 1: as train: row 8",))}


@pytest.mark.parametrize("text", ["order  café 7", " order\tcafé 7\n", "order cafe\u0301 7"])
def test_a_prompt_that_another_split_has_with_other_blanks(text):
    rows = [{"text": f"order café {n}", "label": "no" if n % 3 else "yes"} for n in range(20)]
    in_test = found(rows, test=[{"text": text, "label": "no"}], split="test")
    assert in_test == {"in_train": (1, ("test: row 1: as train: row 8",))}


def test_a_conversation_that_another_split_has_under_another_id():
    rows = [talk(f"question {n}", f"answer {n}", id=n) for n in range(20)]
    others = [
        {"messages": [{"role": "user", "content": "question  7", "id": 1}, {"role": "assistant", "content": "yes"}]}
    ]
    in_test = found(rows, chat_tokenizer(), test=others, split="test")
    assert in_test == {"in_train": (1, ("test: row 1: as train: row 8",))}


@pytest.mark.parametrize(
    "labels", [["-1", "0", "1"], ["none", "some"], ["null hypothesis", "other"], ["1", "2", "?"], ["v1", "v1.0"]]
)
def test_labels_that_read_like_missing_ones_and_are_not(labels):
    assert found([{"text": f"order {n}", "label": labels[n % len(labels)]} for n in range(24)]) == {}


SPELLINGS = [("no complaint", 9), ("nocomplaint", 2), ("yes", 9)]


@pytest.mark.parametrize(
    ("counts", "kind", "count", "first"),
    [
        ([("spam", 20), ("Spam", 3), ("ham", 20)], "similar_labels", 1, "train: row 21: 'Spam' beside 'spam'"),
        (SPELLINGS, "similar_labels", 1, "train: row 10: 'nocomplaint' beside 'no complaint'"),
        (
            [("spam", 20), ("spam\u200b", 3), ("ham", 20)],
            "similar_labels",
            1,
            "train: row 21: 'spam\\u200b' beside 'spam'",
        ),
        ([("1", 20), ("1.0", 3), ("2", 20)], "similar_labels", 1, "train: row 21: '1.0' beside '1'"),
        ([("spam", 20), ("ham", 20), ("nan", 3)], "missing_label", 3, "train: row 41: 'nan'"),
        ([("spam", 20), ("ham", 20), ("None", 3)], "missing_label", 3, "train: row 41: 'None'"),
        ([("0", 9), ("1", 9), ("2", 9), ("-1", 3)], "missing_label", 3, "train: row 28: '-1'"),
        ([("spam", 20), ("ham", 20), ("0", 4), ("1", 5)], "mixed_labels", 9, "train: row 41: '0'"),
        ([("spam", 20), ("ham", 20), ("label", 1)], "header_label", 1, "train: row 41: 'label'"),
        ([("spam", 20), ("ham", 20), ("eggs", 1)], "rare_label", 1, "train: row 41: 'eggs'"),
        ([("spam", 60), ("ham", 2)], "unbalanced_labels", 60, "train: row 1: 'spam'"),
        ([("spam", 12)], "one_label", 12, "train: row 1: 'spam'"),
        ([(f"text {n}", 1) for n in range(20)], "many_labels", 20, "train: row 1: 'text 0'"),
    ],
)
def test_suspicious_labels(counts, kind, count, first):
    kinds = found([{"text": f"{label} {n}", "label": label} for label, number in counts for n in range(number)])
    assert list(kinds) == [kind]
    assert (kinds[kind][0], kinds[kind][1][0]) == (count, first)


def test_answers_or_prompts_that_are_all_the_same():
    assert list(found([{"prompt": f"a {n}", "completion": "b"} for n in range(12)])) == ["same_answer"]
    same_prompt = found([{"prompt": "write", "completion": f"b {n}"} for n in range(12)])
    assert same_prompt["same_prompt"][0] == 12
    assert found([{"prompt": f"a {n}", "completion": "b"} for n in range(9)]) == {}


def test_an_example_far_longer_than_the_others():
    rows = [*texts(20), {"prompt": "word " * 600, "completion": "x"}]
    assert found(rows, max_length=64)["long_outlier"][0] == 1


def test_lengths_end_a_bin_at_the_maximum_length():
    lengths = LengthReport.of([3, 5, 100, 130, 900], limit=100)
    assert (lengths.median, lengths.longest) == (100, 900)
    assert sum(count for _, count in lengths.bins) == 5
    assert sum(count for end, count in lengths.bins if end > 100) == 2
    assert 100 in [end for end, _ in lengths.bins]
    assert "max_length 100 cuts 2 examples" in lengths.line()
    assert LengthReport.of([4, 4], None).bins[-1] == (4, 2)
    assert LengthReport.of([200, 300], limit=100).bins[-1][1] > 0


def test_lengths_have_no_bins_below_the_shortest_example():
    lengths = LengthReport.of([25, 26, 27, 27], limit=512)
    assert lengths.bins == ((25, 1), (26, 1), (27, 2))
    assert length_rows(lengths)[0][:2] == ("25", 1)


def test_the_lines_before_a_training_are_few():
    counts = [("spam", 60), ("Spam", 2), ("label", 1), ("rare", 1)]
    rows = [{"text": f"{label} {n}", "label": label} for label, number in counts for n in range(number)]
    rows.append({"text": "spam 1", "label": "Spam"})
    rows += [{"text": "spam 2", "label": "spam"}, {"text": "long " * 400, "label": "spam"}]
    report = load_data(rows, PLAIN, max_length=32, validation_fraction=0, test=rows[:2]).report
    lines = [line for line in report.lines() if line.startswith(("problem", "note", "and "))]
    assert len(report.findings) > 7
    assert len(lines) == 7
    assert lines[-1] == f"and {len(report.findings) - 6} other findings"
    assert [line.split(":")[0] for line in lines[:4]] == ["problem"] * 4
    assert report.has_problems


def test_a_report_lists_the_labels_up_to_a_number():
    rows = [{"text": f"{n} {i}", "label": f"label {n:02}"} for n in range(30) for i in range(3)]
    line = load_data(rows, PLAIN, validation_fraction=0).report.counts()[0]
    assert "label 11: 3, and 18 other labels" in line
    assert "label 12" not in line


def test_findings_are_json_values_with_the_first_examples():
    counter = FindingCounter(max_samples=2)
    for row in range(4):
        counter.add("cut_answer", row, "x")
    (finding,) = counter.findings(lambda row: f"file: line {row + 1}")
    assert (finding.count, finding.samples, finding.rows) == (4, ("file: line 1: x", "file: line 2: x"), (0, 1))
    assert finding.line() == f"4 × {FINDING_KINDS['cut_answer'].text} (first: file: line 1: x)"
    report = load_data([*texts(3), {"prompt": "a", "completion": ""}], PLAIN, validation_fraction=0).report
    content = json.loads(json.dumps(report.to_dict()))
    assert content["splits"]["train"]["findings"][0]["kind"] == "empty_answer"
    assert content["splits"]["train"]["lengths"]["longest"] > 0


def test_a_conversation_without_the_assistant_names_its_unknown_roles():
    talks = [talk("a", "b"), {"messages": [{"role": "user", "content": "a"}, {"role": "hero", "content": "b"}]}]
    assert found(talks, chat_tokenizer()) == {"no_assistant_turn": (1, ("train: row 2: unknown roles 'hero'",))}


def test_a_conversation_with_empty_answers_alone_is_counted_once():
    assert found([talk("a", "b"), talk("c", " ")], chat_tokenizer()) == {"empty_answer": (1, ("train: row 2",))}


def test_a_turn_that_ends_with_text_has_an_end():
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<END>\n{% endfor %}"
    tokenizer = chat_tokenizer(template + "{% if add_generation_prompt %}assistant:{% endif %}")
    talks = [talk(f"question {n}", f"answer {n}") for n in range(20)]
    assert found(talks, tokenizer) == {}
    counted = EncodingChecks("causal_lm", tokenizer, "chat")
    ids = [*tokenizer("assistant: fine", add_special_tokens=False)["input_ids"]]
    assert counted(EncodedExample(ids, [index > 2 for index in range(len(ids))])) == [("no_end_token", "")]

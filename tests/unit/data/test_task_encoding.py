"""Rows of classifiers and encoder-decoders: input tokens, targets, counts and refusals."""

import datasets
import pytest
from tiny_tasks import (
    ENCODER_DECODERS,
    ENCODERS,
    answer_rows,
    labelled_rows,
    pair_rows,
    tagged_rows,
    tiny_tokenizer,
    write_rows,
)

from peftly.data import DataConfig, Example, RowFormat, collate, encode_for, load_data, read, read_data
from peftly.data.task_encoding import encode_sources, encode_words
from peftly.errors import DataError

CLASSES, TAGS = "sequence_classification", "token_classification"


def loaded(tmp_path, rows, task, architecture="bert", test=None, **settings):
    if test is not None:
        settings["test"] = str(write_rows(tmp_path / "test.jsonl", test))
    config = DataConfig(train=str(write_rows(tmp_path / "rows.jsonl", rows)), **settings)
    return load_data(config, tiny_tokenizer(architecture), task=task)


def tokens(tokenizer, ids):
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("architecture", [*ENCODERS, "llama"])
def test_a_classifier_reads_the_text_alone(architecture, tmp_path):
    tokenizer = tiny_tokenizer(architecture)
    data = loaded(tmp_path, labelled_rows(), CLASSES, architecture)
    assert data.row_format == RowFormat("label", "{text}", "label", ("complaint", "no complaint"))
    assert data.report.splits["train"].labels == {"complaint": 18, "no complaint": 18}
    for example, encoded in zip(data.train.examples, data.train.encoded, strict=True):
        assert encoded.input_ids == tokenizer(example.prompt)["input_ids"]
        assert encoded.targets == [data.row_format.labels.index(example.label)]
        assert (encoded.num_targets, encoded.num_tokens) == (1, len(encoded.input_ids))
    assert "trained" not in data.report.lines()[0]


def test_a_template_stands_around_the_text(tmp_path):
    data = loaded(tmp_path, labelled_rows(), CLASSES, template="Tweet : {text} .", target="label")
    assert data.train.examples[0].prompt.startswith("Tweet : ")
    assert data.row_format.kind == "label"


@pytest.mark.parametrize("architecture", ["bert", "roberta", "distilbert"])
def test_two_texts_are_a_pair(architecture, tmp_path):
    tokenizer = tiny_tokenizer(architecture)
    data = loaded(tmp_path, pair_rows(), CLASSES, architecture)
    assert data.row_format.pair == "hypothesis"
    example, encoded = data.train.examples[0], data.train.encoded[0]
    expected = tokenizer(example.prompt, example.pair)
    assert encoded.input_ids == expected["input_ids"]
    assert encoded.token_type_ids == expected.get("token_type_ids")
    assert (encoded.token_type_ids is not None) == (architecture == "bert")
    if architecture == "bert":
        batch = collate(data.train.encoded[:4], pad_id=0)
        assert batch["token_type_ids"].shape == batch["input_ids"].shape
        assert set(batch["token_type_ids"].flatten().tolist()) == {0, 1}
    assert "hypothesis" not in " ".join(data.report.notes[1:])  # it is used


def test_two_texts_without_a_separator_are_on_two_lines(tmp_path):
    data = loaded(tmp_path, pair_rows(), CLASSES, "llama")
    tokenizer, example = tiny_tokenizer("llama"), data.train.examples[0]
    assert data.train.encoded[0].input_ids == tokenizer(f"{example.prompt}\n{example.pair}")["input_ids"]


def test_sentence_pairs_and_single_sentences_are_detected(tmp_path):
    rows = [{"sentence1": row["premise"], "sentence2": row["hypothesis"], "label": row["label"]} for row in pair_rows()]
    assert loaded(tmp_path, rows, CLASSES).row_format.pair == "sentence2"
    rows = [{"sentence": row["text"], "label": 1 if "no" in row["label"] else 0} for row in labelled_rows()]
    assert loaded(tmp_path, rows, CLASSES).row_format == RowFormat("label", "{sentence}", "label", ("0", "1"))


def test_overlaps_compare_both_texts(tmp_path):
    one, two = {"premise": "a", "hypothesis": "b"}, {"premise": "a", "hypothesis": "c"}
    train = [{**row, "label": label} for row in (one, one) for label in ("yes", "no")]
    report = loaded(tmp_path, train, CLASSES, test=[{**two, "label": "yes"}], validation_fraction=0.0).report
    assert "in_train" not in [finding.kind for _, finding in report.findings]
    report = loaded(tmp_path, train, CLASSES, test=[{**one, "label": "yes"}], validation_fraction=0.0).report
    assert [finding.count for _, finding in report.findings if finding.kind == "in_train"] == [1]


@pytest.mark.parametrize("architecture", [*ENCODERS, "llama", "t5"])
def test_the_first_piece_of_each_word_carries_its_tag(architecture, tmp_path):
    data = loaded(tmp_path, tagged_rows(), TAGS, architecture)
    tokenizer = tiny_tokenizer(architecture)
    assert data.row_format.labels == ("B-LOC", "B-PER", "I-PER", "O")
    for example, encoded in zip(data.train.examples, data.train.encoded, strict=True):
        assert len(encoded.targets) == len(encoded.input_ids)
        tagged = [tag for tag in encoded.targets if tag != -100]
        assert [data.row_format.labels[tag] for tag in tagged] == list(example.tags)
        assert encoded.num_targets == len(example.tags)
        # The tokens are those of the running text, and each tag is at the first token of its word.
        assert encoded.input_ids == tokenizer(" ".join(example.words))["input_ids"]
        starts = [at for at, tag in enumerate(encoded.targets) if tag != -100]
        ends = [*starts[1:], len(encoded.targets) - (architecture != "llama")]
        pieces = [tokenizer.decode(encoded.input_ids[a:b]).strip() for a, b in zip(starts, ends, strict=True)]
        assert [p.lower() for p in pieces] == [word.lower() for word in example.words]


def test_tags_may_be_numbers_and_fields_have_other_names(tmp_path):
    rows = [{"tokens": ["Ada", "was", "in", "London"], "ner_tags": [1, 0, 0, 2]} for _ in range(10)]
    data = loaded(tmp_path, rows, TAGS)
    assert (data.row_format.target, data.row_format.labels) == ("ner_tags", ("0", "1", "2"))
    rows = [{"tokens": row["tokens"], "pos": ["x" if tag else "y" for tag in row["ner_tags"]]} for row in rows]
    assert loaded(tmp_path, rows, TAGS, target="pos").row_format.labels == ("x", "y")


@pytest.mark.parametrize("parquet", [False, True])
def test_class_numbers_in_lists_get_their_names(tmp_path, parquet):
    features = datasets.Features(
        {
            "tokens": datasets.Sequence(datasets.Value("string")),
            "ner_tags": datasets.Sequence(datasets.ClassLabel(names=["O", "B-PER"])),
        }
    )
    rows = datasets.Dataset.from_dict({"tokens": [["Ada", "was"]], "ner_tags": [[1, 0]]}, features=features)
    path = tmp_path / ("rows.parquet" if parquet else "rows")
    rows.to_parquet(path) if parquet else rows.save_to_disk(path)
    assert read(str(path))[""].rows == [{"tokens": ["Ada", "was"], "ner_tags": ["B-PER", "O"]}]


@pytest.mark.parametrize("architecture", ENCODER_DECODERS)
def test_an_encoder_decoder_reads_the_prompt_and_generates_the_answer(architecture, tmp_path):
    tokenizer = tiny_tokenizer(architecture)
    data = loaded(tmp_path, answer_rows(), "seq2seq_lm", architecture)
    for example, encoded in zip(data.train.examples, data.train.encoded, strict=True):
        assert encoded.input_ids == tokenizer(example.prompt)["input_ids"]
        assert encoded.answer == tokenizer(example.completion.strip())["input_ids"]
        assert encoded.answer[-1] == tokenizer.eos_token_id
        assert encoded.targets == encoded.answer
        assert encoded.num_tokens == len(encoded.input_ids) + len(encoded.answer)
    batch = collate(data.train.encoded[:3], pad_id=0)
    assert batch["labels"].shape[1] == max(len(row.answer) for row in data.train.encoded[:3])
    assert "of them trained" in data.report.lines()[0]


def test_an_end_token_is_added_if_the_tokenizer_adds_none(tmp_path):
    data = loaded(tmp_path, answer_rows(), "seq2seq_lm", "gpt2")
    assert all(encoded.answer[-1] == 2 for encoded in data.train.encoded)


def test_labels_and_instructions_go_through_the_same_templates(tmp_path):
    labels = loaded(tmp_path, labelled_rows(), "seq2seq_lm", "t5")
    assert labels.row_format.template == "{text}\nLabel:"
    assert labels.train.examples[0].prompt.endswith("Label:")
    rows = [{"instruction": f"say {n}", "input": "", "output": "yes"} for n in range(10)]
    assert loaded(tmp_path, rows, "seq2seq_lm", "t5").train.examples[0].prompt.startswith("Instruction: say")


def test_long_texts_are_truncated_and_counted(tmp_path):
    long = [{"text": "late again " * 20 + str(number % 2), "label": str(number % 2)} for number in range(8)]
    data = loaded(tmp_path, long, CLASSES, max_length=9, validation_fraction=0.0)
    tokenizer, report = tiny_tokenizer("bert"), data.report.splits["train"]
    assert (report.truncated, report.dropped) == (8, 0)
    whole = sum(len(tokenizer(row["text"])["input_ids"]) for row in long)
    assert (report.tokens, report.tokens_cut) == (9 * 8, whole - 9 * 8)
    assert all(tokens(tokenizer, encoded.input_ids)[-1] == "[SEP]" for encoded in data.train.encoded)
    tags = [{"tokens": ["late"] * 20, "tags": ["x", "y"] * 10} for _ in range(4)]
    data = loaded(tmp_path, tags, TAGS, max_length=9, validation_fraction=0.0)
    assert data.report.splits["train"].truncated == 4
    assert data.report.splits["train"].trained_tokens == 4 * 7
    pairs = [{"premise": "late " * 20, "hypothesis": "great " * 3, "label": str(n % 2)} for n in range(4)]
    for encoded in loaded(tmp_path, pairs, CLASSES, max_length=12).train.encoded:
        assert len(encoded.input_ids) == 12
        assert tokens(tokenizer, encoded.input_ids).count("great") == 3, "the longer text is cut"
    answers = [{"prompt": "say it", "completion": "love " * 20}] * 4
    data = loaded(tmp_path, answers, "seq2seq_lm", "t5", max_length=10, validation_fraction=0.0)
    assert all(len(encoded.answer) == 10 and encoded.num_truncated > 0 for encoded in data.train.encoded)
    assert all(encoded.answer[-1] != 2 for encoded in data.train.encoded), "a truncated answer has no end token"


def test_the_text_of_a_template_survives_truncation():
    row_format = RowFormat("label", "Tweet text : {text} Label :", "label", ("a", "b"))
    example = row_format.examples([{"text": "late again never arrived " * 9, "label": "a"}])[0]
    encoded = encode_sources([example], tiny_tokenizer("bert"), 14)[0]
    text = tiny_tokenizer("bert").decode(encoded.input_ids)
    assert len(encoded.input_ids) <= 14
    assert text.startswith("[CLS] tweet text : late")
    assert text.endswith("label : [SEP]")
    assert encoded.num_truncated > 0


@pytest.mark.parametrize(
    ("task", "rows", "message"),
    [
        (TAGS, [{"tokens": ["a", "b"], "tags": ["x"]}], r"line 1: 'tokens' has 2 words and 'tags' 1 tags"),
        (TAGS, [{"tokens": ["a", 3], "tags": ["x", "y"]}], r"line 1: field 'tokens' holds a number among its words"),
        (TAGS, [{"tokens": "a b", "tags": ["x", "y"]}], r"line 1: field 'tokens' holds a text where a list is needed"),
        (TAGS, [{"tokens": ["a"], "tags": [None]}], r"line 1: field 'tags' holds null where a label"),
        (TAGS, [{"tokens": ["a"], "tags": ["x"]}], r"'tags' is 'x' in every row with a label; a classifier needs"),
        (
            TAGS,
            [{"text": "a", "label": "x"}],
            r"'text', 'label', which is none of the row formats known for token_class",
        ),
        (CLASSES, [{"text": "a", "label": "x"}], r"'label' is 'x' in every row with a label"),
        (CLASSES, [{"prompt": "a", "completion": "x"}], r"none of the row formats known for sequence_classification"),
        ("seq2seq_lm", [{"text": "a"}], r"none of the row formats known for seq2seq_lm"),
        ("seq2seq_lm", [{"prompt": "a", "completion": " "}], r"no trained token is left"),
    ],
)
def test_unusable_rows_are_refused(task, rows, message, tmp_path):
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, rows, task, validation_fraction=0.0)


@pytest.mark.parametrize(
    ("task", "rows", "test", "message"),
    [
        (
            CLASSES,
            labelled_rows(),
            [{"text": "a", "label": "praise"}],
            r"test.jsonl: line 1: label 'praise' is in none",
        ),
        (TAGS, tagged_rows(), [{"tokens": ["a"], "tags": ["B-ORG"]}], r"test.jsonl: line 1: tag 'B-ORG' is in none"),
    ],
)
def test_a_label_never_seen_is_refused(task, rows, test, message, tmp_path):
    with pytest.raises(DataError, match=message):
        loaded(tmp_path, rows, task, test=test)


def test_other_refusals(tmp_path):
    with pytest.raises(DataError, match="reads the words as they are"):
        loaded(tmp_path, tagged_rows(), TAGS, template="{tokens}")
    with pytest.raises(DataError, match="max_length=3 has no room for text besides 3 special tokens"):
        loaded(tmp_path, pair_rows(), CLASSES, max_length=3)
    rows = [{"text": "a", "label": label} for label in ("☃", "☄")] * 5
    with pytest.raises(DataError, match="the same tokens of the labels"):
        loaded(tmp_path, rows, "seq2seq_lm", "t5")


def test_a_text_without_a_token_is_dropped(tmp_path):
    rows = [*labelled_rows(), {"text": "", "label": "complaint"}]
    report = loaded(tmp_path, rows, CLASSES, "llama", validation_fraction=0.0).report
    assert report.splits["train"].dropped == 1
    assert "line 41" in report.lines()[0]


@pytest.mark.parametrize(
    ("rows", "kind"),
    [
        (labelled_rows(), "labels"),
        (pair_rows(), "labels"),
        (tagged_rows(), "tags"),
        (answer_rows(), "texts"),
        ([{"text": "a"}], "texts"),
        ([{"messages": []}], "texts"),
    ],
)
def test_the_target_kind(rows, kind, tmp_path):
    assert read_data(DataConfig(train=str(write_rows(tmp_path / "rows.jsonl", rows)))).target_kind() == kind


def test_the_target_kind_by_template_and_target(tmp_path):
    rows = [{"body": f"text {n}", "kind": n % 2, "note": f"note {n}", "pos": ["x"]} for n in range(40)]
    file = str(write_rows(tmp_path / "rows.jsonl", rows))
    assert read_data(DataConfig(train=file, template="{body}", target="kind")).target_kind() == "labels"
    assert read_data(DataConfig(train=file, template="{body}", target="note")).target_kind() == "texts"
    assert read_data(DataConfig(train=file, target="pos")).target_kind() == "tags"


def test_a_pair_at_inference_is_formatted_as_in_training():
    row_format = RowFormat("label", "{premise}", "label", ("a", "b"), pair="hypothesis")
    row = {"premise": "one", "hypothesis": "two", "label": "a"}
    trained = row_format.examples([row])[0]
    for prompt in (row_format.format_prompt(row), row_format.format_prompt("one", "two")):
        assert (prompt.prompt, prompt.pair) == (trained.prompt, trained.pair)
    with pytest.raises(DataError, match="give the second, 'hypothesis'"):
        row_format.format_prompt("one")
    with pytest.raises(DataError, match="one text at a time"):
        RowFormat("label", "{text}", "label", ("a", "b")).format_prompt("one", "two")
    assert RowFormat("tags", "{tokens}", "tags", ("a", "b")).format_prompt("one  two").words == ("one", "two")


def test_a_row_format_with_two_texts_can_be_stored():
    row_format = RowFormat("label", "{premise}", "label", ("a", "b"), pair="hypothesis")
    assert RowFormat.from_dict(row_format.to_dict()) == row_format
    old = {"kind": "text", "template": None, "target": "text", "labels": []}
    expected = RowFormat("text", None, "text", add_space=True)
    assert RowFormat.from_dict(old) == expected, "version 0.1.0 wrote no pair, and always added spaces"


def test_words_need_a_fast_tokenizer():
    class Slow:
        is_fast = False

    with pytest.raises(DataError, match="needs a fast tokenizer"):
        encode_words([["a"]], Slow())


def test_causal_rows_are_encoded_as_before():
    tokenizer = tiny_tokenizer("llama")
    row_format = RowFormat("label", "{text}\nLabel:", "label", ("a", "b"))
    example = row_format.examples([{"text": "late", "label": "a"}])[0]
    encoded = encode_for("causal_lm", [example], tokenizer, row_format, 50)[0]
    assert encoded.num_targets == sum(encoded.trained)
    assert encoded.targets == [t if on else -100 for t, on in zip(encoded.input_ids, encoded.trained, strict=True)]
    assert Example("a").pair is None

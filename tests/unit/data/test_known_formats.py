"""Row formats that are detected by the names of the fields: names as data sets on the Hub spell them."""

from pathlib import Path

import pytest

from peftly.data import RowFormat, Rows
from peftly.data.detect import detect_format, detect_target_kind
from peftly.data.inputs import read_escapes, template_option
from peftly.data.known_formats import FORMATS, KnownFormat
from peftly.errors import DataError

PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"
LABEL = {"label": 1, "idx": 7}


def rows_of(*examples: dict, count: int = 8, name: str = "t.jsonl") -> Rows:
    """Return rows with a number in every text, so that texts differ."""
    table = []
    for number in range(count):
        row = dict(examples[number % len(examples)])
        table.append({k: f"{v} no {number}" if isinstance(v, str) and " " in v else v for k, v in row.items()})
    return Rows(name, table)


def read(rows: Rows, task: str = "causal_lm", **options: str | None) -> tuple[RowFormat, list[str]]:
    return detect_format(rows, options.get("template"), options.get("target"), task)


def refusal(rows: Rows, task: str = "causal_lm", **options: str | None) -> str:
    with pytest.raises(DataError) as caught:
        read(rows, task, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the table


def line(known: KnownFormat) -> str:
    inputs = " + ".join(f"`{name}`" for name in known.inputs) or "–"
    targets = ", ".join(f"`{name}`" for name in known.targets)
    prompt = "–" if known.template is None else "`" + known.template.replace("\n", "\\n") + "`"
    pair = "" if known.pair is None else f", the pair `{{{known.pair}}}`"
    return f"| {inputs} | {targets} | {prompt}{pair} |"


def test_the_page_has_the_table():
    page = PAGE.read_text(encoding="utf-8").split("## Fields")[1].split("## Labels")[0]
    shown = [text for text in page.splitlines() if text.startswith(("| `", "| –"))]
    tasks = ("causal_lm", "sequence_classification", "token_classification")
    assert shown == [line(known) for task in tasks for known in FORMATS[task]]


@pytest.mark.parametrize("task", FORMATS)
def test_every_row_of_the_table_is_detected(task):
    for known in FORMATS[task]:
        for target in known.targets:
            value = {"tags": ["x", "y"], "label": "x"}.get(known.kind, "some words")
            words = ["a", "b"] if known.kind == "tags" else "some text"
            row = {**dict.fromkeys(known.inputs, words), target: value}
            other = {**row, target: ["y", "y"] if known.kind == "tags" else "y" if known.kind == "label" else value}
            rows = Rows("t", [row, other])
            if target == "chosen":
                continue
            row_format, notes = detect_format(rows, None, None, task)
            assert (row_format.target, row_format.pair) == (target, known.pair), notes
            assert (row_format.template, row_format.kind) == (known.template, known.kind)
            assert len(notes) == 1, notes


# --- sentence pairs and contexts, as in GLUE, SuperGLUE, SQuAD and Dolly

PAIRS = [
    ({"premise": "a b", "hypothesis": "c d", **LABEL}, "{premise}", "hypothesis"),
    ({"sentence1": "a b", "sentence2": "c d", **LABEL}, "{sentence1}", "sentence2"),
    ({"question1": "a b", "question2": "c d", **LABEL}, "{question1}", "question2"),
    ({"question": "a b", "sentence": "c d", **LABEL}, "{question}", "sentence"),
    ({"question": "a b", "passage": "c d", **LABEL}, "{question}", "passage"),
]


@pytest.mark.parametrize(("row", "template", "pair"), PAIRS)
def test_both_texts_of_a_pair_are_read(row, template, pair):
    rows = rows_of(row, {**row, "label": 0})
    assert detect_target_kind(rows, None, None) == "labels"
    row_format, notes = read(rows, "sequence_classification")
    assert (row_format.template, row_format.pair, row_format.labels) == (template, pair, ("0", "1"))
    assert notes[1:] == ["fields not used: 'idx'"]
    for task in ("causal_lm", "seq2seq_lm"):
        prompt = read(rows, task)[0].examples(rows.rows)[0].prompt
        assert prompt.endswith("\nLabel:")
        assert "a b no 0" in prompt
        assert "c d no 0" in prompt


def test_boolq():
    row = {"question": "is it", "passage": "it is", "answer": True}
    rows = rows_of(row, {**row, "answer": False})
    assert detect_target_kind(rows, None, None) == "labels"
    row_format, _ = read(rows, "sequence_classification")
    assert (row_format.pair, row_format.labels) == ("passage", ("False", "True"))
    example = read(rows)[0].examples(rows.rows)[0]
    assert example.prompt == "Passage: it is no 0\nQuestion: is it no 0\nAnswer:"
    assert (example.completion, example.label) == (" True", "True")


def test_yes_and_no_behind_a_prompt_are_learned_as_they_are_written():
    rows = Rows("t", [{"prompt": f"Is it {n}?\n", "completion": "no" if n % 2 else "yes"} for n in range(4)])
    row_format, _ = read(rows)
    examples = row_format.examples(rows.rows)
    assert [(example.prompt, example.completion, example.label) for example in examples[:2]] == [
        ("Is it 0?\n", "yes", None),
        ("Is it 1?\n", "no", None),
    ]
    booleans = Rows("t", [{"prompt": f"Is it {n}?", "completion": n % 2 == 0} for n in range(4)])
    assert read(booleans)[0].labels == ("False", "True")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"answers": {"text": ["on the hill", "a hill"], "answer_start": [3, 9]}}, "on the hill"),
        ({"answers": {"text": [], "answer_start": []}}, ""),
        ({"answers": ["first one", "second one"]}, "first one"),
        ({"answer": "on the hill"}, "on the hill"),
        ({"answer": 7}, "7"),
    ],
)
def test_squad(answers, expected):
    rows = Rows("t", [{"id": "x1", "title": "Hills", "context": "It stands.", "question": "Where?", **answers}] * 2)
    row_format, notes = read(rows)
    example = row_format.examples(rows.rows)[0]
    assert example.prompt == "Context: It stands.\nQuestion: Where?\nAnswer:"
    assert example.completion.strip() == expected
    assert notes[1:] == ["fields not used: 'id', 'title'"]


def test_lists_are_tags_or_answers():
    tagged = Rows("t", [{"tokens": ["a"], "tags": ["x"]}, {"tokens": ["b"], "tags": ["y"]}])
    assert [detect_target_kind(tagged, template, "tags") for template in (None, "{tokens}")] == ["tags", "tags"]
    answers = Rows("t", [{"question": "a b", "answers": ["c d"]}] * 2)
    assert detect_target_kind(answers, "{question}", "answers") == "texts"
    talks = Rows("t", [{"talk": [{"role": "user", "content": "a"}]}])
    assert detect_target_kind(talks, None, "talk") == "texts"


def test_dolly_uses_its_context_where_there_is_one():
    row = {"instruction": "say it", "context": "", "response": "done now", "category": "qa"}
    rows = Rows("t", [row, {**row, "context": "a text"}])
    row_format, notes = read(rows)
    assert [example.prompt for example in row_format.examples(rows.rows)] == [
        "Instruction: say it\nAnswer:",
        "Instruction: say it\nContext: a text\nAnswer:",
    ]
    assert notes[1:] == ["fields not used: 'category'"]


# --- fields that are left over


def test_a_text_that_is_not_used_comes_with_the_options_that_use_it():
    rows = rows_of({"text": "a b", "label": "x", "headline": "c d"}, {"text": "a b", "label": "y", "headline": "e f"})
    assert read(rows)[1][-1] == (
        "fields not used: 'headline'; to read it: --template '{headline}\\n{text}\\nLabel:' --target label"
    )
    pair = rows_of({"premise": "a b", "hypothesis": "c d", "label": "x", "genre note": "c d"})
    pair = Rows("t", [*pair.rows, {**pair.rows[0], "label": "y"}])
    assert read(pair, "sequence_classification")[1][-1].endswith(
        "to read it: --template '{genre note}\\n{premise}\\n{hypothesis}' --target label"
    )


@pytest.mark.parametrize(
    "extra",
    [
        {"category": "sports"},
        {"source": "Open Orca"},
        {"idx": "1 2"},
        {"score": 0.5},
        {"prompt and answer": "Label: a b"},
    ],
)
def test_other_fields_come_without_options(extra):
    rows = [{"prompt": f"q {n}", "completion": f"a b {n}", **extra} for n in range(8)]
    if "prompt and answer" in extra:
        rows = [{**row, "prompt and answer": f"{row['prompt']} {row['completion']}"} for row in rows]
    assert read(Rows("t", rows))[1][-1] == f"fields not used: {next(iter(extra))!r}"


def test_unknown_fields_are_refused_with_the_options_to_type():
    rows = rows_of({"Tweet text": "a b", "ID": 3, "Label": "x"}, {"Tweet text": "a b", "ID": 4, "Label": "y"})
    message = refusal(rows)
    with pytest.raises(DataError, match=r"--template '\{Tweet text\}\\nAnswer:' --target Label$"):
        detect_target_kind(rows, None, None)
    assert message.endswith("give a template and a target, such as --template '{Tweet text}\\nAnswer:' --target Label")
    assert len(message) < 400
    assert refusal(rows_of({"review": "a b", "sentiment": "up"})).endswith(
        "--template '{review}\\nAnswer:' --target sentiment"
    )
    assert refusal(Rows("t", [{"a": 1}]), "sequence_classification").count(";") == 4


@pytest.mark.parametrize("text", ["{a}\nLabel:", "a\tb {x}", "C:\\new {x}", "it's {x}", "{x}\\n"])
def test_options_are_read_as_they_are_shown(text):
    import shlex

    _, typed, _, target = shlex.split(template_option(text, "the label"))
    assert (read_escapes(typed), target) == (text, "the label")
    assert "\n" not in template_option(text)


# --- a target without a template


def test_a_target_alone_uses_the_known_inputs():
    rows = rows_of(
        {"premise": "a b", "hypothesis": "c d", "gold": "x"}, {"premise": "a b", "hypothesis": "c d", "gold": "y"}
    )
    row_format, _ = read(rows, "sequence_classification", target="gold")
    assert (row_format.template, row_format.pair, row_format.target) == ("{premise}", "hypothesis", "gold")
    assert "{hypothesis}" in read(rows, target="gold")[0].template


def test_a_target_alone_uses_the_only_text():
    rows = rows_of({"body": "a b", "id": "7", "mood": "up"}, {"body": "a b", "id": "8", "mood": "down"}, count=40)
    assert read(rows, target="mood")[0].template == "{body}\nLabel:"
    assert read(rows, "sequence_classification", target="mood")[0].template == "{body}"


def test_many_classes_are_labels_if_they_are_asked_for():
    rows = [{"text": f"help {n}", "category": f"class {n % 77}"} for n in range(3 * 77)]
    assert detect_target_kind(Rows("t", rows), None, "category") == "labels"
    assert len(read(Rows("t", rows), "sequence_classification", target="category")[0].labels) == 77
    distinct = [{"text": f"help {n}", "category": f"free text {n}"} for n in range(60)]
    assert detect_target_kind(Rows("t", distinct), None, "category") == "texts"


# --- preferences


def test_the_chosen_answers_are_learned():
    rows = Rows("t", [{"prompt": "say a", "chosen": "good one", "rejected": "bad one"}] * 2)
    row_format, notes = read(rows)
    assert row_format.examples(rows.rows)[0].completion.strip() == "good one"
    assert "'rejected' is not used: the chosen answers are learned, and no preferences (DPO)" in notes


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "a b", "rejected": "c d"},
        {
            "prompt": [{"role": "user", "content": "a"}],
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [],
        },
        {"conversations": [], "chosen": {"from": "gpt", "value": "b"}, "rejected": {"from": "gpt", "value": "c"}},
    ],
)
def test_other_preferences_are_refused(row):
    assert "preference training (DPO) is not supported" in refusal(Rows("t", [row]))
    if isinstance(row["chosen"], list):
        assert refusal(Rows("t", [row])).endswith("to learn the chosen answers, give --target chosen")
        row_format, _ = read(Rows("t", [row]), target="chosen")
        assert [m["content"] for m in row_format.examples([row])[0].messages] == ["a", "b"]
    if "conversations" not in row and "prompt" not in row:
        with pytest.raises(DataError, match=r"preference training \(DPO\) is not supported"):
            detect_target_kind(Rows("t", [row]), None, None)


def test_messages_of_preference_data_are_read():
    row = {"messages": [], "prompt": "a", "chosen": [], "rejected": []}
    assert read(Rows("t", [row]))[0].kind == "chat"


def test_rows_without_fields_are_refused():
    with pytest.raises(DataError, match=r"train: the rows have no fields$"):
        detect_format(Rows("train", [{}, {}]), None, None)

import json

import pytest
from data_tokenizers import family
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import Example, RowFormat, Rows, Template, encode_prompt
from peftly.data.detect import recognise
from peftly.data.encoding import prompt_ids_of_row
from peftly.data.templates import ALPACA, spaced
from peftly.errors import DataError

anything = st.text(st.sampled_from("ab {}\n(7.中\t"), max_size=8)
quick = settings(deadline=None, max_examples=60)

# --- the template language


@given(anything, anything)
@quick
def test_a_rows_own_text_goes_in_as_it_is(first, second):
    rendered = Template("{{{a}}} and {the b.c}!").render({"a": first, "the b.c": second})
    assert rendered.text == "{" + first + "} and " + second + "!"
    assert [rendered.text[start:end] for start, end in rendered.spans] == [first, second]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a { b", "template 'a { b' has a lone '{' at character 3; write {field} for a field or '{{' for a brace"),
        ("a } b", "template 'a } b' has a lone '}' at character 3; write {field} for a field or '}}' for a brace"),
        ("{}", "template '{}' has a lone '{' at character 1; write {field} for a field or '{{' for a brace"),
    ],
)
def test_lone_braces(text, message):
    with pytest.raises(DataError) as caught:
        Template(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["txt", "text.upper", "text[0]", "text!r", "0"])
def test_a_field_that_the_rows_do_not_have(name):
    with pytest.raises(DataError) as caught:
        Template(f"{{{name}}}").check(["text", "label"])
    assert str(caught.value) == f"template '{{{name}}}' names the field '{name}'; the rows have 'text', 'label'"


def test_a_template_without_a_field():
    with pytest.raises(DataError, match="names no field"):
        Template("Label:").check(["text"])


# --- the space before a word


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("Label:", "yes", ("Label:", " yes")),
        ("Label:", "7", ("Label:", " 7")),
        ("Label: ", "yes", ("Label:", " yes")),
        ("Label:", " yes", ("Label:", " yes")),
        ("Label:\n", "yes", ("Label:\n", "yes")),
        ("Label:\t", "yes", ("Label:\t", "yes")),
        ("def f():\n    ", "return 1", ("def f():\n", "    return 1")),
        ("f(", "x)", ("f(", "x)")),
        ("Label", ", yes", ("Label", ", yes")),
        ("标签：", "投诉", ("标签：", "投诉")),
        ("", "yes", ("", "yes")),
        ("   ", "yes", ("", "   yes")),
        ("Label:", "", ("Label:", "")),
    ],
)
def test_where_the_space_goes(prompt, completion, expected):
    assert spaced(prompt, completion) == expected


@given(anything, anything)
@quick
def test_spacing_adds_one_space_at_most_and_is_done_once(prompt, completion):
    once = spaced(prompt, completion)
    assert spaced(*once) == once
    assert not once[0].endswith(" ")
    assert "".join(once) in (prompt + completion, prompt + " " + completion)


# --- shapes

ROW = {"text": "late {again} ", "instruction": "Say it", "input": "", "label": "no", "output": "yes", "prompt": "Why? "}
SHAPES = [
    RowFormat("label", "{text}\nLabel:", "label", ("no", "yes")),
    RowFormat("label", "Label {text}", "label", ("no", "yes")),
    RowFormat("label", "{text} is\n", "label", ("no", "yes")),
    RowFormat("completion", "{prompt}", "output"),
    RowFormat("completion", "Q: {prompt}{text}", "output"),
    RowFormat("alpaca", ALPACA, "output"),
    RowFormat("chat", None, "messages"),
    RowFormat("text", None, "text"),
]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_survives_json(shape):
    assert RowFormat.from_dict(json.loads(json.dumps(shape.to_dict()))) == shape


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "label", "template": "{a}", "target": "b"},
        {"kind": "poem", "template": "{a}", "target": "b", "labels": []},
        {"kind": "chat", "template": "{a}", "target": "b", "labels": []},
        {"kind": "label", "template": None, "target": "b", "labels": []},
    ],
)
def test_a_stored_shape_that_is_none(content):
    with pytest.raises(DataError):
        RowFormat.from_dict(content)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.template])
def test_a_prompt_at_use_is_the_one_in_training(shape):
    example = shape.examples([ROW])[0]
    without_target = {name: value for name, value in ROW.items() if name != shape.target}
    assert shape.prompt(without_target) == example.prompt
    assert not example.prompt.endswith(" ")
    tokenizer = family("byte_level")
    assert prompt_ids_of_row(shape, without_target, tokenizer) == encode_prompt(example.prompt, tokenizer)
    if len(Template(shape.template).fields) == 1:
        assert shape.prompt(ROW[Template(shape.template).fields[0]]) == example.prompt


def test_a_bare_text_and_where_it_goes():
    assert RowFormat("text", None, "text").prompt("Once upon ") == "Once upon"
    assert RowFormat("alpaca", ALPACA, "output").prompt("Say it") == "Instruction: Say it\nAnswer:"
    two = RowFormat("completion", "{a} {b}", "c")
    with pytest.raises(DataError, match="one bare text cannot fill the fields 'a', 'b'; give each of them by name"):
        two.prompt("x")
    with pytest.raises(DataError, match=r"^the prompt has no field 'b'; it has 'a'$"):
        two.prompt({"a": "x"})


def test_instructions_with_and_without_input():
    shape = RowFormat("alpaca", ALPACA, "output")
    rows = [{"instruction": "Say it", "input": value, "output": "yes"} for value in ("hello", "", None)]
    rows.append({"instruction": "Say it", "output": "yes"})
    prompts = [example.prompt for example in shape.examples(rows)]
    assert prompts == ["Instruction: Say it\nInput: hello\nAnswer:"] + ["Instruction: Say it\nAnswer:"] * 3


@given(anything, st.sampled_from(["{text}\nLabel:", "{text}", "{text} ", "{text} \n", "{{ {text} (", "{text}:  "]))
@quick
def test_a_label_follows_every_row_alike(text, template):
    shape = RowFormat("label", template, "label", ("no", "yes"))
    example = shape.examples([{"text": text, "label": "no"}])[0]
    assert example.completion == shape.completion("no")
    assert spaced(example.prompt, example.completion) == (example.prompt, example.completion)
    assert example.completion.strip() == example.label == "no"


@pytest.mark.parametrize("text", ["late", "late \n", "late   "])
def test_the_end_of_a_rows_text_does_not_come_between_it_and_its_label(text):
    example = RowFormat("label", "{text}", "label").examples([{"text": text, "label": "no"}])[0]
    assert (example.prompt, example.completion) == ("late", " no")
    code = RowFormat("completion", "{text}", "label").examples([{"text": "late \n  ", "label": "no"}])[0]
    assert (code.prompt, code.completion) == ("late \n", "  no")


@pytest.mark.parametrize(("value", "label"), [("yes ", "yes"), (1, "1"), (0, "0"), (2.0, "2"), (True, "True")])
def test_what_may_be_a_label(value, label):
    assert RowFormat("label", "{text}", "label").examples([{"text": "", "label": value}])[0].label == label


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": "no"}, "row 2 has no field 'text'; it has 'label'"),
        ({"text": None, "label": "no"}, "row 2: field 'text' has no value (null)"),
        ({"text": 5, "label": "no"}, "row 2: field 'text' holds a number where a text is needed"),
        ({"text": ["a"], "label": "no"}, "row 2: field 'text' holds a list where a text is needed"),
        ({"text": "a"}, "row 2 has no field 'label'; it has 'text'"),
        ({"text": "a", "label": None}, "row 2: field 'label' has no value (null)"),
        ({"text": "a", "label": " "}, "row 2: field 'label' is empty where a label is needed"),
        (
            {"text": "a", "label": 0.5},
            "row 2: field 'label' holds a number where a label (a text or a whole number) is needed",
        ),
        (
            {"text": "a", "label": "maybe"},
            "row 2: label 'maybe' is in none of the training rows; they have 'no', 'yes'",
        ),
    ],
)
def test_a_bad_row_is_named(row, message):
    with pytest.raises(DataError) as caught:
        SHAPES[0].examples([ROW, row])
    assert str(caught.value) == message


# --- recognising


def rows(*names, count=2, **fields):
    values = dict.fromkeys(names, "x")
    made = [{**values, **{name: given[index % len(given)] for name, given in fields.items()}} for index in range(count)]
    return Rows("t.jsonl", made)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("messages", "id"), RowFormat("chat", None, "messages")),
        (("conversations",), RowFormat("chat", None, "conversations")),
        (("instruction", "input", "output"), RowFormat("alpaca", ALPACA, "output")),
        (("instruction", "output"), RowFormat("alpaca", ALPACA, "output")),
        (("prompt", "completion"), RowFormat("completion", "{prompt}", "completion")),
        (("question", "answer"), RowFormat("completion", "Question: {question}\nAnswer:", "answer")),
        (("text", "label"), RowFormat("label", "{text}\nLabel:", "label", ("x",))),
        (("text",), RowFormat("text", None, "text")),
    ],
)
def test_recognised_shapes(names, expected):
    shape, notes = recognise(rows(*names), None, None)
    assert shape == expected
    assert notes[0].startswith("read as ")
    assert notes[1:] == (["fields not used: 'id'"] if "id" in names else [])


def test_a_second_reading_is_said_aloud():
    shape, notes = recognise(rows("text", "label", "messages"), None, None)
    assert shape.kind == "chat"
    assert notes == [
        "read as chat messages (messages)",
        "could be read as text and label too; give a template and a target for that",
        "could be read as plain text too; give a template and a target for that",
        "fields not used: 'text', 'label'",
    ]


def test_a_field_that_only_later_rows_have_counts():
    with pytest.raises(DataError, match=r"^t\.jsonl: row 1 has no field 'label'"):
        recognise(Rows("t.jsonl", [{"text": "a"}, {"text": "b", "label": "no"}]), None, None)


@pytest.mark.parametrize(
    ("fields", "count", "kind"),
    [
        ({"mood": ["up", "down"]}, 20, "label"),
        ({"mood": ["up", "down"]}, 19, "completion"),
        ({"mood": [0, 1]}, 20, "label"),
        ({"mood": [f"{n}" for n in range(20)]}, 200, "label"),
        ({"mood": [f"{n}" for n in range(21)]}, 2000, "completion"),
        ({"Label": ["up", "down"]}, 2, "label"),
        ({"mood": ["up", ""]}, 40, "completion"),
    ],
)
def test_few_values_are_labels(fields, count, kind):
    shape, notes = recognise(rows("tweet", count=count, **fields), "{tweet} is", next(iter(fields)))
    assert shape.kind == kind
    assert shape.labels == (
        tuple(sorted({str(value) for value in next(iter(fields.values()))})) if kind == "label" else ()
    )
    assert any("labels" in note or "free text" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "target"),
    [
        (("Tweet text", "ID", "Label"), "Label"),
        (("Tweet text", "mood"), "mood"),
        (("Tweet text", "x", "answer"), "answer"),
    ],
)
def test_a_target_is_guessed_and_said(names, target):
    shape, notes = recognise(rows(*names), "Tweet text : {Tweet text} Label :", None)
    assert shape.target == target
    assert f"no target given: {target!r} is learned" in notes


def test_a_target_alone_takes_the_usual_template():
    shape, notes = recognise(rows("text", mood=["up", "down"], count=20), None, "mood")
    assert shape == RowFormat("label", "{text}\nLabel:", "mood", ("down", "up"))
    assert notes[0] == "no template given, the prompt as '{text}\\nLabel:'"


@pytest.mark.parametrize(
    ("names", "template", "target", "message"),
    [
        (("a", "b"), None, None, "t.jsonl: the rows have 'a', 'b', which is none of the shapes known"),
        (("a", "b"), None, "b", "t.jsonl: target 'b' needs a template for the prompt, such as '{a}\\nAnswer:'"),
        (("a", "b"), "{a}", "c", "t.jsonl: target 'c' is no field of the rows; they have 'a', 'b'"),
        (("a", "b"), "{c}", "b", "template '{c}' names the field 'c'; the rows have 'a', 'b'"),
        (
            ("a", "b"),
            "{a} {b}",
            "b",
            "template '{a} {b}' shows the field 'b', which is the target to learn; take it out",
        ),
        (
            ("a", "b", "c"),
            "{a}",
            None,
            "t.jsonl: which field is to be learned? Give a target; besides the template's there are 'b', 'c'",
        ),
        (
            ("a",),
            "{a}",
            None,
            "t.jsonl: which field is to be learned? Give a target; besides the template's there are none",
        ),
    ],
)
def test_what_is_not_recognised(names, template, target, message):
    with pytest.raises(DataError) as caught:
        recognise(rows(*names), template, target)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_example_compares_by_what_it_says():
    assert SHAPES[3].examples([ROW]) == [Example("Why?", " yes")]

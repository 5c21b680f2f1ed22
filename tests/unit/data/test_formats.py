import json

import pytest
from data_tokenizers import family
from hypothesis import given, settings
from hypothesis import strategies as st

from peftly.data import Example, RowFormat, Rows, Template, encode_example_prompt, encode_prompt
from peftly.data.detect import detect_format
from peftly.data.templates import ALPACA, move_space, needs_space
from peftly.errors import DataError

anything = st.text(st.sampled_from("ab {}\n(7.中\t"), max_size=8)
quick = settings(deadline=None, max_examples=60)

# --- the template language


@given(anything, anything)
@quick
def test_values_are_inserted_unchanged(first, second):
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
def test_a_space_moves_to_the_completion(prompt, completion, expected):
    assert joined(prompt, completion, add_space=True) == expected
    assert joined(prompt, completion, add_space=False) == move_space(prompt, completion)


def joined(prompt, completion, add_space, **settings):
    space = " " * needs_space(prompt, completion, add_space, **settings)
    bare, moved = move_space(prompt, completion)
    return bare, space + moved


@given(anything, anything, st.sampled_from([True, False, "auto"]), st.booleans())
@quick
def test_joining_adds_at_most_one_space(prompt, completion, add_space, ends_with_template):
    once = joined(prompt, completion, add_space, ends_with_template=ends_with_template)
    assert move_space(*once) == once
    assert not once[0].endswith(" ")
    assert "".join(once) in (prompt + completion, prompt + " " + completion)


AS_WRITTEN = [
    ("see https://exam", "ple.com"),
    ("see https://example.org/0/", "index.html"),
    ("<b>x", "</b>"),
    ("what is 1 plus 1 <a>", "2"),
    ("def f", "(x):"),
    ("def area(width):\n    retu", "rn width"),
    ("import numpy as np\nx = np.", "array"),
    ("C:\\Users\\", "ada"),
    ("http://localhost:", "8080"),
    ("price: $", "5"),
    ("f(x=", "1)"),
    ("answer (", "yes)"),
]
WITH_SPACE = [
    ("Tweet text : x Label :", "complaint"),
    ("Label:", "7"),
    ("What is the capital?", "Paris"),
    ("**Answer:**", "yes"),
    ("x ->", "yes"),
    ("1 + 1 =", "2"),
]


@pytest.mark.parametrize(("prompt", "completion"), AS_WRITTEN)
def test_a_completion_goes_on_inside_a_word_path_or_tag(prompt, completion):
    for template in ("{p}", "see: {p}"):
        example = RowFormat("completion", template, "c").examples([{"p": prompt, "c": completion}])[0]
        assert example.prompt + example.completion == template.replace("{p}", prompt) + completion
        assert not example.has_added_space


@pytest.mark.parametrize(("prompt", "completion"), WITH_SPACE)
def test_a_completion_after_a_cue_gets_a_space(prompt, completion):
    example = RowFormat("completion", "{p}", "c").examples([{"p": prompt, "c": completion}])[0]
    assert (example.prompt, example.completion, example.has_added_space) == (prompt, f" {completion}", True)
    as_written = RowFormat("completion", "{p}", "c", add_space=False).examples([{"p": prompt, "c": completion}])[0]
    assert (as_written.completion, as_written.has_added_space) == (completion, False)


@pytest.mark.parametrize(
    ("template", "completion"),
    [
        ("{q}\nThe answer is", " 2"),
        ("{q} (a number)", " 2"),
        ("{q} -", " 2"),
        ("<q>{q}</q><a>", "2"),
        ("https://example.org/{q}/page", "2"),
        ('{q} "', "2"),
        ("{q}\nAnswer: ", " 2"),
    ],
)
def test_the_end_of_a_template_is_a_cue_if_it_is_a_word(template, completion):
    assert RowFormat("completion", template, "a").examples([{"q": "1 + 1", "a": "2"}])[0].completion == completion


def test_a_label_gets_a_space_unless_the_setting_forbids_it():
    assert RowFormat("label", "{text}", "label").completion("no") == " no"
    assert RowFormat("label", "<a>{text}</a><b>", "label").completion("no") == "no"
    assert RowFormat("label", "<a>{text}</a><b>", "label", add_space=True).completion("no") == " no"
    assert RowFormat("label", "{text}:", "label", add_space=False).completion("no") == "no"


# --- row formats

ROW = {"text": "late {again} ", "instruction": "Say it", "input": "", "label": "no", "output": "yes", "prompt": "Why? "}
ROW_FORMATS = [
    RowFormat("label", "{text}\nLabel:", "label", ("no", "yes")),
    RowFormat("label", "Label {text}", "label", ("no", "yes")),
    RowFormat("label", "{text} is\n", "label", ("no", "yes")),
    RowFormat("completion", "{prompt}", "output"),
    RowFormat("completion", "Q: {prompt}{text}", "output"),
    RowFormat("alpaca", ALPACA, "output"),
    RowFormat("chat", None, "messages"),
    RowFormat("text", None, "text"),
    RowFormat("completion", "{prompt}", "output", add_space=False),
]


@pytest.mark.parametrize("row_format", ROW_FORMATS)
def test_a_row_format_survives_json(row_format):
    assert RowFormat.from_dict(json.loads(json.dumps(row_format.to_dict()))) == row_format


@pytest.mark.parametrize(
    "content",
    [
        {"kind": "label", "template": "{a}", "target": "b"},
        {"kind": "poem", "template": "{a}", "target": "b", "labels": []},
        {"kind": "chat", "template": "{a}", "target": "b", "labels": []},
        {"kind": "label", "template": None, "target": "b", "labels": []},
    ],
)
def test_a_damaged_row_format_is_refused(content):
    with pytest.raises(DataError):
        RowFormat.from_dict(content)


@pytest.mark.parametrize("row_format", [row_format for row_format in ROW_FORMATS if row_format.template])
def test_a_prompt_at_inference_equals_the_one_in_training(row_format):
    example = row_format.examples([ROW])[0]
    without_target = {name: value for name, value in ROW.items() if name != row_format.target}
    prompt = row_format.format_prompt(without_target)
    assert prompt.prompt == example.prompt
    assert not example.prompt.endswith(" ")
    tokenizer = family("byte_level")
    assert encode_example_prompt(prompt, tokenizer).input_ids == encode_prompt(example.prompt, tokenizer)
    if len(Template(row_format.template).fields) == 1:
        assert row_format.format_prompt(ROW[Template(row_format.template).fields[0]]).prompt == example.prompt


def test_a_bare_text_fills_the_only_field():
    assert RowFormat("text", None, "text").format_prompt("Once upon ").prompt == "Once upon"
    assert RowFormat("alpaca", ALPACA, "output").format_prompt("Say it").prompt == "Instruction: Say it\nAnswer:"
    two = RowFormat("completion", "{a} {b}", "c")
    with pytest.raises(DataError, match="one bare text cannot fill the fields 'a', 'b'; give each of them by name"):
        two.format_prompt("x")
    with pytest.raises(DataError, match=r"^the text has no field 'b'; it has 'a'$"):
        two.format_prompt({"a": "x"})


def test_instructions_with_and_without_input():
    row_format = RowFormat("alpaca", ALPACA, "output")
    rows = [{"instruction": "Say it", "input": value, "output": "yes"} for value in ("hello", "", None, float("nan"))]
    rows.append({"instruction": "Say it", "output": "yes"})
    prompts = [example.prompt for example in row_format.examples(rows)]
    assert prompts == ["Instruction: Say it\nInput: hello\nAnswer:"] + ["Instruction: Say it\nAnswer:"] * 4
    with pytest.raises(DataError, match="row 1: field 'input' holds a number where a text is needed"):
        row_format.examples([{**rows[0], "input": 0}])


@given(anything, st.sampled_from(["{text}\nLabel:", "{text}", "{text} ", "{text} \n", "{{ {text} (", "{text}:  "]))
@quick
def test_the_completion_of_a_label_is_the_same_in_every_row(text, template):
    row_format = RowFormat("label", template, "label", ("no", "yes"))
    example = row_format.examples([{"text": text, "label": "no"}])[0]
    assert example.completion == row_format.completion("no")
    assert not needs_space(example.prompt, example.completion, add_space=True)
    assert example.completion.strip() == example.label == "no"


@pytest.mark.parametrize("text", ["late", "late \n", "late   "])
def test_blanks_at_the_end_of_a_text_do_not_precede_the_label(text):
    example = RowFormat("label", "{text}", "label").examples([{"text": text, "label": "no"}])[0]
    assert (example.prompt, example.completion) == ("late", " no")
    code = RowFormat("completion", "{text}", "label").examples([{"text": "late \n  ", "label": "no"}])[0]
    assert (code.prompt, code.completion) == ("late \n", "  no")


@pytest.mark.parametrize(("value", "label"), [("yes ", "yes"), (1, "1"), (0, "0"), (2.0, "2"), (True, "True")])
def test_values_that_are_labels(value, label):
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
            "row 2: field 'label' holds the score 0.5, and regression is not supported; write a few labels, such as "
            "the score rounded to a whole number",
        ),
        (
            {"text": "a", "label": "maybe"},
            "row 2: label 'maybe' is in none of the training rows; they have 'no', 'yes'; rows "
            "without a known label are for peftly predict",
        ),
    ],
)
def test_a_bad_row_is_named(row, message):
    with pytest.raises(DataError) as caught:
        ROW_FORMATS[0].examples([ROW, row])
    assert str(caught.value) == message


# --- detection


def rows(*names, count=2, **columns):
    constants = dict.fromkeys(names, "x")
    table = [
        {**constants, **{name: column[index % len(column)] for name, column in columns.items()}}
        for index in range(count)
    ]
    return Rows("t.jsonl", table)


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
def test_detected_formats(names, expected):
    row_format, notes = detect_format(rows(*names), None, None)
    assert row_format == expected
    assert notes[0].startswith("read as ")
    assert notes[1:] == (["fields not used: 'id'"] if "id" in names else [])


def test_a_second_matching_format_is_reported():
    row_format, notes = detect_format(rows("text", "label", "messages"), None, None)
    assert row_format.kind == "chat"
    assert notes == [
        "read as chat messages (messages)",
        "could be read as text and label, too; give a template and a target for that",
        "could be read as plain text, too; give a template and a target for that",
        "fields not used: 'text', 'label'",
    ]


def test_a_field_that_only_later_rows_have_counts():
    with pytest.raises(DataError, match=r"^t\.jsonl: row 1 has no field 'label'"):
        detect_format(Rows("t.jsonl", [{"text": "a"}, {"text": "b", "label": "no"}]), None, None)


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
    row_format, notes = detect_format(rows("tweet", count=count, **fields), "{tweet} is", next(iter(fields)))
    assert row_format.kind == kind
    assert row_format.labels == (
        tuple(sorted({str(value) for value in next(iter(fields.values()))}, key=lambda v: (v.isdigit() and int(v), v)))
        if kind == "label"
        else ()
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
def test_a_guessed_target_is_reported(names, target):
    row_format, notes = detect_format(rows(*names), "Tweet text : {Tweet text} Label :", None)
    assert row_format.target == target
    assert f"no target given: {target!r} is learned" in notes


def test_a_target_alone_takes_the_usual_template():
    row_format, notes = detect_format(rows("text", mood=["up", "down"], count=20), None, "mood")
    assert row_format == RowFormat("label", "{text}\nLabel:", "mood", ("down", "up"))
    assert notes[0] == "no template given, the prompt as '{text}\\nLabel:'"


@pytest.mark.parametrize(
    ("names", "template", "target", "message"),
    [
        (("a", "b"), None, None, "t.jsonl: the rows have 'a', 'b', which is none of the row formats known"),
        (
            ("a", "b"),
            None,
            "b",
            "t.jsonl: target 'b' needs a template for the prompt, such as --template '{a}\\nAnswer:'",
        ),
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
def test_rows_without_a_known_format(names, template, target, message):
    with pytest.raises(DataError) as caught:
        detect_format(rows(*names), template, target)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_examples_compare_by_value():
    assert ROW_FORMATS[3].examples([ROW]) == [Example("Why?", " yes")]


def test_instructions_use_system_and_history():
    row = {
        "instruction": "and the capital?",
        "input": "",
        "output": "a city",
        "system": "Answer like a pirate.",
        "history": [["hello", "ahoy"], ["who?", " me"]],
    }
    bare = {"instruction": "Say it", "input": "now", "output": "yes", "system": None, "history": []}
    table = [row, bare]
    row_format, notes = detect_format(Rows("t.jsonl", table), None, None)
    assert not any("not used" in note for note in notes)
    restored = RowFormat.from_dict(json.loads(json.dumps(row_format.to_dict())))
    prompt = (
        "System: Answer like a pirate.\nInstruction: hello\nAnswer: ahoy\nInstruction: who?\nAnswer: me\n"
        "Instruction: and the capital?\nAnswer:"
    )
    for example in (row_format.examples(table)[0], restored.format_prompt({**row, "output": None})):
        assert example.prompt == prompt
        texts = [prompt[start:end] for start, end in example.spans]
        assert texts == ["Answer like a pirate.", "hello", "ahoy", "who?", " me", "and the capital?"]
    assert row_format.examples(table)[1].prompt == "Instruction: Say it\nInput: now\nAnswer:"
    assert restored.format_prompt("Say it").prompt == "Instruction: Say it\nAnswer:"
    cut = row_format.examples(table)[0].truncate_fields(3).prompt
    assert cut == "System: Ans\nInstruction: hel\nAnswer: aho\nInstruction: who\nAnswer: me\nInstruction: and\nAnswer:"


def test_an_adapter_without_these_fields_leaves_them_out():
    """Adapters of version 0.1.0 were trained without them."""
    row_format = RowFormat("alpaca", ALPACA, "output")
    row = {"instruction": "Say it", "output": "yes", "system": "Be brief.", "history": [["a", "b"]]}
    assert row_format.format_prompt(row).prompt == "Instruction: Say it\nAnswer:"


@pytest.mark.parametrize("history", [["hello"], [["hello"]], [["hello", None]], [["a", "b", "c"]]])
def test_a_history_that_is_no_list_of_pairs_is_named(history):
    row_format = RowFormat("alpaca", "{history}\n" + ALPACA, "output")
    with pytest.raises(DataError, match=r"the text: field 'history' holds .* where a list of \[instruction, answer\]"):
        row_format.format_prompt({"instruction": "a", "history": history})

"""Parts of a template in brackets that are left out for rows without a text in their field."""

import pytest
from data_tokenizers import family

from peftly.data import RowFormat, Rows, Template, encode, encode_example_prompt, load_data
from peftly.data.detect import detect_format
from peftly.errors import DataError

HUMAN = "Human: {instruction}[\n{input?}]\n\nAssistant: "


def rendered(template, row):
    """Return the prompt that a row format makes of a row, in training and at inference."""
    row_format = RowFormat("completion", template, "output")
    prompt = row_format.example({**row, "output": "好"}, "row 1").prompt
    assert row_format.format_prompt(row).prompt == prompt
    return prompt


@pytest.mark.parametrize("empty", [{}, {"input": None}, {"input": ""}, {"input": " \n"}, {"input": float("nan")}])
def test_a_part_is_left_out_where_its_field_has_no_text(empty):
    assert rendered(HUMAN, {"instruction": "写一首诗", **empty}) == "Human: 写一首诗\n\nAssistant:"


@pytest.mark.parametrize(
    ("template", "row", "prompt"),
    [
        (HUMAN, {"instruction": "翻译", "input": "hello"}, "Human: 翻译\nhello\n\nAssistant:"),
        # brackets without an optional field are text
        ("[INST] {a}[ ({b?})] [/INST]", {"a": "x"}, "[INST] x [/INST]"),
        ("[INST] {a}[ ({b?})] [/INST]", {"a": "x", "b": "y"}, "[INST] x (y) [/INST]"),
        ("[INST] {a} [/INST]", {"a": "[b?]"}, "[INST] [b?] [/INST]"),
        ("{a} a[0] ] [ {b}", {"a": "x", "b": "y"}, "x a[0] ] [ y"),
        ("[[{b?}]] {a}", {"a": "x", "b": "y"}, "[y] x"),
        ("[[INST] {b?} [/INST]]{a}", {"a": "x"}, "x"),
        # parts inside parts, several fields, literal braces
        ("{a}[: {b?}[, {c?}]]", {"a": "x", "b": "y"}, "x: y"),
        ("{a}[: {b?}[, {c?}]]", {"a": "x", "b": "y", "c": "z"}, "x: y, z"),
        ("{a}[: {b?}[, {c?}]]", {"a": "x", "c": "z"}, "x"),
        ("{a}[ {b?} {c?}]", {"a": "x", "b": "y"}, "x"),
        ("{a}[ {{{b?}}}]", {"a": "x", "b": "{y?}"}, "x {{y?}}"),
        # a part that depends on a field without showing it
        ("Do[, with an input{?b}]: {a}[\n{b?}]", {"a": "x", "b": "y"}, "Do, with an input: x\ny"),
        ("Do[, with an input{?b}]: {a}[\n{b?}]", {"a": "x"}, "Do: x"),
        # a question mark outside of brackets belongs to the name, as in a questionnaire
        ("{How was it?}\nMood:", {"How was it?": "fine"}, "fine\nMood:"),
    ],
)
def test_optional_parts(template, row, prompt):
    assert rendered(template, row) == prompt


def test_fields_of_a_template_with_optional_parts():
    template = Template("{a}[ {b?} of {c}][{?d}!] end")
    assert (template.required, template.optional, template.tail) == (["a"], ("b", "d"), " end")
    assert template.names == ["a", "b", "c", "d"]
    assert Template("{a}[ ({b?})]").tail == ""
    row_format = RowFormat("completion", HUMAN, "output")
    assert row_format.optional_fields == ("input",)
    assert row_format.format_prompt("你好").prompt == "Human: 你好\n\nAssistant:"  # a bare text
    assert RowFormat.from_dict(row_format.to_dict()) == row_format


@pytest.mark.parametrize(
    ("template", "fields", "message"),
    [
        ("{a}\n{b?}", ["a", "b", "c"], "names the field 'b?'; the rows have 'a', 'b', 'c'; brackets make a part "),
        ("{a}[\n{b?}]", ["a", "b?"], "has 'b' as an optional field, and the rows have a field with this question mark"),
    ],
)
def test_spellings_that_are_refused(template, fields, message):
    with pytest.raises(DataError, match=message.replace("?", r"\?")):
        Template(template).check(fields)


def test_virtual_tokens_cannot_be_left_out():
    with pytest.raises(DataError, match=r"virtual tokens in the optional part '\[\{prompt:2\}\{b\?\}\]'"):
        Template("{a}[{prompt:2}{b?}]")


@pytest.mark.parametrize("row", [{"a": "x"}, {"a": "x", "b": "y"}])
def test_positions_of_virtual_tokens_follow_the_shown_parts(row):
    tokenizer = family("byte_level")
    row_format = RowFormat("completion", "{prompt:1}{a}[\n{b?}]{prompt:2}\nAnswer:", "output")
    assert row_format.num_marked_tokens == 3
    plain = RowFormat("completion", "{prompt:1}{a}" + ("\n{b}" if "b" in row else "") + "{prompt:2}\nAnswer:", "output")
    marked = encode_example_prompt(row_format.format_prompt(row), tokenizer)
    expected = encode_example_prompt(plain.format_prompt(row), tokenizer)
    assert marked == expected
    assert marked.prompt_positions == expected.prompt_positions


@pytest.mark.parametrize("row", [{"a": "x " * 60}, {"a": "x " * 60, "b": "y " * 60}])
def test_a_long_row_keeps_the_text_of_the_template(row):
    tokenizer = family("byte_level")
    example = RowFormat("completion", "{a}[\n{b?}]\nAnswer:", "output").example({**row, "output": "好"}, "row 1")
    encoded = encode(example, tokenizer, 32)
    assert len(encoded.input_ids) <= 32
    prompt = tokenizer.decode(
        [token for token, is_trained in zip(encoded.input_ids, encoded.trained, strict=True) if not is_trained]
    )
    assert prompt.rstrip().endswith("Answer:")
    assert prompt.strip().startswith("x")  # the field lost its end, whether or not the other part is shown


def test_the_completion_of_a_label_is_the_same_for_every_row():
    row_format = RowFormat("label", "{a}[ ({b?})]", "label", labels=("yes", "no"))
    examples = row_format.examples([{"a": "x ", "label": "yes"}, {"a": "x ", "b": "y", "label": "yes"}])
    assert [(example.prompt, example.completion) for example in examples] == [("x", " yes"), ("x  (y)", " yes")]


def test_rows_that_lack_the_field_are_read_and_counted():
    rows = Rows("rows", [{"instruction": "a", "output": "b"}, {"instruction": "c", "input": "d", "output": "e"}])
    row_format, notes = detect_format(rows, HUMAN, None)
    assert row_format.target == "output"
    assert "template: 1 row of 2 have the optional 'input'" in notes
    data = load_data([*rows.rows] * 3, family("byte_level"), template=HUMAN, validation_fraction=0)
    assert len(data.train.encoded) == 6


def test_a_misspelt_optional_field_is_refused():
    """It was empty in every row, and only a count of 0 rows said so."""
    rows = Rows("rows", [{"instruction": "a", "input": "b", "output": "c"}])
    with pytest.raises(DataError, match=r"no row has the optional field 'inptu'; the rows have 'input'"):
        detect_format(rows, "{instruction}[\n{inptu?}]", "output", "causal_lm")

"""Special tokens that a text already has, unknown characters, lost characters, and words without a token."""

import copy

import pytest
from chatml import PLAIN, chatty
from data_tokenizers import family
from tiny_gguf import make_tokenizer
from tiny_tasks import tiny_tokenizer
from tokenizers import normalizers

from peftly.data import Example, RowFormat, encode, encode_for, encode_prompt, label_ids, load_data
from peftly.data.encoder_inputs import encode_sources, encode_words
from peftly.data.findings import FINDING_KINDS
from peftly.data.spoiled_texts import spoiled_texts
from peftly.data.task_encoding import answer_ids

LLAMA, CHATML = family("byte_level_start"), family("byte_level")
CLASSES = RowFormat("label", "{text}", "label", ("a", "b"))


def kinds(encoded):
    assert all(kind in FINDING_KINDS for kind, _ in encoded.findings)
    return [kind for kind, _ in encoded.findings]


@pytest.mark.parametrize(
    ("prompt", "completion", "bare_prompt", "bare_completion", "expected"),
    [
        ("<s>my order", "late</s>", "my order", "late", ["repeated_start", "repeated_end"]),
        ("<s><s>my order", "late", "my order", "late", ["repeated_start"]),
        (" <s>my order", "late", "my order", "late", ["repeated_start"]),
        ("<s>\n<s> my order", "late", " my order", "late", ["repeated_start"]),
        ("my order", "late</s> \n", "my order", "late", ["repeated_end"]),
        ("my order", "late </s></s>", "my order", "late ", ["repeated_end"]),
        ("", "<s>my order [/INST] late </s>", "", "my order [/INST] late ", ["repeated_start", "repeated_end"]),
        ("my order", "late", "my order", "late", []),
    ],
)
def test_a_causal_text_has_one_start_and_one_end(prompt, completion, bare_prompt, bare_completion, expected):
    encoded = encode(Example(prompt, completion), LLAMA, 100)
    assert encoded == encode(Example(bare_prompt, bare_completion), LLAMA, 100)
    assert [encoded.input_ids.count(token) for token in (LLAMA.bos_token_id, LLAMA.eos_token_id)] == [1, 1]
    assert kinds(encoded) == expected
    if prompt:
        head = encode_prompt(prompt, LLAMA)
        assert encoded.input_ids[: len(head)] == head
        assert not any(encoded.trained[: len(head)])
        assert all(encoded.trained[len(head) :])


def test_marks_and_fields_stay_where_they_are_behind_a_removed_start():
    row_format = RowFormat("label", "<s>{prompt:1}{text}\nLabel:", "label", ("no</s>", "yes"))
    plain = RowFormat("label", "{prompt:1}{text}\nLabel:", "label", ("no", "yes"))
    row = {"text": "late again " * 20}
    for limit in (100, 20):
        first = encode(row_format.examples([{**row, "label": "no</s>"}])[0], LLAMA, limit)
        assert first == encode(plain.examples([{**row, "label": "no"}])[0], LLAMA, limit)
        assert first.prompt_positions == (1,)
    assert label_ids(row_format, LLAMA)["no</s>"] == label_ids(plain, LLAMA)["no"]


@pytest.mark.parametrize("architecture", ["bert", "t5", "roberta"])
def test_a_text_of_an_encoder_has_its_special_tokens_once(architecture):
    tokenizer = tiny_tokenizer(architecture)
    front, back = {"bert": ("[CLS] ", " [SEP]"), "t5": ("", "</s>"), "roberta": ("<s>", "</s>")}[architecture]
    example = Example(f"{front}late again{back}", label="a")
    encoded = encode_sources([example], tokenizer)[0]
    assert encoded.input_ids == encode_sources([Example("late again".rstrip(), label="a")], tokenizer)[0].input_ids
    assert kinds(encoded) == ["repeated_start"] * bool(front) + ["repeated_end"]
    pair = encode_sources([Example(f"{front}late again", pair=f"great{back}")], tokenizer)[0]
    assert pair.input_ids == encode_sources([Example("late again", pair="great")], tokenizer)[0].input_ids


def test_the_answer_of_a_decoder_has_one_end():
    tokenizer = tiny_tokenizer("t5")
    assert answer_ids(["late</s>", "late </s> "], tokenizer) == answer_ids(["late", "late"], tokenizer)
    rows = RowFormat("completion", "{prompt}", "completion")
    example = rows.examples([{"prompt": "my order</s>", "completion": "late</s>"}])[0]
    encoded = encode_for("seq2seq_lm", [example], tokenizer, rows, 20)[0]
    assert (encoded.input_ids.count(2), encoded.answer.count(2)) == (1, 1)
    assert kinds(encoded) == ["repeated_end", "repeated_end"]


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ("ignore this <|im_end|> and", "late", ["special_tokens_in_text"]),
        ("my order", "late <|im_end|> and more", ["special_tokens_in_text"]),
        ("<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n", "late", []),
        ("", "<|im_start|>user\nhello<|im_end|>\n", []),
        ("<|im_stop|> is no token", "late", []),
    ],
)
def test_special_tokens_inside_a_text_are_found_where_it_is_no_rendered_chat(prompt, completion, expected):
    assert kinds(encode(Example(prompt, completion), CHATML, 100)) == expected


def test_unknown_characters_in_messages_are_found():
    rows = [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in (("late", "late"), ("late 🙂", "late"), ("late", "late 中"))
    ]
    tokenizer = copy.deepcopy(family("unigram_prefix"))
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    )
    report = load_data(rows, tokenizer, validation_fraction=0.0).report.splits["train"]
    found = {finding.kind: finding.samples for finding in report.findings}
    assert found["unknown_characters"] == ("train: row 2: 🙂",)
    assert found["unknown_target"] == ("train: row 3: 中",)


def test_unknown_characters_are_counted_in_inputs_and_in_targets():
    tokenizer = copy.deepcopy(tiny_tokenizer("t5"))
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\n", " ")  # as T5 does
    rows = [
        {"prompt": f"say {number}", "completion": '{"love": "yes"}\n{"x": 1}' if number else "love"}
        for number in range(5)
    ]
    report = load_data(rows, tokenizer, task="seq2seq_lm", validation_fraction=0.0).report.splits["train"]
    found = {finding.kind: finding for finding in report.findings}
    assert found["unknown_target"].count == found["changed_target"].count == 4
    assert found["unknown_target"].is_problem
    assert found["unknown_target"].samples[0].startswith('train: row 2: { " ')
    assert found["changed_target"].samples[0] == "train: row 2: '\\n'"
    texts = [Example("late 🙂 中"), Example("late"), Example("🙂 中 🙂 🙂 🙂 🙂 late")]
    sources = encode_sources(texts, tiny_tokenizer("bert"))
    expected = [(("unknown_characters", "🙂 中"),), (), (("mostly_unknown", "🙂 中"),)]
    assert [source.findings for source in sources] == expected
    assert kinds(encode(Example("late late late 🙂", " 中 late"), family("unigram_prefix"), 50)) == [
        "unknown_characters",
        "unknown_target",
    ]


@pytest.mark.parametrize("name", ["byte_level", "byte_level_start", "whole_text", "whole_text_prefix"])
def test_tokenizers_of_bytes_know_every_character_and_lose_none(name):
    example = Example("late 🙂 中", ' {"naïve": "中\n🙂"}\tＡ e\u0301')
    assert encode(example, family(name), 200).findings == ()


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("<s>[INST] late? [/INST] yes </s>", "<s>"),
        ("[INST] late? [/INST] yes </s><s>[INST] why? [/INST] rain", "</s>"),
        ("the <s>old</s> price, in HTML", None),
        ("late <|im_end|> again", "<|im_end|>"),
    ],
)
def test_special_tokens_of_other_models_are_letters_here(text, found):
    """Texts with `<s>` and `</s>` of Llama 2 taught another base to write these letters, and nothing was said."""
    expected = [] if found is None else [("foreign_special_tokens", found)]
    for example in (Example("", text), Example(text, " late")):
        findings = encode(example, make_tokenizer("gpt-2"), 100).findings
        assert [pair for pair in findings if pair[0] == "foreign_special_tokens"] == expected
    (source,) = encode_sources([Example(text)], tiny_tokenizer("bert"))
    assert [pair for pair in source.findings if pair[0] == "foreign_special_tokens"] == expected
    assert "foreign_special_tokens" not in kinds(encode(Example("", text), CHATML, 100)), "its own special tokens"


def test_a_word_that_is_too_long_for_the_tokenizer_is_named():
    encoded = encode_sources([Example("a" * 150 + " late")], family("wordpiece"))[0]
    assert encoded.findings == (("unknown_characters", "a" * 40),)


def test_a_text_without_a_token_is_named():
    tokenizer = family("wordpiece")
    bare, other = encode_sources([Example("\u200b\0"), Example("late")], tokenizer)
    assert (bare.findings, other.findings) == ((("text_without_tokens", "'\\u200b\\x00'"),), ())
    assert encode_sources([Example("\u200b", pair="late")], tokenizer)[0].findings == ()


def test_words_without_a_token_are_counted_apart_from_words_that_are_cut():
    tokenizer = tiny_tokenizer("bert")
    words = ["late", "\u200b", "again", " ", *["great"] * 20]
    (encoded, first_tokens), (other, _) = encode_words([words, ["late"]], tokenizer, 12)
    assert (encoded.findings, other.findings) == ((("words_without_token", "'\\u200b', ' '"),), ())
    assert [word for word in first_tokens if word is not None] == [0, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert sum(encoded.trained) == 10
    roberta = tiny_tokenizer("roberta")
    (encoded, first_tokens), *_ = encode_words([["late", " ", "again"]], roberta)
    assert encoded.input_ids == roberta("late again")["input_ids"]
    assert encoded.findings == (("words_without_token", "' '"),)
    assert encode_words([[], ["late"]], tokenizer)[0][0].input_ids == [1, 2]


@pytest.mark.parametrize(
    "text", ["<s>[INST] hello [/INST] ahoy </s>", "### Human: hi ### Assistant: ho", "<|im_start|>user\nhi"]
)
def test_a_rendered_chat_in_plain_text_is_said(text):
    notes = load_data([{"text": text}, {"text": "late"}], LLAMA, validation_fraction=0.0).report.notes
    assert any(note.startswith("1 of 2 texts is a rendered chat") for note in notes)
    notes = load_data([{"text": "late"}], LLAMA, validation_fraction=0.0).report.notes
    assert not any("rendered chat" in note for note in notes)


@pytest.mark.parametrize(
    "text", ["cafÃ© au lait", "donâ€™t", "10 Â£ off", "caf\ufffd", "Ð¿Ñ\x80Ð¸Ð²ÐµÑ\x82", "itâ€\x9d", "naÃ¯ve"]
)
def test_texts_in_the_wrong_encoding_are_a_problem_in_every_format(text):
    assert [kind for kind, _ in spoiled_texts(Example("hello", text))] == ["wrong_encoding"]
    for row in (
        {"text": text, "label": "a"},
        {"prompt": "hello", "completion": text},
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "yes"}]},
        {"text": text},
    ):
        report = load_data([row], chatty(PLAIN)).report
        assert "wrong_encoding" in [finding.kind for _, finding in report.findings]


@pytest.mark.parametrize("text", ["MAÇÃ, ÂNGULO, ESPAÑA", "café, naïve, don’t", "привет", "“MAÇÔ", "5 € â"])
def test_accents_are_no_wrong_encoding(text):
    assert spoiled_texts(Example(text, text, pair=text)) == []


@pytest.mark.parametrize("word", ["nan", "NaN", "\\N", "<NA>"])
def test_a_word_for_a_missing_text_is_a_problem(word):
    rows = [{"instruction": "say", "input": word, "output": "yes"}, {"prompt": "say", "completion": word}]
    rows += [{"premise": "say", "hypothesis": word, "label": "a"}, {"text": word, "label": "a"}]
    for row in rows:
        (_, finding), *_ = load_data([row], CHATML).report.findings
        assert (finding.kind, finding.samples) == ("missing_text", (f"train: row 1: {word!r}",))
    assert spoiled_texts(Example("a nan", " none")) == []

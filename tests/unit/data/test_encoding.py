import copy

import pytest
from data_tokenizers import FAMILIES, LOSSLESS, family
from hypothesis import example, given, settings
from hypothesis import strategies as st

from peftly.data import Example, RowFormat, encode, encode_prompt, label_ids
from peftly.data.encoding import encode_all
from peftly.data.templates import move_space
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

LABELS = ("complaint", "no complaint")
quick = settings(deadline=None, max_examples=40)
sentences = st.lists(
    st.sampled_from(["my", "order", "Label", ":", "(", ")", "café", "late", " ", "\n", "{x}", "🙂", "42", "complaint"]),
    max_size=8,
).map(" ".join)
texts = st.one_of(sentences, st.text(st.characters(codec="utf-8", exclude_characters="▁"), max_size=12))
families = st.sampled_from(FAMILIES)


def label_format(template="{text}\nLabel:", labels=LABELS):
    return RowFormat("label", template, "label", labels)


def trained_ids(encoded):
    return [token for token, trained in zip(encoded.input_ids, encoded.trained, strict=True) if trained]


def end_of(tokenizer):
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


@given(families, texts.filter(str.strip), texts.filter(str.strip))
@example("byte_level", "Label : ", "complaint")
@example("byte_level", "Label :", "complaint")
@example("unigram_prefix", "Label :", "complaint")
@example("whole_text", "Label :", "complaint")
@example("wordpiece", "Label : ", "complaint")
@example("byte_level", "no comp", "-laint")
@example("unigram_prefix", "0", "\x1b")
@quick
def test_the_untrained_head_is_the_prompt_that_generation_starts_from(name, prompt, completion):
    tokenizer = family(name)
    encoded = encode(Example(prompt, completion), tokenizer, 10_000)
    if encoded is None:  # a WordPiece has no token for some characters
        assert name == "wordpiece"
        return
    head = encode_prompt(prompt, tokenizer)
    if not head:
        return
    first = encoded.trained.index(True)
    assert encoded.input_ids[:first] == head
    assert all(encoded.trained[first:])
    assert encoded.num_truncated == 0


@given(families, texts)
@example("byte_level", "Label : ")
@quick
def test_the_prompt_has_the_tokens_of_the_tokenizer_without_an_end(name, prompt):
    tokenizer = family(name)
    body = tokenizer(prompt.rstrip(" "))["input_ids"]
    if name in ("wordpiece", "unigram_end"):
        assert body.pop() == end_of(tokenizer)
    assert encode_prompt(prompt, tokenizer) == body


@given(families, texts.filter(str.strip), texts.filter(str.strip))
@quick
def test_the_end_token_comes_once_last_and_trained(name, prompt, completion):
    tokenizer = family(name)
    encoded = encode(Example(prompt, completion), tokenizer, 10_000)
    if encoded is not None:
        end = end_of(tokenizer)
        assert encoded.input_ids.count(end) == 1
        assert encoded.input_ids[-1] == end
        assert encoded.trained[-1]


@given(st.sampled_from(LOSSLESS), texts.filter(str.strip), texts.filter(str.strip))
@quick
def test_nothing_of_the_text_is_lost_or_doubled(name, prompt, completion):
    tokenizer = family(name)
    encoded = encode(Example(prompt, completion), tokenizer, 10_000)
    whole = "".join(move_space(prompt, completion))
    body = encoded.input_ids[len(Vocabulary.of(tokenizer).front) : -1]
    assert tokenizer.decode(body, clean_up_tokenization_spaces=False) == whole


@given(
    families,
    texts,
    st.sampled_from(LABELS),
    st.sampled_from(["{text}\nLabel:", "{text}", "{text} ", "a {text} (", "{text}\n"]),
)
@quick
def test_a_label_has_the_same_tokens_after_every_prompt(name, text, label, template):
    tokenizer, labelled = family(name), label_format(template)
    example = labelled.examples([{"text": text, "label": label}])[0]
    encoded = encode(example, tokenizer, 10_000)
    ids = label_ids(labelled, tokenizer)[label]
    assert encoded.input_ids == encode_prompt(labelled.format_prompt({"text": text}).prompt, tokenizer) + ids
    assert encoded.trained[1:][-len(ids) :] == [True] * len(encoded.trained[1:][-len(ids) :])


def test_a_label_does_not_fuse_with_the_unknown_character_before_it():
    """Tokenized together, the unknown characters of both merge into one token, which the label would then lack."""
    tokenizer, labelled = family("unigram_prefix"), label_format("{text}", ("中complaint", "no"))
    ids = label_ids(labelled, tokenizer)["中complaint"]
    rows = [{"text": text, "label": "中complaint"} for text in ("late", "late 中")]
    for row, encoded in zip(labelled.examples(rows), encode_all(labelled.examples(rows), tokenizer, 100), strict=True):
        assert encoded.input_ids == encode_prompt(row.prompt, tokenizer) + ids


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("template", ["{text}\nLabel:", "{text}\nLabel: ", "Label : {text}"])
def test_a_label_is_tokenized_as_in_running_text(name, template):
    """ "complaint" tokenized alone is not the continuation that a model generates after "Label:"."""
    tokenizer = family(name)
    prompt = template.format(text="The train was late again").rstrip()
    joint = tokenizer(prompt + " complaint", add_special_tokens=False)["input_ids"]
    ids = label_ids(label_format(template), tokenizer)["complaint"][:-1]
    if name.startswith("whole_text"):  # merges across words: running text may hide the boundary
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip() == "complaint"
    else:
        assert joint[-len(ids) :] == ids
    assert [token for token in tokenizer.convert_ids_to_tokens(ids) if token in ("▁", "Ġ")] == []


@pytest.mark.parametrize("name", FAMILIES)
def test_labels_fit_when_they_follow_a_line_break(name):
    tokenizer = family(name)
    ids = label_ids(label_format("{text}\n"), tokenizer)["complaint"][:-1]
    assert not tokenizer.convert_ids_to_tokens(ids)[0].startswith(("▁", "Ġ"))


def test_a_completion_that_would_change_the_prompts_tokens_is_tokenized_separately():
    tokenizer = family("byte_level")
    prompt, completion = "no comp", "laint!"
    assert (
        encode_prompt(prompt, tokenizer)
        != tokenizer("no complaint!")["input_ids"][: len(encode_prompt(prompt, tokenizer))]
    )
    encoded = encode(Example("(no comp-", "-laint"), tokenizer, 100)
    head = encode_prompt("(no comp-", tokenizer)
    assert encoded.input_ids[: len(head)] == head
    vocabulary = Vocabulary.of(tokenizer)
    assert tokenizer.decode(vocabulary.continuation(completion)) == completion


@pytest.mark.parametrize("name", [name for name in FAMILIES if "unigram" in name or name == "whole_text_prefix"])
def test_a_completion_on_its_own_gains_no_space(name):
    tokenizer = family(name)
    alone = Vocabulary.of(tokenizer).continuation(" complaint")
    assert tokenizer.convert_ids_to_tokens(alone)[0].startswith("▁")
    assert "".join(tokenizer.convert_ids_to_tokens(alone)).count("▁") == 1
    assert "▁" not in "".join(tokenizer.convert_ids_to_tokens(Vocabulary.of(tokenizer).continuation("complaint")))


@pytest.mark.parametrize("name", FAMILIES)
def test_plain_text_is_trained_except_its_first_token(name):
    tokenizer = family(name)
    example = RowFormat("text", None, "text").examples([{"text": "The train was late"}])[0]
    encoded = encode(example, tokenizer, 100)
    body = tokenizer("The train was late")["input_ids"]
    if body[-1] != end_of(tokenizer):
        body.append(end_of(tokenizer))
    assert encoded.input_ids == body
    assert encoded.trained == [False] + [True] * (len(body) - 1)


def test_long_plain_text_is_cut_at_its_end_and_counted():
    tokenizer = family("byte_level_start")
    whole = encode(Example(completion="my order never arrived"), tokenizer, 100)
    cut = encode(Example(completion="my order never arrived"), tokenizer, 4)
    assert cut.input_ids == whole.input_ids[:4]
    assert cut.num_truncated == len(whole.input_ids) - 4


@given(families, texts.filter(str.strip), texts.filter(str.strip), st.integers(1, 30))
@quick
def test_the_maximum_length_holds_and_truncated_tokens_are_counted(name, text, completion, length):
    tokenizer = family(name)
    templated = RowFormat("completion", "Say it: {text}\nAnswer:", "answer")
    example = templated.examples([{"text": text, "answer": completion}])[0]
    whole, cut = encode(example, tokenizer, 10_000), encode(example, tokenizer, length)
    if whole is None or cut is None:
        assert whole is None or length <= 2
        return
    assert len(cut.input_ids) == len(cut.trained) <= length
    assert len(cut.input_ids) + cut.num_truncated == len(whole.input_ids)
    front = Vocabulary.of(tokenizer).front
    assert cut.input_ids[: len(front)] == front
    answer = trained_ids(whole)
    if len(front) + len(answer) <= length:
        assert cut.input_ids[-len(answer) :] == answer
        assert cut.input_ids[-1] == end_of(tokenizer)
    else:
        assert end_of(tokenizer) not in cut.input_ids[len(front) :]


def test_a_prompt_is_shortened_inside_its_long_fields_and_the_cue_stays():
    tokenizer = family("byte_level_start")
    rows = [{"first": "late " * 30, "second": "app " * 30, "third": "store", "label": "complaint"}]
    labelled = label_format("A: {first}\nB: {second}\nC: {third}\nLabel:")
    encoded = encode(labelled.examples(rows)[0], tokenizer, 60)
    text = tokenizer.decode(encoded.input_ids, skip_special_tokens=True)
    assert text.startswith("A: late")
    assert text.endswith("\nC: store\nLabel: complaint")
    first, second = text.split("\n")[:2]
    assert "late late" in first
    assert "app app" in second
    assert abs(len(first) - len(second)) <= 2  # both long fields are cut to the same length
    assert len(encoded.input_ids) >= 55
    assert encoded.num_truncated > 0


def test_a_prompt_of_one_field_is_cut_from_the_left_after_the_start_token():
    tokenizer = family("byte_level_start")
    bare = RowFormat("completion", "{prompt}", "completion")
    example = bare.examples([{"prompt": "late " * 30 + "the end :", "completion": "yes"}])[0]
    encoded = encode(example, tokenizer, 12)
    head = encode_prompt(example.prompt, tokenizer)
    tail = trained_ids(encoded)
    assert len(encoded.input_ids) == 12
    assert encoded.input_ids == head[:1] + head[len(head) - (12 - 1 - len(tail)) :] + tail


def test_a_completion_is_cut_only_when_it_does_not_fit_alone():
    tokenizer = family("byte_level_start")
    example = Example("my order", " never arrived and nobody answers")
    whole = encode(example, tokenizer, 100)
    size = len(trained_ids(whole))
    assert trained_ids(encode(example, tokenizer, size + 1)) == trained_ids(whole)
    cut = encode(example, tokenizer, size)
    assert trained_ids(cut) == trained_ids(whole)[: size - 1]
    assert tokenizer.eos_token_id not in cut.input_ids


def test_the_length_of_a_truncated_prompt_does_not_reveal_the_label():
    tokenizer, labelled = family("byte_level"), label_format()
    rows = [{"text": "late again " * 20, "label": label} for label in LABELS]
    room = max(map(len, label_ids(labelled, tokenizer).values()))
    one, other = encode_all(labelled.examples(rows), tokenizer, 32, completion_room=room)
    assert one.input_ids[: one.trained.index(True)] == other.input_ids[: other.trained.index(True)]


@pytest.mark.parametrize("example", [Example("my order", ""), Example("", ""), Example("my order ", "")])
def test_without_a_completion_nothing_is_left_to_train(example):
    assert encode(example, family("byte_level_start"), 100) is None


def test_a_batch_equals_single_examples():
    tokenizer = family("unigram_prefix")
    examples = [
        Example("my order", "late"),
        Example("", "never"),
        Example("The app :", " crashed twice", "crashed twice"),
    ]
    assert encode_all(examples, tokenizer, 20) == [encode(example, tokenizer, 20) for example in examples]
    assert encode_all([], tokenizer, 20) == []


def test_labels_that_become_the_same_tokens_are_refused():
    with pytest.raises(DataError, match="same tokens of the labels 'Late' and 'late'"):
        label_ids(label_format(labels=("Late", "late")), family("wordpiece"))


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = copy.deepcopy(family("byte_level"))
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no end token"):
        encode(Example("a", "b"), tokenizer, 10)

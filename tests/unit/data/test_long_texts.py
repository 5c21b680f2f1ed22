"""Plain texts that are longer than the maximum: cut, or in pieces."""

import pytest
from data_tokenizers import FAMILIES, family

from peftly.data import Example, encode, load_data
from peftly.data.truncation import cut_into_pieces
from peftly.data.vocabulary import Vocabulary
from peftly.errors import DataError

DOCUMENTS = [f"document {number} : " + "the train was late again and nobody answers " * number for number in range(6)]


@pytest.mark.parametrize("name", FAMILIES)
def test_pieces_have_every_token_of_their_text(name):
    tokenizer, limit = family(name), 20
    front = Vocabulary.of(tokenizer).front
    rows = [{"text": text} for text in ["", *DOCUMENTS]]
    data = load_data(rows, tokenizer, max_length=limit, long_texts="pieces", validation_fraction=0.0)
    whole = [encode(Example(completion=text), tokenizer, 10_000) for text in DOCUMENTS]
    report = data.report.splits["train"]
    assert len(data.train.examples) == len(data.train.encoded) == report.examples > len(DOCUMENTS)
    for text, expected in zip(DOCUMENTS, whole, strict=True):
        chosen = [i for i, example in enumerate(data.train.examples) if example.completion == text]
        pieces = [data.train.encoded[i] for i in chosen]
        assert all(piece.input_ids[: len(front)] == front and len(piece.input_ids) <= limit for piece in pieces)
        assert all(all(piece.trained[max(1, len(front)) :]) and not piece.trained[0] for piece in pieces)
        body = [token for piece in pieces for token in piece.input_ids[len(front) :]]
        assert body == expected.input_ids[len(front) :]
    long = [len(expected.input_ids) > limit for expected in whole]
    assert report.texts_in_pieces == sum(long) > 0
    assert report.pieces == report.examples - long.count(False)
    assert (report.rows, report.dropped, report.truncated, report.tokens_cut) == (7, 1, 0, 0)
    assert f"{sum(long)} long texts cut into {report.pieces} pieces" in data.report.lines()[0]


def test_validation_texts_are_chosen_before_texts_become_pieces():
    rows = [{"text": text + str(number)} for number, text in enumerate(DOCUMENTS * 4)]
    both = [
        load_data(rows, family("byte_level"), max_length=16, long_texts=setting, validation_fraction=0.25)
        for setting in ("cut", "pieces")
    ]
    cut, pieces = [{example.completion for example in data.validation.examples} for data in both]
    assert cut == pieces
    assert not pieces & {example.completion for example in both[1].train.examples}


def test_a_cut_text_is_said_with_the_setting_that_keeps_it():
    rows = [{"text": text} for text in DOCUMENTS]
    data = load_data(rows, family("byte_level"), max_length=16)
    assert "long texts lose their ends; --set data.long_texts=pieces trains on all of their tokens" in data.report.notes
    rows = [{"prompt": text, "completion": "so it is"} for text in DOCUMENTS]
    notes = load_data(rows, family("byte_level"), max_length=16, long_texts="pieces").report.notes
    assert "data.long_texts=pieces is for plain texts; a long example of kind 'completion' is truncated" in notes


def test_pieces_need_room_besides_the_special_tokens():
    tokenizer = family("byte_level_start")
    whole = encode(Example(completion="late again"), tokenizer, 100)
    with pytest.raises(DataError, match="max_length=1 has no room for text besides 1 special tokens; raise max_length"):
        cut_into_pieces(whole, Vocabulary.of(tokenizer).front, 1)

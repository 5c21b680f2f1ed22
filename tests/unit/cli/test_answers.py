"""Labels and tags, printed."""

from tiny_tasks import opened

from peftly.cli.answers import answer_text, print_answer
from peftly.data import Example
from peftly.inference import Answer
from peftly.runs import OpenRun


def test_a_word_without_a_tag_has_a_reason(task_base, capsys):
    tagger = OpenRun(*opened(task_base("bert"), task="token_classification", labels=["X"]))
    print_answer(tagger, Example(words=("late", "\u0301", *["again"] * 600)))
    lines = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["X", "(the tokenizer has no token for it)", "X"]
    assert lines[-1] == "(past 160 tokens)"


def test_a_text_that_is_cut_says_so(task_base, capsys):
    classifier = OpenRun(*opened(task_base("bert"), task="sequence_classification", labels=["a", "b"]))
    print_answer(classifier, Example("again " * 300))
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "is cut to 160" in err
    print_answer(classifier, Example("again"))
    assert not capsys.readouterr().err


def test_an_answer_of_one_of_several_rows_has_no_cut_character_either():
    assert answer_text(Answer("好\ufffd")) == "好"

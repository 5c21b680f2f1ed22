"""Output of the commands."""

from peftly.cli.console import echo_pieces


def test_an_answer_is_printed_without_the_space_in_front_of_it(capsys):
    """The space between a cue and its answer belongs to neither; a script reads the answer."""
    write = echo_pieces()
    for piece in (" ", "", " two", " words", "\n"):
        write(piece)
    assert capsys.readouterr().out == "two words\n"


def test_a_character_that_the_limit_of_tokens_has_cut_is_not_printed(capsys):
    """A Chinese character can be three tokens; an answer that was cut ended in "\ufffd"."""
    write = echo_pieces()
    for piece in ("好", "\ufffd", "的", "\ufffd\ufffd"):
        write(piece)
    assert capsys.readouterr().out == "好\ufffd的"

"""Output of the commands."""

from peftly.cli.console import echo_pieces


def test_an_answer_is_printed_without_the_space_in_front_of_it(capsys):
    """The space between a cue and its answer belongs to neither; a script reads the answer."""
    write = echo_pieces()
    for piece in (" ", "", " two", " words", "\n"):
        write(piece)
    assert capsys.readouterr().out == "two words\n"

"""Search for the longest text that fits a number of tokens, and long texts in pieces."""

from bisect import bisect_right
from collections.abc import Callable, Sequence

from peftly.data.types import EncodedExample
from peftly.errors import DataError

__all__ = ["CharToToken", "cut_into_pieces", "fitting_characters", "largest_fit"]

CharToToken = Callable[[int], int | None]
"""Function that returns the index of the token with a character; None for a character without a token."""


def largest_fit(maximum: int, fits: Callable[[int], bool]) -> int | None:
    """Return the largest size that fits, found by binary search.

    Args:
        maximum: largest size to try.
        fits: whether a size fits. A size below a fitting size is assumed to fit, too.

    Returns:
        A size from 0 to `maximum`, or None if no size fits.
    """
    low, high = -1, maximum
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low if low >= 0 else None


def fitting_characters(
    spans: Sequence[tuple[int, int]],
    num_tokens: int,
    room: int,
    char_to_token: CharToToken | None,
    count: Callable[[int], int],
) -> int | None:
    """Return a number of characters to which the fields of a text are cut so that the text fits.

    The tokens of the whole text show where to cut. A cut text can have one token more than expected, where a field
    meets the text behind it; then it is cut again. Without the positions of tokens, and where this does not help, the
    number is found by a search, which tokenizes the text again and again.

    Args:
        spans: start and end of each field in the text, in characters.
        num_tokens: number of tokens of the whole text.
        room: maximum number of tokens.
        char_to_token: index of the token with a character of the text; None for a slow tokenizer.
        count: function that returns the number of tokens of the text with its fields cut to a number of characters.

    Returns:
        The number of characters, or None if the text does not fit without its fields.
    """
    longest = max((end - start for start, end in spans), default=0)
    if not longest:
        return None
    if char_to_token is not None:
        target = room
        for _ in range(_MAX_CUTS):
            characters = _expected_fit(spans, longest, num_tokens, target, char_to_token)
            if characters is None:
                break
            if (excess := count(characters) - room) <= 0:
                return characters
            longest, target = characters, target - excess
    return largest_fit(longest, lambda characters: count(characters) <= room)


_MAX_CUTS = 4


def _expected_fit(
    spans: Sequence[tuple[int, int]], longest: int, num_tokens: int, room: int, char_to_token: CharToToken
) -> int | None:
    """Return the largest number of characters that leaves at most `room` of the tokens; None if there is none."""

    def num_removed(characters: int) -> int:
        return sum(
            _num_tokens_within(start + characters, end, char_to_token)
            for start, end in spans
            if end - start > characters
        )

    needed = num_tokens - room
    number = bisect_right(range(longest + 1), -needed, key=lambda characters: -num_removed(characters))
    return number - 1 if number else None


def _num_tokens_within(start: int, end: int, char_to_token: CharToToken) -> int:
    """Return the number of tokens that begin at or after one character, and have a character before another one."""
    first = next((token for at in range(start, end) if (token := char_to_token(at)) is not None), None)
    if first is None:
        return 0
    last = next(token for at in range(end - 1, start - 1, -1) if (token := char_to_token(at)) is not None)
    is_cut = start > 0 and char_to_token(start - 1) == first
    return last - first + (0 if is_cut else 1)


def cut_into_pieces(whole: EncodedExample, front: Sequence[int], max_length: int) -> list[EncodedExample]:
    """Return a plain text in pieces of about equal length, which together have every token of the text.

    Every piece begins with the special tokens that the tokenizer puts before a text; only the last piece has the end
    token. Where there are no such special tokens, the first token of each piece is not trained, since no token comes
    before it.

    Args:
        whole: the text, of any length.
        front: special tokens at its start.
        max_length: maximum number of tokens of a piece.

    Raises:
        DataError: `max_length` leaves no room for text.
    """
    if len(whole.input_ids) <= max_length:
        return [whole]
    room = max_length - len(front)
    if room < 1:
        raise DataError(
            f"max_length={max_length} has no room for text besides {len(front)} special tokens; raise max_length"
        )
    body = whole.input_ids[len(front) :]
    number = -(-len(body) // room)
    ends = [len(body) * (index + 1) // number for index in range(number)]
    pieces: list[EncodedExample] = []
    for start, end in zip([0, *ends], ends, strict=False):
        ids = [*front, *body[start:end]]
        trained = [False] * len(front) + [True] * (end - start)
        trained[:1] = [False]
        pieces.append(EncodedExample(ids, trained, findings=() if pieces else whole.findings))
    return pieces

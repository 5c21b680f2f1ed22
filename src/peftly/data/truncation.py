"""Search for the longest text that fits a number of tokens, and long texts in pieces."""

from collections.abc import Callable, Sequence

from peftly.data.types import EncodedExample
from peftly.errors import DataError

__all__ = ["cut_into_pieces", "largest_fit"]


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

"""Rows as text: examples that are formatted on access."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from peftly.data.formats import RowFormat
from peftly.data.rows import Rows
from peftly.data.storage import LazySequence
from peftly.data.types import Example

__all__ = ["FormattedExamples"]


class FormattedExamples(LazySequence[Example]):
    """Examples of rows, or of some of the rows, in a row format.

    Attributes:
        rows: the rows.
        row_format: rule that turns a row into an example.
    """

    def __init__(
        self,
        rows: Rows,
        row_format: RowFormat,
        indices: Sequence[int] | None = None,
        num_messages: Sequence[int] | None = None,
    ) -> None:
        """Prepare the examples.

        Args:
            rows: the rows.
            row_format: rule that turns a row into an example.
            indices: index of each example's row; None: one example for every row.
            num_messages: number of messages of each example, where a conversation gives several examples; None: all.
        """
        self.rows, self.row_format = rows, row_format
        self._indices = range(len(rows)) if indices is None else indices
        self._num_messages = num_messages

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._indices)

    def element(self, index: int) -> Example:
        """Return the example with this index.

        Raises:
            DataError: its row does not fit the row format.
        """
        row_index = self._indices[index]
        example = self.row_format.example(self.rows.rows[row_index], self.rows.location(row_index))
        if self._num_messages is None or self._num_messages[index] == len(example.messages):
            return example
        return replace(example, messages=example.messages[: self._num_messages[index]])

    def location(self, index: int) -> str:
        """Return the location of an example's row for messages."""
        return self.rows.location(self._indices[index])

    def select(self, indices: Sequence[int], num_messages: Sequence[int] | None = None) -> "FormattedExamples":
        """Return some of the examples.

        Args:
            indices: indices of these examples.
            num_messages: number of messages of each of them; None: all.
        """
        chosen = array("q", map(self._indices.__getitem__, indices))
        return FormattedExamples(self.rows, self.row_format, chosen, num_messages)

    def with_format(self, row_format: RowFormat) -> "FormattedExamples":
        """Return the examples of the same rows in another row format.

        Args:
            row_format: rule that turns a row into an example.
        """
        return FormattedExamples(self.rows, row_format, self._indices, self._num_messages)

"""Rows as text: examples that are formatted on access."""

from array import array
from collections.abc import Sequence

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

    def __init__(self, rows: Rows, row_format: RowFormat, indices: Sequence[int] | None = None) -> None:
        """Prepare the examples.

        Args:
            rows: the rows.
            row_format: rule that turns a row into an example.
            indices: index of each example's row; None: one example for every row.
        """
        self.rows, self.row_format = rows, row_format
        self._indices = range(len(rows)) if indices is None else indices

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._indices)

    def element(self, index: int) -> Example:
        """Return the example with this index.

        Raises:
            DataError: its row does not fit the row format.
        """
        row_index = self._indices[index]
        return self.row_format.example(self.rows.rows[row_index], self.rows.location(row_index))

    def location(self, index: int) -> str:
        """Return the location of an example's row for messages."""
        return self.rows.location(self._indices[index])

    def select(self, indices: Sequence[int]) -> "FormattedExamples":
        """Return some of the examples.

        Args:
            indices: indices of these examples.
        """
        chosen = array("q", map(self._indices.__getitem__, indices))
        return FormattedExamples(self.rows, self.row_format, chosen)

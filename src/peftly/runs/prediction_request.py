"""What is to predict: a model and the form of its prompts, and rows that are checked before it is opened."""

from dataclasses import dataclass, replace

from peftly.data import DataSource, RowFormat, Rows, quoted, read_prompt_rows
from peftly.errors import ConfigError, DataError
from peftly.runs.opening import FoundRun, find_run
from peftly.runs.row_predictions import format_of_rows, unreadable_rows

__all__ = ["PredictionRequest", "prepare_rows"]


@dataclass(frozen=True)
class PredictionRequest:
    """A model and the form of its prompts, as a command or a caller names them.

    Attributes:
        run: run folder, folder of an ensemble, adapter folder, or Hub id of an adapter; None: an untouched base.
        base: base of the run, if it has moved; without a run, the base.
        template, labels: see `format_of_rows`; only for a model that records no row format.
        target: see `format_of_rows`; for a run, a field with the targets of another name than in the training rows.
    """

    run: str | None
    base: str | None = None
    template: str | None = None
    target: str | None = None
    labels: tuple[str, ...] = ()

    def find(self) -> FoundRun | None:
        """Find the files of the run; None for an untouched base.

        Raises:
            ConfigError: neither a run nor a base is named.
        """
        if self.run is None and self.base is None:
            raise ConfigError("give a run, or an untouched base with --base")
        return None if self.run is None else find_run(self.run, base=self.base)

    def row_format(self, rows: Rows, recorded: RowFormat | None) -> RowFormat:
        """Return the row format of the model for some rows.

        Args:
            rows: the rows.
            recorded: row format that the adapter records; None: there is none.

        Raises:
            ConfigError: a template is given and the adapter records one, or none of the two.
        """
        if recorded is None:
            return format_of_rows(rows, self.template, self.target, self.labels)
        given = {"template": self.template, "label": self.labels}
        for name, value in given.items():
            if value:
                raise ConfigError(f"--{name} does not fit: {self.run} records the format of its rows; leave it out")
        if self.target is not None and recorded.template is None:
            raise ConfigError(f"--target does not fit: {self.run} was trained without a template; leave it out")
        if self.target is not None and self.target not in rows.fields:
            raise DataError(
                f"{rows.name}: target {self.target!r} is no field of the rows; they have {quoted(rows.fields)}"
            )
        return recorded if self.target is None else replace(recorded, target=self.target)


def prepare_rows(
    request: PredictionRequest, source: DataSource, limit: int | None = None
) -> tuple[Rows, RowFormat, FoundRun | None]:
    """Read and check the rows for a model, before it is opened.

    Args:
        request: the model.
        source: rows, as for `predict`.
        limit: number of rows to read, from the first on; None: all.

    Returns:
        The rows, their row format, and the files of the run; None for an untouched base.

    Raises:
        AdapterError, ConfigError, DataError: as for `predict`.
    """
    rows = read_prompt_rows(source)
    if limit is not None:
        rows = rows.select(range(min(limit, len(rows))))
    found = request.find()
    row_format = request.row_format(rows, found.row_format if found else None)
    unreadable_rows(rows, row_format)
    return rows, row_format, found

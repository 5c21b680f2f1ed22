"""Folders of the adapters that a job saves: the best one, those on the way, and one after an interruption."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from peftly.adapters import save_adapter
from peftly.data import RowFormat
from peftly.errors import AdapterError
from peftly.training.run_log import RunLog
from peftly.utils import is_disk_full

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SavedAdapters", "weights_location"]


@dataclass(frozen=True)
class SavedAdapters:
    """The folders into which one job saves its adapter.

    Attributes:
        model: model with the adapter.
        adapter: name of the adapter; None: all adapters of the model.
        folder: folder of these folders; None: nothing is saved, as on other processes than the main one.
        row_format: row format of the examples, which is stored with the adapter.
        log: log that reports each folder.
        tokenizer: tokenizer to save with the adapter, where it is not that of the base.
    """

    model: "PreTrainedModel"
    adapter: str | None
    folder: Path | None
    row_format: RowFormat
    log: RunLog
    tokenizer: "PreTrainedTokenizerBase | None" = None

    def save(self, name: str) -> Path | None:
        """Save the adapter in the folder `name`; return the folder, if there is one."""
        if self.folder is None:
            return None
        notes = {"row_format": self.row_format.to_dict()}
        path = save_adapter(self.model, self.folder / name, name=self.adapter, notes=notes, tokenizer=self.tokenizer)
        self.log.save(path)
        return path

    def save_if_possible(self, name: str) -> None:
        """Save the adapter as `save` does; a full disk gives a note, not an error."""
        try:
            self.save(name)
        except AdapterError as error:
            if not is_disk_full(error):
                raise
            self.log.note(str(error))


def weights_location(folder: Path | None, weights: str = "the weights so far") -> str:
    """Return a sentence that says where weights are: in a folder, or only in the model."""
    return f"{weights} are in {folder or 'the model'}"

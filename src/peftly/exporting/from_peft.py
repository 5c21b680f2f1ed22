"""A folder of PEFT whose weights are a pickle, `adapter_model.bin`, as its versions up to 0.5 wrote them."""

from pathlib import Path

from peftly.adapters import CONFIG, with_plain_names
from peftly.exporting.foreign import Foreign, read_config, read_pickle

__all__ = ["BIN", "read_peft"]

BIN = "adapter_model.bin"
"""Weights of an adapter of PEFT, as a pickle."""


def read_peft(folder: Path, base: str | None) -> Foreign:
    """Read an adapter of PEFT.

    Args:
        folder: folder with `adapter_config.json` and `adapter_model.bin`.
        base: name of the base; None: that in the file.

    Raises:
        AdapterError: a file is missing, damaged or holds code.
    """
    config = read_config(folder / CONFIG)
    tensors = with_plain_names(read_pickle(folder / BIN), folder / BIN)
    return Foreign(config | ({"base_model_name_or_path": base} if base else {}), tensors)

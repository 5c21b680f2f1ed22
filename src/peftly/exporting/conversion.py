"""Adapters of other tools, written in PEFT's format."""

from __future__ import annotations

import json
from pathlib import Path

from huggingface_hub import snapshot_download

from peftly.adapters import CONFIG, TENSORS, AdapterFolder, not_fetched
from peftly.errors import AdapterError, PeftlyError
from peftly.exporting.foreign import Reader
from peftly.exporting.formats import Exported
from peftly.exporting.from_adapterhub import ADAPTERHUB_TENSORS, read_adapterhub
from peftly.exporting.from_litgpt import LITGPT_TENSORS, read_litgpt
from peftly.exporting.from_mlx import MLX_TENSORS, read_mlx
from peftly.exporting.from_peft import BIN, read_peft
from peftly.exporting.from_torchtune import read_torchtune
from peftly.exporting.output_folder import KIND, check_out
from peftly.exporting.saved_adapter import write_adapter
from peftly.utils import write_folder

__all__ = ["READERS", "convert"]

READERS = {
    "PEFT (adapter_model.bin)": Reader(read_peft, BIN),
    f"mlx-lm ({MLX_TENSORS})": Reader(read_mlx, MLX_TENSORS),
    f"litgpt ({LITGPT_TENSORS})": Reader(read_litgpt, LITGPT_TENSORS),
    f"AdapterHub ({ADAPTERHUB_TENSORS[0]})": Reader(read_adapterhub, ADAPTERHUB_TENSORS[0]),
    f"AdapterHub ({ADAPTERHUB_TENSORS[1]})": Reader(read_adapterhub, ADAPTERHUB_TENSORS[1]),
    "torchtune (adapter_*.pt)": Reader(read_torchtune, "adapter_*.pt"),
}
"""Formats by name, in the order in which they are tried. A new one is a file with a `read` function, and an entry."""

_PATTERNS = ("*.json", "*.yaml", *(reader.files for reader in READERS.values()))


def convert(
    source: str | Path, out: str | Path, *, base: str | Path | None = None, overwrite: bool = False
) -> Exported:
    """Write an adapter of another tool, or one of PEFT whose weights are a pickle, as peftly and PEFT open it.

    No code in the files is run. After an error `out` is as it was before.

    Args:
        source: folder of the adapter, or its Hub id: PEFT with `adapter_model.bin`, mlx-lm, litgpt, torchtune, or the
            library `adapters` of AdapterHub.
        out: output folder, missing or empty.
        base: name of the base, where the files name none that transformers opens, or it has moved.
        overwrite: replace the files of an earlier conversion in `out`.

    Returns:
        The output folder and notes for the user.

    Raises:
        AdapterError: the source is in no known format, damaged, holds code, or cannot be represented.
        BaseModelError: the base is needed, and cannot be found.
        ConfigError: `out` is not empty.
    """
    out = Path(out).expanduser().resolve()
    check_out(out, str(source), overwrite=overwrite)
    folder = _folder_of(source)
    name = next((name for name, reader in READERS.items() if any(folder.glob(reader.files))), None)
    if (folder / TENSORS).is_file() and (folder / CONFIG).is_file():
        raise AdapterError(f"{source} needs no conversion: peftly opens its {TENSORS}")
    if name is None:
        raise AdapterError(f"{source} holds no adapter that can be converted; peftly knows {', '.join(READERS)}")
    try:
        converted = READERS[name].read(folder, None if base is None else str(base))
    except PeftlyError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, StopIteration) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise AdapterError(f"{source} is not a sound adapter of {name}: {reason}") from None
    base_name = converted.config.get("base_model_name_or_path")
    with write_folder(out, kind=KIND, markers=(CONFIG,)) as target:
        write_adapter(target, converted.config, converted.tensors, _card(base_name, str(source)))
        AdapterFolder.read(target).tensors()  # what is written fits its settings
    named = f"open it with peftly.load({str(out)!r})"
    return Exported(out, [*converted.notes, named if base_name else f"{named[:-1]}, base=...): the files name no base"])


def _folder_of(source: str | Path) -> Path:
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or str(source).count("/") != 1 or str(source).startswith((".", "/", "~")):
        raise AdapterError(f"{source} is no folder; give the folder of an adapter, or its Hub id")
    try:
        return Path(snapshot_download(str(source), allow_patterns=list(_PATTERNS)))
    except Exception as error:
        raise not_fetched(str(source), error) from error


def _card(base: object, source: str) -> str:
    name = Path(source).name
    return f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\n---\n\nConverted by peftly from {name}.\n"

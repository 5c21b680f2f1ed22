"""The list of export formats, and the function that writes an adapter in one of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from peftly.adapters import CONFIG, check_source
from peftly.errors import ConfigError
from peftly.exporting.gguf import write_gguf
from peftly.exporting.gguf_lora import LORA_DTYPES, write_gguf_lora
from peftly.exporting.gguf_tensors import DTYPES
from peftly.exporting.output_folder import KIND, check_out
from peftly.exporting.peft import write_peft
from peftly.exporting.prompt_embeddings import write_prompt_embeddings
from peftly.exporting.request import Request
from peftly.exporting.vllm import write_vllm
from peftly.utils import write_folder

__all__ = ["FORMATS", "Exported", "Format", "export"]


class Format(NamedTuple):
    """An export format.

    Attributes:
        write: function that writes an adapter and returns notes for the user, one line each.
        summary: description of the written files in a few words.
        dtypes: dtypes to choose from, the default first; empty for a format without a choice.
    """

    write: Callable[[Request], list[str]]
    summary: str
    dtypes: tuple[str, ...] = ()


FORMATS = {
    "peft": Format(write_peft, "an adapter that Hugging Face PEFT loads"),
    "vllm": Format(write_vllm, "a LoRA adapter that vLLM serves beside its base"),
    "prompt-embeddings": Format(write_prompt_embeddings, "a soft prompt as the embeddings that servers take"),
    "gguf": Format(write_gguf, "the merged model as one file for llama.cpp", dtypes=tuple(DTYPES)),
    "gguf-lora": Format(
        write_gguf_lora, "a LoRA adapter as one file that llama.cpp loads beside its base", dtypes=LORA_DTYPES
    ),
}
"""Formats by name. A new format is one file with a `write` function, and one entry here."""


class Exported(NamedTuple):
    """Result of an export.

    Attributes:
        folder: folder with the written files.
        notes: lines for the user: how to use the files, and what was changed or left out.
    """

    folder: Path
    notes: list[str]


def export(
    adapter: str | Path,
    to: str,
    out: str | Path,
    *,
    base: str | Path | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write an adapter in the format of another tool. After an error `out` is as it was before.

    Args:
        adapter: adapter folder, run folder, or Hub id of an adapter, as `load` takes it; for `gguf` also a base.
        to: name of a format in `FORMATS`: `peft`, `vllm`, `prompt-embeddings`, `gguf` or
            `gguf-lora`.
        out: output folder, missing or empty.
        base: base of the adapter, where it is not the one that the adapter names, or has moved.
        dtype: dtype of the weights in a GGUF file: f16 (the default), bf16, f32 or q8_0; for `gguf-lora` f32 (the
            default), f16 or bf16.
        overwrite: replace the files of an earlier export in `out`.

    Returns:
        The output folder and notes for the user.

    Raises:
        ConfigError: the format or the dtype does not exist, or `out` is not empty.
        AdapterError: there is no adapter, or the format cannot represent it; the message names the reason and an
            alternative.
        BaseModelError: the base is needed, and cannot be opened or has an unsupported architecture.
        MethodError: the adapter has to be merged, and its method cannot be merged.
    """
    if to not in FORMATS:
        raise ConfigError(f"there is no format {to!r}; there are {', '.join(FORMATS)}")
    check_source(adapter)
    chosen = FORMATS[to]
    if dtype is not None and dtype not in chosen.dtypes:
        possible = f"is one of {', '.join(chosen.dtypes)}" if chosen.dtypes else "is for gguf and gguf-lora only"
        raise ConfigError(f"dtype={dtype!r} is not for {to}: it {possible}")
    out = Path(out).expanduser().resolve()
    check_out(out, str(adapter), overwrite=overwrite)
    with write_folder(out, kind=KIND, markers=(CONFIG,)) as folder:
        weights_dtype = dtype or next(iter(chosen.dtypes), None)
        moved_base = None if base is None else str(base)
        notes = chosen.write(Request(str(adapter), folder, out, weights_dtype, moved_base))
    return Exported(out, notes)

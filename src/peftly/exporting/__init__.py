"""Adapters in the formats of other tools: one file a format here, and the one list of them."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from peftly.errors import ConfigError
from peftly.exporting._folder import check_out, mark
from peftly.exporting._request import Request
from peftly.exporting.gguf import DTYPES, write_gguf
from peftly.exporting.peft import write_peft
from peftly.exporting.prompt_embeddings import write_prompt_embeddings
from peftly.exporting.vllm import write_vllm
from peftly.utils import whole

__all__ = ["FORMATS", "Exported", "Format", "export"]


class Format(NamedTuple):
    """A row of the list.

    Attributes:
        write: what writes it; it returns what a person should know about the result, line by line.
        summary: what is written, in a few words.
        dtypes: those to choose from, the default first; none where there is nothing to choose.
    """

    write: Callable[[Request], list[str]]
    summary: str
    dtypes: tuple[str, ...] = ()


FORMATS = {
    "peft": Format(write_peft, "an adapter that Hugging Face PEFT loads"),
    "vllm": Format(write_vllm, "a LoRA adapter that vLLM serves beside its base"),
    "prompt-embeddings": Format(write_prompt_embeddings, "a soft prompt as the embeddings that servers take"),
    "gguf": Format(write_gguf, "the merged model as one file for llama.cpp", dtypes=tuple(DTYPES)),
}


class Exported(NamedTuple):
    """What has been written.

    Attributes:
        folder: where.
        notes: what to know about it: how to use it, and what was changed or left out.
    """

    folder: Path
    notes: list[str]


def export(
    adapter: str | Path, to: str, out: str | Path, *, dtype: str | None = None, overwrite: bool = False
) -> Exported:
    """Write an adapter as another tool reads it, whole or not at all.

    Args:
        adapter: an adapter folder, a run folder, or the Hub id of an adapter, as `load` takes it; for `gguf` a base as
            well.
        to: a name in `FORMATS`: `peft`, `vllm`, `prompt-embeddings` or `gguf`.
        out: the folder to write, which is missing or empty.
        dtype: of the weights in a GGUF file: f16 (the default), bf16, f32 or q8_0.
        overwrite: replace what an earlier export has left in `out`.

    Raises:
        ConfigError: there is no such format or dtype, or `out` holds something.
        AdapterError: there is no adapter, or it is one that the format has no room for; the message says why, and what
            to do instead.
        BaseModelError: the base is needed, and cannot be opened or is of an architecture that is not supported.
        MethodError: it is to be merged, and cannot be.
    """
    if to not in FORMATS:
        raise ConfigError(f"there is no format {to!r}; there are {', '.join(FORMATS)}")
    chosen = FORMATS[to]
    if dtype is not None and dtype not in chosen.dtypes:
        possible = f"is one of {', '.join(chosen.dtypes)}" if chosen.dtypes else "is for gguf only"
        raise ConfigError(f"dtype={dtype!r} is not for {to}: it {possible}")
    out = Path(out).expanduser().resolve()
    check_out(out, str(adapter), overwrite=overwrite)
    with whole(out) as folder:
        number = dtype or next(iter(chosen.dtypes), None)
        notes = chosen.write(Request(str(adapter), folder, out, number))
        mark(folder)
    return Exported(out, notes)

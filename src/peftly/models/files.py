"""Where the files of a base are: a folder, a `.gguf` file, the cache of a short name, or the Hub; and what they are."""

import difflib
import re
from pathlib import Path

from peftly.errors import BaseModelError
from peftly.models.wheels import WHEEL_BASES, wheel_base

__all__ = ["check_files", "file_names", "locate"]

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)
_SHORT_NAMES = " or ".join(WHEEL_BASES)


def locate(spec: str) -> Path | str:
    """Return the folder or `.gguf` file that `spec` names, or `spec` itself where the Hub is to be asked for it."""
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
    return spec if _hub_answers() else _cached(spec)


def _hub_answers() -> bool:
    """Ask the Hub (or HF_ENDPOINT) once: its client would try every file for half a minute, cached or not."""
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)
    except Exception:  # noqa: BLE001 - of whichever HTTP library the client is built on; HF_HUB_OFFLINE raises too
        return False
    return True


def _cached(spec: str) -> Path:
    """Return the folder in which the Hub's cache keeps `spec`."""
    from huggingface_hub import constants, try_to_load_from_cache

    config = try_to_load_from_cache(spec, "config.json")
    if isinstance(config, str):
        return Path(config).parent
    hub = "the Hub does not answer: check the network"
    if constants.is_offline_mode():
        hub = "HF_HUB_OFFLINE forbids the Hub: unset it"
    raise BaseModelError(
        f"{spec} is neither a folder nor in the Hub's cache here, and {hub}, "
        f"try HF_ENDPOINT (a mirror) or HTTPS_PROXY, or use {_SHORT_NAMES}, which come from the package index"
    )


def file_names(spec: str, source: Path | str) -> set[str]:
    """Return the names of the files in a folder or a Hub repository, without those in folders below."""
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


def check_files(spec: str, names: set[str], *, allow_pickle: bool) -> None:
    """Refuse what transformers would refuse at length, unpickle, or ask a service on the Hub to convert."""
    has_weights = any(name.endswith(".safetensors") and not name.startswith("adapter_") for name in names)
    if "adapter_config.json" in names and (not has_weights or "config.json" not in names):
        raise BaseModelError(f"{spec} is an adapter, not a base: open it with peftly.load")
    if "adapter_config.json" in names:  # which transformers would put on the model without a word
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

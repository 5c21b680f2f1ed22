"""Contents of the small files of a base: what they name is checked before other libraries follow it."""

import json
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

from peftly.errors import BaseModelError

__all__ = ["check_config", "check_index", "check_links", "is_inside", "weights_files"]

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"
_INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""Files that name the shards of large weights, of safetensors and of pickles."""

_NUM_LAYERS = re.compile(r"num_hidden_layers|n_layers?|num_layers|(num_)?(encoder|decoder)_layers")
_MOST_LAYERS, _MOST_LABELS = 10_000, 1_000_000
_LARGE = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".h5", ".msgpack")
"""Endings of files with weights, which may lie on another disk than the other files."""


def check_config(spec: str, source: Path | str) -> None:
    """Do nothing if the config of a base can be read, and a model of its size can be built.

    Transformers makes an object for each layer and a name for each label, before any weight is read.

    Args:
        spec: name of the base, for messages.
        source: folder of the base, or its Hub id.

    Raises:
        BaseModelError: the config is no JSON object, or states impossible numbers.
    """
    file = _fetched(source, _CONFIG)
    try:
        config = _read_json(file)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{spec} cannot be opened: its {_CONFIG} is damaged: {error}") from error
    for name, value in _numbers(config):
        limit = _MOST_LABELS if name == "num_labels" else _MOST_LAYERS if _NUM_LAYERS.fullmatch(name) else None
        if limit is not None and not 0 <= value <= limit:
            raise BaseModelError(f"{spec} cannot be opened: its {_CONFIG} states {name}: {value}")


def check_index(spec: str, names: Set[str], source: Path | str) -> None:
    """Do nothing if the indices of a base name shards in its own folder only; those of a local folder must exist.

    Args:
        spec: name of the base, for messages.
        names: names of its files.
        source: folder of the base, or its Hub id.

    Raises:
        BaseModelError: an index is damaged, or names a missing file or one outside the folder.
    """
    for index in sorted(names & set(_INDICES)):
        file = _fetched(source, index)
        try:
            paths = [PurePosixPath(shard) for shard in _shards(file)]
        except (OSError, ValueError) as error:
            raise BaseModelError(f"{spec} cannot be opened: its {index} is damaged: {error}") from error
        for path in paths:
            if path.is_absolute() or ".." in path.parts or re.search(r"[\\:\0]", str(path)):
                raise BaseModelError(
                    f"{spec} was refused: its {index} names {str(path)!r}, which is outside its folder"
                )
            if isinstance(source, Path) and not (source / path).is_file():
                raise BaseModelError(f"{spec} is not complete: its {index} names {str(path)!r}, which is missing")


def weights_files(names: Set[str], source: Path | str) -> list[Path]:
    """Return the safetensors files from which transformers opens a base; empty where there are none.

    Args:
        names: names of the files of the base.
        source: folder of the base, or its Hub id, for the files in the Hub's cache.

    Raises:
        OSError, ValueError: a file is not here, or the index is damaged.
    """
    if _WEIGHTS in names:
        return [_cached(source, _WEIGHTS)]
    shards = _shards(_cached(source, _INDICES[0])) if _INDICES[0] in names else []
    return [_cached(source, name) for name in shards]


def is_inside(file: Path, folder: Path) -> bool:
    """Return whether a file lies in a folder, or is a link to a file in it.

    A snapshot in the Hub's cache is a folder of links to the blobs of its repository, which belong to it.
    """
    target, root = file.resolve(), folder.resolve()
    repository = root.parent.parent
    is_snapshot = root.parent.name == "snapshots" and repository.name.startswith("models--")
    return target.is_relative_to(root) or (is_snapshot and target.parent == repository / "blobs")


def check_links(spec: str, source: Path | str) -> None:
    """Do nothing if the small files of a base, which a model made from it repeats, are its own.

    A link to a private file, as the vocabulary of a tokenizer for instance, would be published with the model. Weights
    may be links to another disk, and any file may be a link into the Hub's cache, as its client makes them.

    Args:
        spec: name of the base, for messages.
        source: folder or GGUF file of the base, or its Hub id.

    Raises:
        BaseModelError: a file is a link out of the folder of the base.
    """
    if not isinstance(source, Path) or not source.is_dir():
        return
    for file in sorted(source.iterdir()):
        is_small = file.is_symlink() and file.suffix not in _LARGE
        if is_small and not is_inside(file, source) and not _is_blob(file.resolve()):
            raise BaseModelError(
                f"{spec} was refused: its {file.name} is a link to {file.resolve()}, which would be published with the "
                "new model; put a copy in its place if the file is part of the base"
            )


def _is_blob(file: Path) -> bool:
    """Return whether a file is in the Hub's cache; earlier versions of its client fill folders with links to there."""
    return file.parent.name == "blobs" and file.parent.parent.name.startswith("models--")


def _shards(index: Path) -> list[str]:
    """Return the names of the files in an index.

    Raises:
        OSError, ValueError: the index cannot be read or is damaged.
    """
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
        raise ValueError("weight_map does not map names of tensors to names of files")
    return sorted(set(shards.values()))


def _read_json(file: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        OSError, ValueError: the file cannot be read, or holds no object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds no JSON object but a {type(content).__name__}")
    return content


def _fetched(source: Path | str, name: str) -> Path:
    """Return the path of a file of a base; one of the Hub is fetched if it is not in the cache."""
    if isinstance(source, Path):
        return source / name
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(source, name))


def _cached(source: Path | str, name: str) -> Path:
    if isinstance(source, Path):
        return source / name
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(source, name)
    if not isinstance(path, str):
        raise FileNotFoundError(f"{name} of {source} is not in the Hub's cache")
    return Path(path)


def _numbers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield names and values of the whole numbers in a config and in configs inside it."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
        elif isinstance(value, int):
            yield name, value

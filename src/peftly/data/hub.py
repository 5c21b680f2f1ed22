"""Data sets of the Hub: their spelling in settings, and their rows. No code of the Hub is run."""

import re
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, NamedTuple

from huggingface_hub import HfApi
from huggingface_hub.hf_api import RepoFolder

from peftly.data.arrow import import_datasets, rows_of_splits
from peftly.data.hub_access import hub_answers, hub_problem, only_cached
from peftly.data.rows import Rows, first_line
from peftly.errors import DataError

__all__ = ["HubSource", "hub_source", "read_hub", "spelling_of"]

_SPELLING = re.compile(
    r"(?P<name>\w[\w.-]*(/\w[\w.-]*)?)(@(?P<revision>[\w./-]+))?(:(?P<config>[^\[\]:/]+))?(\[(?P<split>[^\s].*)\])?"
)
_PARQUET = "refs/convert/parquet"
"""Branch of the Hub with the rows of a data set in Parquet, in a folder for each configuration."""


class HubSource(NamedTuple):
    """A data set on the Hub.

    Attributes:
        name: id of the data set.
        config: its configuration; None: the only one, or the default one.
        split: its split, as `datasets` writes it: "train", "train[:100]", "train[10%:]+test"; None: all splits.
        revision: branch, tag or commit; None: main.
    """

    name: str
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        config = f":{self.config}" if self.config else ""
        return f"{self.name}{revision}{config}{f'[{self.split}]' if self.split else ''}"


def hub_source(source: str) -> HubSource | None:
    """Return the data set that `user/name@revision:configuration[split]` names; None if the text is no such name."""
    match = _SPELLING.fullmatch(source)
    return HubSource(**{key: match[key] for key in HubSource._fields}) if match else None


def spelling_of(source: Mapping[str, Any]) -> str:
    """Return the spelling of a data set that a mapping names: `{name:, config:, split:, revision:}`.

    Raises:
        ValueError: a key is not known, the name is missing, or a value is no such text.
    """
    unknown = [key for key in source if key not in HubSource._fields]
    if unknown or "name" not in source:
        raise ValueError(
            f"a data set on the Hub is a mapping with {', '.join(HubSource._fields)}"
            + (f", and {unknown[0]} is none of these" if unknown else ", and name is missing")
        )
    values = {key: str(value) for key, value in source.items() if value is not None}
    found = HubSource(**values)
    if hub_source(str(found)) != found:
        raise ValueError(f"{found} is no name of a data set on the Hub; write user/name:configuration[split]")
    return str(found)


def read_hub(source: HubSource) -> dict[str, Rows]:
    """Read a data set of the Hub.

    Args:
        source: data set, configuration and split.

    Returns:
        Rows of each split; one split, or a data set without splits, has the name "".

    Raises:
        DataError: the Hub has no such data set, configuration or split, or cannot be reached, or the package datasets
            is missing.
    """
    library = import_datasets(f"{source}: no such file or folder, and data sets on the Hub need")
    answers = hub_answers()
    try:
        with nullcontext() if answers else only_cached():
            return _read(library, source)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - no network, no such repository, a configuration to choose, ...
        if not answers:
            raise DataError(f"{source}: no such file or folder, and {hub_problem()}") from None
        raise DataError(_problem(source, error)) from None


def _read(library: Any, source: HubSource) -> dict[str, Rows]:
    """Return the rows of each split."""
    try:
        content = _loaded(library, source.name, source.config, split=source.split, revision=source.revision)
    except RuntimeError as error:
        if "scripts are no longer supported" not in str(error) or source.revision:
            raise
        return _read_parquet_copy(library, source)
    return rows_of_splits(str(source), content)


def _loaded(library: Any, *arguments: str | None, **options: str | None) -> Any:
    """Call `load_dataset` with the options that are set."""
    given = [argument for argument in arguments if argument is not None]
    return library.load_dataset(*given, **{name: value for name, value in options.items() if value is not None})


def _read_parquet_copy(library: Any, source: HubSource) -> dict[str, Rows]:
    """Return the rows of a data set with a loading script, which is not run, from the copy that the Hub makes."""
    tree = HfApi().list_repo_tree(source.name, repo_type="dataset", revision=_PARQUET)
    configs = [entry.path for entry in tree if isinstance(entry, RepoFolder)]
    config = source.config or (configs[0] if len(configs) == 1 else None)
    if config not in configs:
        raise DataError(_no_config(source, configs))
    content = _loaded(library, source.name, data_dir=config, split=source.split, revision=_PARQUET)
    rows = rows_of_splits(str(source), content)
    note = f"{source.name} has a loading script, which is not run: its rows are those of the Hub's copy in Parquet"
    return {name: replace(part, notes=(*part.notes, note)) for name, part in rows.items()}


def _problem(source: HubSource, error: Exception) -> str:
    """Return a line on an error of `datasets`, with the configurations or splits that there are."""
    text = " ".join(str(error).split())
    listed = re.search(r"(available configs|Available|Should be one of):? \[(.*?)\]", text)
    names = re.findall(r"'([^']+)'", listed[2]) if listed else []
    if "Config name is missing" in text or text.startswith("BuilderConfig"):
        return _no_config(source, names)
    if text.startswith("Unknown split"):
        return f"{source}: there is no such split; {source.name} has {', '.join(names)}"
    if text.startswith("Unrecognized instruction format"):
        example = source._replace(split="train[:100]")
        return f"{source}: {source.split} is no split; write it as in '{example}' or '{example._replace(split='test')}'"
    reason = first_line(error)
    return f"{source}: no such file or folder, and the Hub gives no data set of that name ({reason})"


def _no_config(source: HubSource, names: list[str]) -> str:
    shown = ", ".join(names) or "none"
    example = source._replace(config=names[0] if names else "configuration")
    if source.config is None:
        return f"{source}: name a configuration of the data set, as in '{example}'; there are {shown}"
    return f"{source}: there is no configuration {source.config!r}; there are {shown}"

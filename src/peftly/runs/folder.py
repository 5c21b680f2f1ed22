"""The folder of a run: which files peftly writes there, when a new run may have it, and how it is opened again.

config.yaml      the resolved configuration, the first file of a run
data.json        what was trained on, and how a row becomes text
metrics.jsonl    one line a step, an evaluation or a saved adapter
checkpoint.safetensors  while the run is not at its end: what it can go on from
adapter/         the best adapter
step-N/          the adapter after N steps
adapter-interrupted/  the adapter at Ctrl-C
evaluation.json  scores, predictions and samples of the test (or validation) split
summary.json     sizes, durations, versions and hardware
report.html      all of it to look at

Of runs that were trained side by side each has such a folder, and the one around them holds config.yaml, results.json
(their scores beside each other) and report.html.
"""

import json
import shlex
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peftly.adapters import find_adapter, load, load_adapter, read_notes
from peftly.data import RowFormat
from peftly.errors import AdapterError, ConfigError
from peftly.models import load_base
from peftly.runs.config import RunConfig, one_run
from peftly.runs.config_file import load_config
from peftly.training import CHECKPOINT
from peftly.utils import program

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from peftly.data import RowFormat
    from peftly.evaluation import Vote
    from peftly.runs.config import AnyConfig, RunConfig

__all__ = [
    "RESULTS",
    "OpenEnsemble",
    "OpenRun",
    "adapter_folders",
    "check_out",
    "clear_run",
    "drop_leftovers",
    "folder_bytes",
    "open_base",
    "open_ensemble",
    "open_run",
    "plain",
    "read_config",
    "replacing",
    "resume_command",
    "write_json",
    "write_text",
]

RESULTS = "results.json"
INTERRUPTED = "adapter-interrupted"
SUMMARY = "summary.json"
FILES = ("config.yaml", "data.json", "metrics.jsonl", CHECKPOINT, "evaluation.json", SUMMARY, RESULTS, "report.html")
ADAPTER_FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "training.safetensors",
    "README.md",
    "peftly.json",
)


class OpenRun(NamedTuple):
    """A model ready for use.

    Attributes:
        model, tokenizer: the base, adapted unless it is the untouched base that was asked for.
        row_format: how a row becomes text; None: the adapter does not say.
        config: of the run, if it was opened from a run folder.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    row_format: "RowFormat | None" = None
    config: "RunConfig | None" = None


class OpenEnsemble(NamedTuple):
    """The members of an ensemble, ready for use.

    Attributes:
        opened: the model with all of them.
        members: their names.
        vote: how they decide together.
    """

    opened: OpenRun
    members: tuple[str, ...]
    vote: "Vote"


def check_out(out: Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Refuse a folder that a run cannot have; nothing is changed.

    Args:
        out: the folder.
        overwrite: whether the run in it may be replaced.
        resume: whether the run in it is to go on.

    Raises:
        ConfigError: it is a file, holds another run, or holds something else; or no run that could go on.
    """
    if resume:
        _check_resumable(out)
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out: {out} is a file; name a folder")
    if not out.is_dir() or not any(out.iterdir()):
        return
    if not _is_run(out):
        raise ConfigError(f"out: {out} exists and holds files that are not from a run; choose a new or empty folder")
    if not overwrite:
        go_on = "" if _is_finished(out) else f", or go on with it: {resume_command(out)}"
        raise ConfigError(
            f"out: {out} holds another run; choose another folder, or replace that run with --overwrite{go_on}"
        )


def _check_resumable(out: Path) -> None:
    strange = [file.name for file in out.iterdir() if not _is_own(out, file)] if out.is_dir() else []
    begun = any((run / "data.json").is_file() for run in (out, *_parts(out)))
    if not (out / "config.yaml").is_file() or (strange and not begun):
        raise ConfigError(f"there is no run in {out} that could go on: name the folder of one, with its config.yaml")
    if out.resolve() in [part.resolve() for part in _parts(out.resolve().parent)]:
        raise ConfigError(f"{out} is one of several runs that go on together: {resume_command(out.parent)}")
    if _is_finished(out):
        raise ConfigError(f"the run in {out} has come to its end; for a longer one, train anew with more epochs")


def resume_command(out: Path) -> str:
    """Return what to type to go on with the run in `out`."""
    return f"{program()} train --resume {shlex.quote(str(out))}"


def _is_own(out: Path, file: Path) -> bool:
    """Whether a file or folder in `out` has a name that something of a run has."""
    return file.name in FILES or file.name.startswith(".") or file in (*_places(out), *_parts(out))


def drop_leftovers(out: Path) -> None:
    """Delete from a run that has come to its end what was only for going on with it, and what kills have left."""
    (out / CHECKPOINT).unlink(missing_ok=True)
    for pattern in (f".{CHECKPOINT}-*", ".adapter-*", ".step-*", ".replaced-*"):
        for scratch in out.glob(pattern):
            shutil.rmtree(scratch, ignore_errors=True)
    left = out / INTERRUPTED
    for file in (inner / name for inner in (*_adapters_below(left), left) for name in ADAPTER_FILES):
        if file.is_file():
            file.unlink()
            _remove_empty(file.parent, out)


def _is_finished(out: Path) -> bool:
    return any((out / name).is_file() for name in (SUMMARY, RESULTS)) and not (out / CHECKPOINT).is_file()


def clear_run(out: Path) -> None:
    """Delete the files of a run, and the folder if nothing else is in it; what peftly did not write stays."""
    for file in _files(out):
        file.unlink()
        _remove_empty(file.parent, out)


@contextmanager
def replacing(out: Path) -> Iterator[None]:
    """Make room in `out` for the run inside the block; the run of before comes back if no adapter comes of the new one.

    Until then it is kept in a hidden folder in `out`, which a process that is killed leaves behind.
    """
    before = _files(out)
    aside = Path(tempfile.mkdtemp(prefix=".replaced-", dir=out)) if before else None
    if aside is not None:
        _move(before, out, aside)
    try:
        yield
    finally:
        if not any(adapter_folders(run) for run in (out, *_parts(out))):
            clear_run(out)
            if aside is not None:
                _move([file for file in aside.rglob("*") if file.is_file()], aside, out)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def _move(files: Iterable[Path], source: Path, target: Path) -> None:
    for file in files:
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        file.replace(place)
        _remove_empty(file.parent, source)


def _files(out: Path) -> list[Path]:
    """Return the files of a run, in the order in which they may go: what says whose the folder is goes last."""
    found = [file for part in _parts(out) for file in _files(part)]
    for folder in _places(out):
        found += [inner / name for inner in (*_adapters_below(folder), folder) for name in ADAPTER_FILES]
    return [file for file in (*found, *(out / name for name in reversed(FILES))) if file.is_file()]


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove a folder with nothing in it, and those around it, up to and with `top`."""
    while folder.is_relative_to(top) and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def open_run(spec: str, *, name: str = "default") -> OpenRun:
    """Open a run folder, an adapter folder or an adapter on the Hub, with the base that it names.

    Raises:
        ConfigError: the folder is of several runs that were trained side by side.
    """
    folder = Path(spec)
    found = read_config(folder)
    config = None if found is None else one_run(found, spec)
    if (folder / "config.yaml").is_file() and not (folder / "adapter").is_dir():
        raise AdapterError(f"{spec}: this run has no adapter folder; it was stopped before its first adapter was saved")
    adapter = find_adapter(spec)
    how = ("dtype", "device", "device_map")  # how it was quantised the adapter says itself
    settings: dict[str, Any] = {} if config is None else {name: getattr(config, name) for name in how}
    base = load(adapter, name=name, **settings)
    noted = read_notes(adapter).get("row_format")
    return OpenRun(base.model, base.tokenizer, RowFormat.from_dict(noted) if noted else None, config)


def open_ensemble(spec: str) -> OpenEnsemble | None:
    """Open the members of an ensemble on one base, under their names; None if this is any other run or adapter.

    Raises:
        AdapterError: a member is missing, or has been trained anew on rows of another shape.
    """
    folder = Path(spec)
    config = read_config(folder)
    if not isinstance(config, RunConfig) or config.ensemble is None:
        return None
    first, *others = config.parts()
    opened = open_run(str(folder / first), name=first)
    for name in others:
        member = find_adapter(folder / name)
        if read_notes(member).get("row_format") != read_notes(find_adapter(folder / first)).get("row_format"):
            raise AdapterError(
                f"{folder}: {name} was trained on rows of another shape than {first}, so they cannot vote"
            )
        load_adapter(opened.model, member, name=name)
    return OpenEnsemble(opened, (first, *others), config.ensemble.vote)


def open_base(spec: str) -> OpenRun:
    """Open an untouched base."""
    base = load_base(spec)
    return OpenRun(base.model, base.tokenizer)


def read_config(folder: Path) -> "AnyConfig | None":
    """Return the configuration of the run in `folder` (or of the run that the adapter in `folder` belongs to)."""
    for place in (folder, folder.parent):
        if (place / "config.yaml").is_file() and (place == folder or folder in _places(place)):
            return load_config(place / "config.yaml", stored=True)
    return None


def folder_bytes(folder: Path) -> int:
    """Return how many bytes the files of a folder hold."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def write_json(file: Path, content: dict[str, Any]) -> None:
    """Write a JSON object for people and programs to read."""
    write_text(file, json.dumps(plain(content), ensure_ascii=False, indent=1) + "\n")


def write_text(file: Path, text: str) -> None:
    """Write a file, whole or not at all."""
    scratch = file.with_name(f".{file.name}-new")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(file)


def plain(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` as JSON has it: tuples are lists, and infinity, for which it has no word, is null."""
    values: dict[str, Any] = json.loads(json.dumps(content), parse_constant=lambda _: None)
    return values


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file() or (folder / "adapter" / "adapter_config.json").is_file()


def adapter_folders(out: Path) -> list[Path]:
    """Return the folders of a run that hold an adapter, or adapters that were trained together."""
    return [folder for folder in _places(out) if any(folder.rglob("adapter_config.json"))]


def _places(out: Path) -> list[Path]:
    return [out / "adapter", out / INTERRUPTED, *out.glob("step-*")]


def _adapters_below(folder: Path) -> list[Path]:
    """Return the folders of adapters that were trained together."""
    return [file.parent for file in folder.glob("*/adapter_config.json")]


def _parts(out: Path) -> list[Path]:
    """Return the folders of runs that were trained side by side in `out`; none if its configuration is unreadable."""
    if not (out / "config.yaml").is_file():
        return []
    try:
        return [out / name for name in load_config(out / "config.yaml", stored=True).parts()]
    except ConfigError:
        return []

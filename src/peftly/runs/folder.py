"""The folder of a run: names of its files, and its configuration.

config.yaml            resolved configuration, the first file of a run
data.json              report on the data, and the row format
metrics.jsonl          one line per step, evaluation and saved adapter
checkpoint.safetensors state of an unfinished run
adapter/               best adapter
step-N/                adapter after N steps
adapter-interrupted/   adapter at Ctrl-C
evaluation.json        scores, predictions and samples of the test (or validation) split
summary.json           sizes, durations, versions and hardware
report.html            page made from the other files

Runs that are trained side by side have one such folder each, inside a folder with config.yaml, results.json (the scores
of all runs) and report.html.
"""

from pathlib import Path

from peftly.adapters import ADAPTER_FILES, CONFIG
from peftly.errors import ConfigError
from peftly.runs.config import AnyConfig
from peftly.runs.config_file import load_config
from peftly.training import CHECKPOINT

__all__ = [
    "INTERRUPTED",
    "RESULTS",
    "adapter_files",
    "adapter_folders",
    "has_name_of_run",
    "is_finished",
    "is_run",
    "part_folders",
    "read_config",
    "run_files",
]

RESULTS = "results.json"
INTERRUPTED = "adapter-interrupted"
_SUMMARY = "summary.json"
_RUN_FILES = (
    "config.yaml",
    "data.json",
    "metrics.jsonl",
    CHECKPOINT,
    "evaluation.json",
    _SUMMARY,
    RESULTS,
    "report.html",
)
"""All files of a run except its adapters. The first one marks the folder, and is deleted last."""


def read_config(folder: Path) -> AnyConfig | None:
    """Return the configuration of the run in `folder`, or of the run that the adapter in `folder` belongs to.

    Returns:
        The configuration; None if `folder` belongs to no run.
    """
    for candidate in (folder, folder.parent):
        if (candidate / "config.yaml").is_file() and (candidate == folder or folder in _adapter_paths(candidate)):
            return load_config(candidate / "config.yaml", stored=True)
    return None


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run."""
    return (folder / "config.yaml").is_file() or (folder / "adapter" / CONFIG).is_file()


def is_finished(out: Path) -> bool:
    """Return whether the run in `out` reached its end."""
    return any((out / name).is_file() for name in (_SUMMARY, RESULTS)) and not (out / CHECKPOINT).is_file()


def has_name_of_run(out: Path, entry: Path) -> bool:
    """Return whether a file or folder in `out` has a name that peftly uses in a run folder."""
    return entry.name in _RUN_FILES or entry.name.startswith(".") or entry in (*_adapter_paths(out), *part_folders(out))


def part_folders(out: Path) -> list[Path]:
    """Return the folders of runs that are trained side by side in `out`; none if config.yaml is unreadable."""
    if not (out / "config.yaml").is_file():
        return []
    try:
        return [out / name for name in load_config(out / "config.yaml", stored=True).parts()]
    except ConfigError:
        return []


def adapter_folders(out: Path) -> list[Path]:
    """Return the folders in a run folder that hold an adapter, or adapters that were trained together."""
    return [folder for folder in _adapter_paths(out) if any(folder.rglob(CONFIG))]


def run_files(out: Path) -> list[Path]:
    """Return the existing files of a run in an order for deletion: config.yaml, which marks the folder, is the last."""
    files = [file for part in part_folders(out) for file in run_files(part)]
    files += [file for folder in _adapter_paths(out) for file in adapter_files(folder)]
    return [*files, *(out / name for name in reversed(_RUN_FILES) if (out / name).is_file())]


def adapter_files(folder: Path) -> list[Path]:
    """Return the existing files of the adapter in `folder`, or of the adapters that were trained together."""
    together = [file.parent for file in folder.glob(f"*/{CONFIG}")]
    return [inner / name for inner in (*together, folder) for name in ADAPTER_FILES if (inner / name).is_file()]


def _adapter_paths(out: Path) -> list[Path]:
    """Return the paths of adapters in a run folder, whether or not they exist."""
    return [out / "adapter", out / INTERRUPTED, *out.glob("step-*")]

"""The folder of a run: names of its files, and its configuration.

.peftly.json           mark of a run folder; it says whether the run is finished
config.yaml            resolved configuration
data.json              report on the data, the row format, and digests of the rows
metrics.jsonl          one line per step, evaluation and saved adapter
checkpoint-N.safetensors  state of an unfinished run after N steps
adapter/               best adapter
step-N/                adapter after N steps
adapter-interrupted/   adapter at Ctrl-C
trackers/              files of the trackers that train.report_to names
evaluation.json        scores, predictions and samples of the test (or validation) split
summary.json           sizes, durations, versions and hardware
report.html            page made from the other files

Runs that are trained side by side have one such folder each, inside a folder with its own mark and config.yaml,
results.json (the scores of all runs) and report.html. Runs on several bases have such a folder for each base, inside
another one.
"""

import re
from contextlib import suppress
from pathlib import Path

from peftly.adapters import ADAPTER_FILES, CONFIG, TOKENIZER_FILES
from peftly.errors import ConfigError
from peftly.runs.config import AnyConfig, JobsConfig
from peftly.runs.config_file import load_config
from peftly.training import TRACKERS, checkpoint_files
from peftly.utils import MARK, read_mark, recover

__all__ = [
    "INTERRUPTED",
    "RESULTS",
    "RUN",
    "adapter_files",
    "adapter_folders",
    "is_finished",
    "is_run",
    "part_folders",
    "read_config",
    "recover_run",
    "run_files",
    "run_of",
    "runs_in",
]

RUN = "a run"
"""Kind of a run folder, in its mark."""

RESULTS = "results.json"
INTERRUPTED = "adapter-interrupted"
_SUMMARY = "summary.json"
_RUN_FILES = (
    MARK,
    "config.yaml",
    "data.json",
    "metrics.jsonl",
    "evaluation.json",
    _SUMMARY,
    "report.html",
)
"""All files of a run except its adapters and checkpoints. The first one marks the folder, and is deleted last."""

_STEP = re.compile(r"step-\d+")


def read_config(folder: Path) -> AnyConfig | None:
    """Return the configuration of the run in `folder`, or of the run that the adapter in `folder` belongs to.

    Returns:
        The configuration; None if `folder` belongs to no run.
    """
    recover(folder)
    run = run_of(folder)
    return None if run is None else load_config(run / "config.yaml", stored=True)


def run_of(folder: Path) -> Path | None:
    """Return the run folder that a folder is, or that an adapter's folder is in; None if there is none."""
    for candidate in (folder, folder.parent):
        if (candidate / "config.yaml").is_file() and (candidate == folder or folder in _adapter_paths(candidate)):
            return candidate
    return None


def recover_run(out: Path) -> None:
    """Complete what killed processes were replacing in a run folder and below, and delete what they were writing.

    Raises:
        ConfigError: see `recover`.
    """
    recover(out)
    for run in runs_in(out):
        recover(run)
        for folder in _adapter_paths(run):
            recover(folder)
            with suppress(OSError):  # an adapter, or a missing folder
                folder.rmdir()


def is_run(folder: Path) -> bool:
    """Return whether a folder holds a run that this version of peftly wrote."""
    return read_mark(folder).get("kind") == RUN


def is_finished(out: Path) -> bool:
    """Return whether the run in `out` reached its end."""
    return read_mark(out).get("finished") is True


def part_folders(out: Path) -> list[Path]:
    """Return the folders of runs in `out` by its config.yaml or else by its mark, or the folders of their bases."""
    if (out / "config.yaml").is_file():
        with suppress(ConfigError):
            config = load_config(out / "config.yaml", stored=True)
            groups = config.groups() if isinstance(config, JobsConfig) else {}
            return [out / name for name in groups or config.parts()]
    noted = read_mark(out).get("parts")
    names = noted if isinstance(noted, list) else []
    return [out / name for name in names if isinstance(name, str) and Path(name).name == name]


def runs_in(out: Path) -> list[Path]:
    """Return a run folder, and the folders of all runs inside it."""
    return [out, *(run for part in part_folders(out) for run in runs_in(part))]


def adapter_folders(out: Path) -> list[Path]:
    """Return the folders in a run folder that hold an adapter, or adapters that were trained together."""
    return [folder for folder in _adapter_paths(out) if any(folder.rglob(CONFIG))]


def run_files(out: Path) -> list[Path]:
    """Return the existing files of a run in an order for deletion: the mark is the last. Empty for a foreign folder."""
    if not is_run(out):
        return []
    parts = part_folders(out)
    files = [file for part in parts for file in run_files(part)]
    files += checkpoint_files(out)
    files += [file for folder in _adapter_paths(out) for file in adapter_files(folder)]
    files += sorted(file for file in (out / TRACKERS).rglob("*") if not file.is_dir())
    names = [*_RUN_FILES, RESULTS] if parts else _RUN_FILES
    return [*files, *(out / name for name in reversed(names) if (out / name).is_file())]


def adapter_files(folder: Path) -> list[Path]:
    """Return the existing files of the adapter in `folder`, or of the adapters that were trained together."""
    together = [file.parent for file in folder.glob(f"*/{CONFIG}")]
    return [
        inner / name
        for inner in (*together, folder)
        for name in (*ADAPTER_FILES, *TOKENIZER_FILES)
        if (inner / name).is_file()
    ]


def _adapter_paths(out: Path) -> list[Path]:
    """Return the paths of adapters in a run folder, whether or not they exist."""
    steps = [path for path in out.glob("step-*") if _STEP.fullmatch(path.name)]
    return [out / "adapter", out / INTERRUPTED, *steps]

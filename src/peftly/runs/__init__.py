"""A run: its settings, its folder, and everything from data to report. May import: all packages but `cli`.

config           settings of a run
config_file      YAML and flags
config_mistakes  hints for unknown settings
folder           files of a run folder
run              one run
side_by_side     several adapters trained side by side
held_out         examples on which a finished run is scored
quickstart       the quickstart
"""

from peftly.runs.config import AnyConfig, JobsConfig, RunConfig, one_run
from peftly.runs.config_file import load_config
from peftly.runs.folder import OpenRun, check_out, folder_bytes, open_base, open_ensemble, open_run, plain, write_json
from peftly.runs.held_out import held_out_examples, held_out_rows
from peftly.runs.quickstart import quickstart
from peftly.runs.run import RunResult, run
from peftly.runs.side_by_side import run_together

__all__ = [
    "AnyConfig",
    "JobsConfig",
    "OpenRun",
    "RunConfig",
    "RunResult",
    "check_out",
    "folder_bytes",
    "held_out_examples",
    "held_out_rows",
    "load_config",
    "one_run",
    "open_base",
    "open_ensemble",
    "open_run",
    "plain",
    "quickstart",
    "run",
    "run_together",
    "write_json",
]

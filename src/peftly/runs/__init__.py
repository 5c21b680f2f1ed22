"""A run: its settings, its folder, and all its steps from data to report. May import: all packages but `cli`.

config           settings of a run
jobs_config      `jobs`: runs by name, or lists of values
config_file      YAML and flags
yaml_text        YAML within limits
config_mistakes  messages about mistakes in a configuration
folder           names of the files of a run folder
data_file        data.json: report on the data, and digests of the rows
positions        length of examples for which the base has positions
replacing        check, replace and clean a run folder
memory           peak memory of a training, estimated without weights
run_memory       the same for the settings of a run
simulated_training  training without data, to count its memory
launch           settings and the processes of a launch
opening          model of a finished run
progress         progress of a run that fails is kept
run              one run
results          its result, and the files written from it
baselines        scores of the untouched base
probing          head of a classifier, chosen by linear probes that it starts from
learning_rate    learning rate finder
parts            settings and data of runs that are trained side by side
side_by_side     several runs trained side by side
together         several runs, on one base or on several
row_predictions  predictions of a run for rows, batch by batch
prediction_files  predictions on the disk
row_files        rows to files
prediction_request  model and rows of a prediction, checked before the model is opened
predict          predictions of a run for rows of data
held_out         examples for the evaluation of a finished run
quickstart       the quickstart
push             an adapter to the Hub
hub_card         its card
schema           JSON Schema of a configuration
version_0_1      settings of version 0.1.0
"""

from peftly.runs.config import AnyConfig, JobsConfig, RunConfig, one_run
from peftly.runs.config_file import load_config
from peftly.runs.data_file import changed_rows_line
from peftly.runs.held_out import held_out_examples, held_out_split
from peftly.runs.learning_rate import find_rate_of_run
from peftly.runs.memory import MemoryEstimate, estimate_memory
from peftly.runs.opening import OpenRun, find_run, open_base, open_ensemble, open_run
from peftly.runs.predict import PredictedFile, predict, predict_file
from peftly.runs.prediction_files import row_with_answer
from peftly.runs.prediction_request import PredictionRequest, prepare_rows
from peftly.runs.push import Pushed, push
from peftly.runs.quickstart import quickstart
from peftly.runs.replacing import check_resumable, check_run_folder
from peftly.runs.results import RunResult
from peftly.runs.row_predictions import PredictSettings, RowPredictions
from peftly.runs.run import run
from peftly.runs.run_memory import estimate_methods
from peftly.runs.schema import config_schema, setting_texts
from peftly.runs.side_by_side import TogetherResult
from peftly.runs.together import run_together

__all__ = [
    "AnyConfig",
    "JobsConfig",
    "MemoryEstimate",
    "OpenRun",
    "PredictSettings",
    "PredictedFile",
    "PredictionRequest",
    "Pushed",
    "RowPredictions",
    "RunConfig",
    "RunResult",
    "TogetherResult",
    "changed_rows_line",
    "check_resumable",
    "check_run_folder",
    "config_schema",
    "estimate_memory",
    "estimate_methods",
    "find_rate_of_run",
    "find_run",
    "held_out_examples",
    "held_out_split",
    "load_config",
    "one_run",
    "open_base",
    "open_ensemble",
    "open_run",
    "predict",
    "predict_file",
    "prepare_rows",
    "push",
    "quickstart",
    "row_with_answer",
    "run",
    "run_together",
    "setting_texts",
]

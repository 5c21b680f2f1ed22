"""Trackers of `train.report_to`: Accelerate's where they are installed, CSV files, and a stand-in for W&B."""

import csv
import importlib.machinery
import os
import sys
import types
from importlib import import_module
from importlib.util import find_spec

import pytest
from training_jobs import IdTokenizer, assert_equal, data_of, lora_model, run, weights

from peftly import LoRA, attach
from peftly.errors import ConfigError
from peftly.evaluation.metrics import Evaluation
from peftly.runs.folder import run_files
from peftly.runs.replacing import write_mark
from peftly.runs.run import run as run_config
from peftly.training import StepRecord, Tracking
from peftly.training.callbacks import Callback
from peftly.training.config import TrainConfig
from peftly.training.train import Job, train, train_together


class Kill(Callback):
    """Raises an error at a step, before or behind the trackers."""

    def on_step(self, record):
        if record.step == 5:
            raise RuntimeError("killed")


def table(out, name):
    with (out / "trackers/csv" / f"{name}.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def contents(folder):
    return b"\0".join(f"{file}".encode() + file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of `wandb`, which notes its calls."""
    module = types.ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None, origin="wandb/__init__.py")
    module.runs, module.Settings = [], dict

    class Run:
        def __init__(self, **arguments):
            self.arguments, self.logged, self.is_finished = arguments, [], False
            module.runs.append(self)

        def log(self, values, step):
            self.logged.append((step, values))

        def finish(self):
            self.is_finished = True

    module.init = Run
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.mark.parametrize(
    ("given", "names"),
    [(None, ()), ("none", ()), ([], ()), ("csv", ("csv",)), (["wandb", "csv", "csv"], ("wandb", "csv"))],
)
def test_the_setting_is_a_name_or_a_list(given, names):
    assert TrainConfig(report_to=given).report_to == names
    assert TrainConfig.model_validate_json(TrainConfig(report_to=given).model_dump_json()).report_to == names


@pytest.mark.parametrize("given", ["wandbb", ["csv", "all"], 3])
def test_other_names_are_refused(given):
    with pytest.raises(ConfigError, match=r"report_to.*tensorboard, wandb, mlflow, trackio, swanlab, csv"):
        TrainConfig(report_to=given)


def test_csv_files_have_every_record(tmp_path):
    _, result = run(out=tmp_path / "run", report_to="csv", epochs=1)
    steps = [record for record in result.history if isinstance(record, StepRecord)]
    rows = table(tmp_path / "run", "train")
    names = ("loss", "learning_rate", "grad_norm", "tokens_per_second", "tokens")
    assert [[float(row[name]) for name in names] for row in rows] == [
        [getattr(record, name) for name in names] for record in steps
    ]
    evaluations = [record for record in result.history if not isinstance(record, StepRecord)]
    assert [float(row["loss"]) for row in table(tmp_path / "run", "eval")] == [record.loss for record in evaluations]


@pytest.mark.parametrize("name", ["csv", "tensorboard"])
def test_a_resumed_run_has_every_step_once(tmp_path, name):
    """A run that stops between a step and its report, and after it is on a checkpoint, goes on in the same tracker."""
    if name != "csv":
        pytest.importorskip(name)
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3, report_to=name)
    arguments = {"tokenizer": IdTokenizer(), "out": tmp_path / "run"}
    with pytest.raises(RuntimeError, match="killed"):
        train(lora_model(), data_of(), config, callbacks=[Kill()], **arguments)
    result = train(lora_model(), data_of(), config, resume=True, **arguments)
    losses = [(record.step, record.loss) for record in result.history if isinstance(record, StepRecord)]
    if name == "csv":
        found = [(int(row["step"]), float(row["loss"])) for row in table(tmp_path / "run", "train")]
    else:
        reader = import_module("tensorboard.backend.event_processing.event_accumulator")
        events = reader.EventAccumulator(str(tmp_path / "run/trackers/tensorboard"))
        events.Reload()
        found = [(event.step, event.value) for event in events.Scalars("train/loss")]
        assert {"train/grad_norm", "train/learning_rate", "eval/loss", "eval/perplexity"} <= set(
            events.Tags()["scalars"]
        )
    assert found == [(step, pytest.approx(loss)) for step, loss in losses]
    assert [step for step, _ in found] == list(range(1, 9))


def test_trackers_change_no_weight_and_may_change_on_resume(tmp_path):
    plain, _ = run(out=tmp_path / "plain", epochs=None, max_steps=6)
    config = TrainConfig(learning_rate=1e-2, max_steps=6, batch_size=4, checkpoint_steps=3, report_to="csv")
    arguments = {"tokenizer": IdTokenizer(), "out": tmp_path / "run"}
    with pytest.raises(RuntimeError, match="killed"):
        train(lora_model(), data_of(), config, callbacks=[Kill()], **arguments)
    model = lora_model()
    train(model, data_of(), config.model_copy(update={"report_to": ()}), resume=True, **arguments)
    assert_equal(weights(plain), weights(model))
    for file in (tmp_path / "plain/adapter").iterdir():
        assert file.read_bytes() == (tmp_path / "run/adapter" / file.name).read_bytes()


def test_wandb_is_offline_and_continues_its_run(tmp_path, wandb, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = TrainConfig(learning_rate=1e-2, epochs=2, batch_size=4, checkpoint_steps=3, report_to="wandb")
    arguments = {"tokenizer": IdTokenizer(), "out": tmp_path / "run"}
    with pytest.raises(RuntimeError, match="killed"):
        train(lora_model(), data_of(), config, callbacks=[Kill()], **arguments)
    monkeypatch.setenv("WANDB_MODE", "online")
    train(lora_model(), data_of(), config, resume=True, **arguments)
    first, second = wandb.runs
    assert [first.arguments["mode"], second.arguments["mode"]] == ["offline", "online"]
    assert first.arguments["id"] == second.arguments["id"]
    assert first.arguments["dir"] == str(tmp_path / "run/trackers")
    assert first.arguments["config"]["train.learning_rate"] == 1e-2
    settings = first.arguments["settings"]
    assert settings["console"] == "off"
    assert settings["x_disable_meta"]
    assert not settings["save_code"]
    assert first.is_finished
    assert second.is_finished
    steps = [step for step, values in first.logged + second.logged if "train/loss" in values]
    assert steps == list(range(1, 9))
    assert {key for _, values in first.logged for key in values} >= {"train/grad_norm", "eval/loss"}


def test_final_scores(tmp_path):
    with Tracking(["csv"], tmp_path, settings={}) as tracking:
        tracking.on_begin(0, 8, ())
        tracking.log_final(None)
        tracking.log_final(Evaluation(rows=5, tokens=9, loss=0.5, accuracy=0.8, perplexity=float("inf")))
    (row,) = table(tmp_path, "final")
    assert {key: row[key] for key in ("loss", "accuracy", "rows")} == {"loss": "0.5", "accuracy": "0.8", "rows": "5"}
    assert "perplexity" not in row


def test_a_failing_tracker_ends_no_training(tmp_path, wandb):
    def fail(*_, **__):
        raise ConnectionError("no route\nto host")

    wandb.init.log = fail
    with pytest.warns(UserWarning, match=r"wandb gets no more values of this run \(no route\); metrics.jsonl has all"):
        _, result = run(out=tmp_path / "run", report_to=["wandb", "csv"], epochs=None, max_steps=3)
    assert len(table(tmp_path / "run", "train")) == result.steps == 3


def test_a_tracker_that_does_not_start_is_refused_before_the_first_step(tmp_path, wandb):
    def fail(**_):
        raise ValueError("api_key not configured (no-tty)")

    wandb.init = fail
    with pytest.raises(ConfigError, match=r"train.report_to wandb: api_key not configured \(no-tty\)"):
        run(out=tmp_path / "run", report_to="wandb")
    assert not (tmp_path / "run/adapter").exists()


@pytest.mark.parametrize("with_folder", [False, True], ids=["nothing", "folder of logs"])
def test_a_missing_package_is_refused_before_anything_is_opened(tmp_path, monkeypatch, with_folder):
    monkeypatch.setattr("peftly.training.trackers.KINDS", KINDS_WITH_A_MISSING_PACKAGE)
    if with_folder:  # the logs of a tracker are no package
        (tmp_path / "no_such_tracker").mkdir()
        monkeypatch.syspath_prepend(str(tmp_path))
    message = "train.report_to no_such_tracker needs a package: pip install no_such_tracker"
    settings = {"base": "no such base", "method": "lora", "data": {"train": "no.jsonl"}, "out": str(tmp_path / "run")}
    runs = import_module("peftly.runs.config")
    with pytest.raises(ConfigError, match=message):
        run_config(runs.RunConfig.model_validate({**settings, "train": {"report_to": ["csv", "wandb"]}}))
    with pytest.raises(ConfigError, match=message):
        run(out=tmp_path / "run", report_to="wandb")
    assert not (tmp_path / "run").exists()


KINDS = import_module("peftly.training.trackers").KINDS
KINDS_WITH_A_MISSING_PACKAGE = {**KINDS, "wandb": KINDS["wandb"]._replace(package="no_such_tracker")}


def test_a_folder_is_needed():
    with pytest.raises(ConfigError, match=r"train.report_to needs a folder.* out="):
        run(report_to="csv")


def test_each_of_several_runs_has_its_own_trackers(tmp_path, wandb, monkeypatch):
    model = lora_model()
    attach(model, LoRA(rank=1), name="second", seed=2)
    config = TrainConfig(learning_rate=1e-2, max_steps=2, batch_size=4, report_to=["csv", "wandb"])
    jobs = {name: Job(data_of(), config) for name in ("default", "second")}
    train_together(model, jobs, tokenizer=IdTokenizer(), out=tmp_path / "runs")
    assert [len(table(tmp_path / "runs" / name, "train")) for name in jobs] == [2, 2]
    assert [own.arguments["name"] for own in wandb.runs] == ["default", "second"]
    assert wandb.runs[0].arguments["id"] != wandb.runs[1].arguments["id"]

    monkeypatch.setitem(KINDS, "swanlab", KINDS["swanlab"]._replace(package=None))
    config = config.model_copy(update={"report_to": ("swanlab",)})
    with pytest.raises(ConfigError, match="swanlab follows one run of a process at a time"):
        train_together(model, {name: Job(data_of(), config) for name in jobs}, tokenizer=IdTokenizer())


INSTALLED = [name for name in KINDS if KINDS[name].package is None or find_spec(KINDS[name].package)]


@pytest.mark.parametrize("name", INSTALLED)
def test_no_key_is_written(tmp_path, monkeypatch, name):
    for variable in ("WANDB_API_KEY", "HF_TOKEN", "SWANLAB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MY_PASSWORD"):
        monkeypatch.setenv(variable, f"{variable.lower()}0123456789012345678901234567")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run(out=tmp_path / "run", report_to=name, max_steps=1, epochs=None)
    written = contents(tmp_path)
    assert b"learning_rate" in written
    assert b"0123456789012345678901234567" not in written
    assert os.environ.get("MLFLOW_TRACKING_URI") is None


def test_files_of_trackers_are_files_of_the_run(tmp_path):
    run(out=tmp_path / "run", report_to="csv", max_steps=1, epochs=None)
    (tmp_path / "run/.peftly.json").unlink()
    write_mark(tmp_path / "run", is_finished=True)
    assert tmp_path / "run/trackers/csv/train.csv" in run_files(tmp_path / "run")

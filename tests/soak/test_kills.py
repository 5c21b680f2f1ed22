"""A run that is killed at random moments leaves complete adapters only, and continues to the same bytes."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from commands import command, environment, peftly_here
from crash_cases import done
from crash_checks import content, difference, said, tidy
from crash_disk import exit_code
from crash_totals import Family
from references import ARCHITECTURE_OF, DEFAULTS

from peftly import detach, load_adapter, load_base
from peftly.runs.folder import is_finished, is_run

KILLS_OF_A_METHOD = 30
KILLS_OF_COMMANDS = 60
KILLS_WHILE_SAVING = 30


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    labels = ["complaint", "no complaint"]
    file.write_text("".join(f'{{"text": "row {n}", "label": "{labels[n % 2]}"}}\n' for n in range(64)))
    return file


class Killed:
    """A run of a method in a copy of this process, which is killed and continued until it ends.

    Attributes:
        kills: number of kills so far.
    """

    def __init__(self, method, base, rows, folder):
        settings = [f"method.{name}={str(value).lower()}" for name, value in DEFAULTS[method].items()]
        settings += ["train.checkpoint_steps=1", "train.save_steps=4", "data.validation_fraction=0.2"]
        self.words = ["train", "--base", base, "--data", rows, "--method", method, "--batch-size", 16, "--epochs", 2]
        self.words += [word for setting in settings for word in ("--set", setting)]
        self.folder, self.kills, self.draw = folder, 0, random.Random(method)
        (folder / "whole").mkdir()
        for _ in range(2):  # the second time the libraries are loaded
            shutil.rmtree(folder / "whole" / "out", ignore_errors=True)
            started = time.perf_counter()
            done(self.train(folder / "whole"))
            self.seconds = time.perf_counter() - started
        self.expected = content(folder / "whole" / "out")

    def train(self, folder):
        os.chdir(folder)
        return peftly_here(*self.words, "--out", "out")

    def go_on(self, folder):
        """Continue the run, or begin it if there is none."""
        os.chdir(folder)
        refusal = said(peftly_here("train", "--resume", "out")) if Path("out").exists() else "holds no run to continue"
        if refusal is not None and "is finished" not in refusal:
            assert "holds no run to continue" in refusal, refusal
            done(self.train(folder))

    def one_run(self, number):
        """Kill a run until it ends well, and compare its files with those of the unbroken run."""
        folder = self.folder / str(number)
        folder.mkdir()
        while True:
            child = os.fork()
            if child == 0:
                os._exit(exit_code(lambda: self.go_on(folder)) if self.leads_a_group() else 1)
            os.setpgid(child, child)  # here, too, since the child may not have begun
            time.sleep(self.seconds * 1.1 * self.draw.random())
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended == 0:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                self.kills += 1
                continue
            assert os.waitstatus_to_exitcode(status) == 0, f"{self.words}: a run in {folder} failed"
            found = content(folder / "out")
            assert found == self.expected, (self.words, difference(found, self.expected))
            tidy(folder)
            shutil.rmtree(folder)
            return "same_bytes"

    @staticmethod
    def leads_a_group():
        os.setpgid(0, 0)
        return True


@pytest.mark.soak
@pytest.mark.parametrize("method", list(ARCHITECTURE_OF))
def test_a_run_of_each_method_that_is_killed_often(tiny_llama_folder, task_base, rows, tmp_path, method):
    base = tiny_llama_folder if ARCHITECTURE_OF[method] == "llama" else task_base(ARCHITECTURE_OF[method])
    counts = Family("random kills", method)
    killed = Killed(method, base, rows, tmp_path)
    number = 0
    while killed.kills < KILLS_OF_A_METHOD and not counts.faults:
        before = killed.kills
        counts.attempt(method, killed.one_run, number)
        counts.counts["same_bytes"] += killed.kills - before - 1  # a case is a kill
        number += 1
    counts.finish()


def start(*words):
    return subprocess.Popen(
        command("train", *words), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def lines(out):
    file = out / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.soak
def test_a_command_that_is_killed_often_ends_with_the_same_bytes(tiny_llama_folder, rows, tmp_path):
    words = ["--base", tiny_llama_folder, "--data", rows, "--method", "lora", "--set", "method.dropout=0.2"]
    words += ["--batch-size", 4, "--epochs", 20, "--set", "train.checkpoint_steps=3"]
    assert start(*words, "--out", tmp_path / "whole").wait() == 0
    expected = content(tmp_path / "whole" / "adapter")
    draw, ended, counts = random.Random(0), 0, Family("command line", "train and resume")
    while counts.counts["same_bytes"] < KILLS_OF_COMMANDS:
        out = tmp_path / f"run-{ended}"
        while not is_finished(out):
            process, before = start(*(("--resume", out) if is_run(out) else (*words, "--out", out))), lines(out)
            while lines(out) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(4 * draw.random())  # the report at the end takes two seconds
            process.send_signal(signal.SIGKILL)
            counts.counts["same_bytes"] += process.wait() == -signal.SIGKILL
        assert content(out / "adapter") == expected
        assert lines(out) == lines(tmp_path / "whole")
        ended += 1
    counts.finish()


@pytest.mark.soak
def test_every_adapter_of_a_killed_run_loads(tiny_llama_folder, rows, tmp_path):
    model = load_base(str(tiny_llama_folder), dtype="float32").model
    draw, loaded, counts = random.Random(0), 0, Family("command line", "adapters of killed runs")
    for attempt in range(KILLS_WHILE_SAVING):
        out = tmp_path / f"run-{attempt}"
        words = ["--base", tiny_llama_folder, "--data", rows, "--method", "lora", "--out", out]
        process = start(*words, "--batch-size", 1, "--epochs", 50, "--set", "train.save_steps=1")
        while not list(out.glob("step-*/adapter_config.json")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(draw.random() / 2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        for file in out.glob("step-*/adapter_config.json"):
            load_adapter(model, file.parent)
            assert all(bool(torch.isfinite(p).all()) for n, p in model.named_parameters() if "peftly" in n)
            detach(model)
            loaded += 1
        counts.counts["same_bytes"] += 1
    assert loaded >= KILLS_WHILE_SAVING
    counts.finish()

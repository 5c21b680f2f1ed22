"""Measure how fast peftly trains beside PEFT 0.21.2 with transformers' Trainer, and what the frozen base allows.

    make bench             # all jobs, in the dtype that `dtype: auto` means here
    make bench JOB=W1      # one
    python benchmarks/speed.py --jobs W1 W3 --dtype float32 --rounds 9

writes a line for each job, dtype and device into benchmarks/results/speed.json, and the table and the picture in
docs/speed.md, which `make test` compares with it. A line that is there is replaced.

The contenders of a job take turns in one process, over the same rows in each round, and begin in another order every
time. What counts is the median of the ratios within a round: what else the machine does then falls on all alike. The
peak of the memory is measured in a process for each contender.
"""

import argparse
import ctypes
import gc
import json
import random
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from speed_jobs import JOBS, Job, Setting
from speed_page import BEST, CLASSIC, FLOOR, OURS, read, write

CURVE_STEPS, CURVE_ROWS = 5, 4
TRIAL_ROWS = 16
"""Rows that settings are compared on before the first round."""

Makers = dict[str, dict[str, Callable[[], Any]]]
"""For each contender its settings, in words, and what makes it ready."""


def makers(job: Job, dtype: str, device: str | None) -> Makers:
    """Return who takes part."""
    from speed_contenders import Peft, Peftly
    from speed_floor import Floor
    from speed_writers import PeftlyWriter, PeftWriter

    as_is = f"{job.classic.batch} rows at once"
    if job.writes:
        return {
            CLASSIC: {as_is: lambda: PeftWriter(job, dtype, device)},
            OURS: {as_is: lambda: PeftlyWriter(job, dtype, device)},
        }

    def rival(setting: Setting) -> Callable[[], Any]:
        return lambda: Peft(job, setting, dtype, device)

    def floor(batch: int) -> Callable[[], Any]:
        return lambda: Floor(job, batch, dtype, device)

    rivals = [setting for setting in job.rivals if dtype == "bfloat16" or not setting.autocast]
    return {
        CLASSIC: {str(job.classic): rival(job.classic)},
        BEST: {str(setting): rival(setting) for setting in rivals},
        OURS: {"as it is by default": lambda: Peftly(job, dtype, device)},
        FLOOR: {f"{batch} rows at once": floor(batch) for batch in job.floor_batches},
    }


def rows_of(job: Job) -> list[Any]:
    """Return all rows of a job, as its contenders take them."""
    from speed_contenders import base_of, data_of
    from speed_writers import prompts_of

    tokenizer = base_of(job, "auto", "cpu").tokenizer
    return prompts_of(job, tokenizer) if job.writes else data_of(job, tokenizer).train.encoded


def measure(name: str, dtype: str, device: str | None, rounds: int) -> dict[str, Any]:
    """Let the contenders of a job take their turns, and return its line."""
    job = JOBS[name]
    rows = rows_of(job)
    settings, contenders = {}, {}
    for who, choices in makers(job, dtype, device).items():
        settings[who], contenders[who] = warmed_up(job, choices, rows)
        print(f"{name} {who}: {settings[who]}", flush=True)
    seconds: dict[str, list[float]] = {who: [] for who in contenders}
    tokens = []
    for number in range(rounds):
        chosen = random.Random(number).sample(rows, job.step * job.steps)
        turn = number % len(contenders)
        order = [*contenders][turn:] + [*contenders][:turn]
        for who in order:
            seconds[who].append(contenders[who].turn(chosen, job.step) / job.steps)
        tokens.append(job.writes * job.step or sum(row.num_tokens for row in chosen) / job.steps)
        print(
            f"{name} round {number + 1}: " + ", ".join(f"{who} {seconds[who][-1]:.3f} s" for who in seconds), flush=True
        )
    found = {"settings": settings, "tokens": statistics.mean(tokens), "seconds": seconds}
    found["ratios"] = {who: spread(seconds[who], seconds[OURS]) for who in seconds if who != OURS}
    found["aims"] = {who: aim for who, aim in zip((CLASSIC, BEST), job.aims, strict=True) if aim is not None}
    if job.writes:
        texts = [contenders[who].texts for who in (CLASSIC, OURS)]
        found["same_texts"] = sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])
    else:
        del contenders
        found["curve"] = curve(job, device)
    found["memory"] = {who: memory_in_a_process(name, who, settings[who], dtype, device) for who in settings}
    return found


def warmed_up(job: Job, choices: dict[str, Callable[[], Any]], rows: Sequence[Any]) -> tuple[str, Any]:
    """Return the fastest of a contender's settings, in words, and the contender, after turns that do not count."""
    count = min(TRIAL_ROWS, job.step)
    trial = random.Random(-1).sample(list(rows), count)
    best = None
    for words, make in choices.items():
        contender = make()
        contender.turn(trial, count)
        seconds = contender.turn(trial, count) if len(choices) > 1 else 0.0
        if best is None or seconds < best[0]:
            best = (seconds, words, contender)
    assert best is not None
    return best[1:]


def spread(rival: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of how many times our seconds a rival takes in a round."""
    ratios = [theirs / own for theirs, own in zip(rival, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": middle, "low": low, "high": high}


def curve(job: Job, device: str | None) -> dict[str, Any]:
    """Compare the losses of a few steps in fp32, without dropout, from the same weights and over the same rows.

    In bf16 rounding alone moves a loss by a percent, and would hide a mistake.

    PEFT gets one row at a time, which is not padded: with padding its soft prompts compute something else. A classifier
    gets all rows of a step at once, as Trainer does not divide its loss by the accumulated batches. So does peftly,
    packed where it can.
    """
    from speed_contenders import Peft, Peftly

    from peftly.training.steps import step_rows

    settings = {**job.settings, "dropout": 0.0} if "dropout" in job.settings else job.settings
    job = replace(job, settings=settings, classic=Setting(CURVE_ROWS))
    fused_forward = 1 if job.task == "causal_lm" else CURVE_ROWS
    ours = Peftly(job, "float32", device)
    theirs = Peft(job, Setting(fused_forward, base_dropout=False), "float32", device)
    rows = random.Random(0).sample(ours.data.train.encoded, CURVE_STEPS * CURVE_ROWS)
    ours.turn(rows, CURVE_ROWS)
    in_order = [row for step in step_rows(rows, CURVE_ROWS, end=CURVE_STEPS, seed=0) for row in step]
    theirs.turn(in_order, CURVE_ROWS)
    parts = [float(loss) for loss in theirs.losses]
    each = CURVE_ROWS // fused_forward
    losses = [sum(parts[start : start + each]) for start in range(0, len(parts), each)]
    differences = [abs(own - other) / other for own, other in zip(ours.losses, losses, strict=True)]
    found = {"first_difference": differences[0], "largest_difference": max(differences)}
    return {**found, "peft": losses, "peftly": ours.losses}


def memory_in_a_process(name: str, who: str, setting: str, dtype: str, device: str | None) -> int | None:
    """Return what `memory` says, in a process of its own."""
    command = [sys.executable, __file__, "--jobs", name, "--dtype", dtype, "--memory", who, "--setting", setting]
    command += ["--device", device] if device else []
    found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    growth: int | None = json.loads(found.splitlines()[-1])
    print(f"{name} {who}: " + ("no peak memory here" if growth is None else f"{growth / 2**20:.0f} MiB"), flush=True)
    return growth


def memory(job: Job, who: str, setting: str, dtype: str, device: str | None) -> int | None:
    """Return by how many bytes a step of the longest rows grows over the loaded, idle model; None if that is not known.

    A step of the shortest row comes before, so that what is loaded and set up once is not counted.
    """
    import torch

    rows = rows_of(job)
    contender = makers(job, dtype, device)[who][setting]()
    longest = sorted(rows, key=lambda row: len(row.prompt) if job.writes else row.num_tokens)
    contender.turn(longest[: job.step], job.step)
    gc.collect()
    if torch.cuda.is_available() and device != "cpu":
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.turn(longest[-job.step :], job.step)
        return torch.cuda.max_memory_allocated() - idle
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, and is not the model's
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    idle = _status("VmRSS")
    contender.turn(longest[-job.step :], job.step)
    return _status("VmHWM") - idle


def _status(key: str) -> int:
    """Return an entry of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def machine(device: str | None) -> tuple[str, dict[str, Any]]:
    """Return what the work is done on, in a word or two, and all that is known of versions and hardware."""
    from importlib.metadata import version

    import torch

    from peftly.utils.environment import environment
    from peftly.utils.hardware import resolve_device

    found = environment()
    found["versions"]["peft"] = version("peft")
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    is_gpu = resolve_device(device).type == "cuda"
    return (torch.cuda.get_device_name() if is_gpu else found["cpu"]), found


def main() -> None:
    """Measure the jobs that are asked for, and write the JSON and the page after every one."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    options.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    options.add_argument("--device", help="cpu or cuda; left out: what `device: auto` means here")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--memory", metavar="CONTENDER", help="print the peak growth of one contender, and stop")
    options.add_argument("--setting", help="which of its settings --memory is about")
    asked = options.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    from peftly.utils.hardware import resolve_device, resolve_dtype

    dtype = str(resolve_dtype(asked.dtype, resolve_device(asked.device))).removeprefix("torch.")
    if asked.memory is not None:
        print(json.dumps(memory(JOBS[asked.jobs[0]], asked.memory, asked.setting, dtype, asked.device)))
        return
    device, found = machine(asked.device)
    for name in asked.jobs:
        key = {"job": name, "dtype": dtype, "device": device}
        line = {
            **key,
            "says": JOBS[name].says,
            **measure(name, dtype, asked.device, asked.rounds),
            "environment": found,
        }
        write([*(one for one in read() if {part: one[part] for part in key} != key), line])


if __name__ == "__main__":
    main()

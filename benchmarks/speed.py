"""Measure the training speed of peftly, of PEFT 0.21.2 in transformers' Trainer, and of the frozen base alone.

    make bench             # all jobs, in the dtype of `dtype: auto` on this machine
    make bench JOB=W1      # one job
    python benchmarks/speed.py --jobs W1 W3 --dtype float32 --rounds 9

This script writes a result for each job, dtype and device into benchmarks/results/speed.json, and the tables and the
chart of docs/speed.md, which `make test` compares with the JSON. A new result replaces an old result of the same job,
dtype and device.

In each round of a job, all contenders run in one process, on the same examples, and each round starts with another
contender. Ratios are taken within a round, because other work on the machine then slows all contenders; the result is
the median of the ratios. The peak memory of each contender is measured in a separate process.
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

from speed_jobs import JOBS, Job, Setting, batches_of
from speed_page import BEST, CLASSIC, FLOOR, OURS, read, write

CURVE_STEPS, CURVE_STEP_SIZE = 5, 4
TRIAL_EXAMPLES = 16
"""Number of examples in the warm-up, which compares the settings of a contender."""

Constructors = dict[str, dict[str, Callable[[], Any]]]
"""For each contender, by name: its constructor for each setting, by the description of the setting."""


def constructors(job: Job, dtype: str, device: str | None) -> Constructors:
    """Return the constructors of the contenders of a job."""
    from speed_contenders import Peft, Peftly
    from speed_floor import Floor
    from speed_generation import PeftGeneration, PeftlyGeneration

    if job.new_tokens:
        batches = batches_of(job.classic.batch_size)
        return {
            CLASSIC: {batches: lambda: PeftGeneration(job, dtype, device)},
            OURS: {batches: lambda: PeftlyGeneration(job, dtype, device)},
        }

    def rival(setting: Setting) -> Callable[[], Any]:
        return lambda: Peft(job, setting, dtype, device)

    def floor(batch_size: int) -> Callable[[], Any]:
        return lambda: Floor(job, batch_size, dtype, device)

    rivals = [setting for setting in job.rivals if dtype == "bfloat16" or not setting.autocast]
    return {
        CLASSIC: {str(job.classic): rival(job.classic)},
        BEST: {str(setting): rival(setting) for setting in rivals},
        OURS: {"defaults": lambda: Peftly(job, dtype, device)},
        FLOOR: {batches_of(size): floor(size) for size in job.floor_batch_sizes},
    }


def examples_of(job: Job) -> list[Any]:
    """Return all examples of a job: encoded for training, as prompts for generation."""
    from speed_contenders import data_of
    from speed_generation import prompts_of

    from peftly.models import load_tokenizer

    tokenizer = load_tokenizer(job.base)
    return prompts_of(job, tokenizer) if job.new_tokens else data_of(job, tokenizer).train.encoded


def measure(job_name: str, dtype: str, device: str | None, rounds: int) -> dict[str, Any]:
    """Run all contenders of a job for some rounds, and return the measurements."""
    job = JOBS[job_name]
    examples = examples_of(job)
    settings, contenders = {}, {}
    for name, choices in constructors(job, dtype, device).items():
        settings[name], contenders[name] = warmed_up(job, choices, examples)
        print(f"{job_name} {name}: {settings[name]}", flush=True)
    seconds, tokens = time_rounds(job_name, contenders, examples, rounds)
    result = {"settings": settings, "tokens": statistics.mean(tokens), "seconds": seconds}
    result["ratios"] = {name: spread(seconds[name], seconds[OURS]) for name in seconds if name != OURS}
    result["aims"] = {name: aim for name, aim in zip((CLASSIC, BEST), job.aims, strict=True) if aim is not None}
    if job.new_tokens:
        texts = [contenders[name].texts for name in (CLASSIC, OURS)]
        result["same_texts"] = sum(a == b for a, b in zip(*texts, strict=True)) / len(texts[0])
    else:
        del contenders
        result["curve"] = curve(job, device)
    result["memory"] = {name: memory_in_a_process(job_name, name, settings[name], dtype, device) for name in settings}
    return result


def time_rounds(
    job_name: str, contenders: dict[str, Any], examples: Sequence[Any], rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of a step in each round for each contender, and the tokens of a step in each round."""
    job = JOBS[job_name]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens = []
    for index in range(rounds):
        chosen = random.Random(index).sample(examples, job.step_size * job.steps)
        first = index % len(contenders)
        for name in [*contenders][first:] + [*contenders][:first]:
            seconds[name].append(contenders[name].time_steps(chosen, job.step_size) / job.steps)
        generated = job.new_tokens * job.step_size
        tokens.append(generated or sum(example.num_tokens for example in chosen) / job.steps)
        times = ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in seconds)
        print(f"{job_name} round {index + 1}: {times}", flush=True)
    return seconds, tokens


def warmed_up(job: Job, choices: dict[str, Callable[[], Any]], examples: Sequence[Any]) -> tuple[str, Any]:
    """Return the description of a contender's fastest setting, and the contender, after untimed warm-up steps."""
    count = min(TRIAL_EXAMPLES, job.step_size)
    trial = random.Random(-1).sample(list(examples), count)
    best = None
    for setting, construct in choices.items():
        contender = construct()
        contender.time_steps(trial, count)
        seconds = contender.time_steps(trial, count) if len(choices) > 1 else 0.0
        if best is None or seconds < best[0]:
            best = (seconds, setting, contender)
    assert best is not None
    return best[1:]


def spread(rival: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Return the median and the quartiles of the ratio between a rival's seconds and ours, over the rounds."""
    ratios = [rival_seconds / our_seconds for rival_seconds, our_seconds in zip(rival, ours, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {"median": median, "low": low, "high": high}


def curve(job: Job, device: str | None) -> dict[str, Any]:
    """Compare the losses of a few steps in fp32, without dropout, from the same weights and on the same examples.

    In bf16 rounding alone changes a loss by one percent, which would hide a mistake.

    PEFT reads one example at a time, without padding: with padding, PEFT's soft prompts compute another function. A
    classifier reads all examples of a step in one batch, since Trainer does not divide its loss by the number of
    accumulated batches. peftly reads the examples of a step in one batch, packed where the model allows it.
    """
    from speed_contenders import Peft, Peftly

    from peftly.training.steps import examples_of_steps

    settings = {**job.settings, "dropout": 0.0} if "dropout" in job.settings else job.settings
    job = replace(job, settings=settings, classic=Setting(CURVE_STEP_SIZE))
    batch_size = 1 if job.task == "causal_lm" else CURVE_STEP_SIZE
    ours = Peftly(job, "float32", device)
    theirs = Peft(job, Setting(batch_size, base_dropout=False), "float32", device)
    examples = random.Random(0).sample(ours.data.train.encoded, CURVE_STEPS * CURVE_STEP_SIZE)
    ours.time_steps(examples, CURVE_STEP_SIZE)
    steps = examples_of_steps(examples, CURVE_STEP_SIZE, end=CURVE_STEPS, seed=0)
    theirs.time_steps([example for step in steps for example in step], CURVE_STEP_SIZE)
    batch_losses = [float(loss) for loss in theirs.losses]
    per_step = CURVE_STEP_SIZE // batch_size
    losses = [sum(batch_losses[start : start + per_step]) for start in range(0, len(batch_losses), per_step)]
    differences = [abs(loss - reference) / reference for loss, reference in zip(ours.losses, losses, strict=True)]
    summary = {"first_difference": differences[0], "largest_difference": max(differences)}
    return {**summary, "peft": losses, "peftly": ours.losses}


def memory_in_a_process(job_name: str, contender_name: str, setting: str, dtype: str, device: str | None) -> int | None:
    """Return the result of `memory`, measured in a new process."""
    command = [sys.executable, __file__, "--jobs", job_name, "--dtype", dtype]
    command += ["--memory", contender_name, "--setting", setting]
    command += ["--device", device] if device else []
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    growth: int | None = json.loads(output.splitlines()[-1])
    shown = "no peak memory on this system" if growth is None else f"{growth / 2**20:.0f} MiB"
    print(f"{job_name} {contender_name}: {shown}", flush=True)
    return growth


def memory(job: Job, contender_name: str, setting: str, dtype: str, device: str | None) -> int | None:
    """Return the peak memory of a step of the longest examples, above the loaded, idle model.

    A step of the shortest examples runs first, so that libraries which are loaded at the first step are not counted.

    Returns:
        Bytes; None on a system without a peak of the process's memory.
    """
    import torch

    examples = examples_of(job)
    contender = constructors(job, dtype, device)[contender_name][setting]()
    by_length = sorted(examples, key=lambda each: len(each.prompt) if job.new_tokens else each.num_tokens)
    contender.time_steps(by_length[: job.step_size], job.step_size)
    gc.collect()
    if torch.cuda.is_available() and device != "cpu":
        idle = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        contender.time_steps(by_length[-job.step_size :], job.step_size)
        return torch.cuda.max_memory_allocated() - idle
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # free memory in the heap does not belong to the idle model
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    idle = _process_status("VmRSS")
    contender.time_steps(by_length[-job.step_size :], job.step_size)
    return _process_status("VmHWM") - idle


def _process_status(key: str) -> int:
    """Return an entry of the status of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def machine(device: str | None) -> tuple[str, dict[str, Any]]:
    """Return the name of the GPU or CPU, and the versions and the hardware of this environment."""
    from importlib.metadata import version

    import torch

    from peftly.utils.environment import environment
    from peftly.utils.hardware import resolve_device

    details = environment()
    details["versions"]["peft"] = version("peft")
    details["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    is_gpu = resolve_device(device).type == "cuda"
    return (torch.cuda.get_device_name() if is_gpu else details["cpu"]), details


def main() -> None:
    """Measure the requested jobs, and write the JSON and the page after each job."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=JOBS)
    parser.add_argument("--dtype", default="auto", choices=["auto", "bfloat16", "float32"])
    parser.add_argument("--device", help="cpu or cuda; default: the device of `device: auto`")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", metavar="CONTENDER", help="print the peak memory of one contender, and stop")
    parser.add_argument("--setting", help="description of the contender's setting, for --memory")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

    from peftly.utils.hardware import resolve_device, resolve_dtype

    dtype = str(resolve_dtype(options.dtype, resolve_device(options.device))).removeprefix("torch.")
    if options.memory is not None:
        print(json.dumps(memory(JOBS[options.jobs[0]], options.memory, options.setting, dtype, options.device)))
        return
    device, details = machine(options.device)
    for job_name in options.jobs:
        key = {"job": job_name, "dtype": dtype, "device": device}
        result = {
            **key,
            "description": JOBS[job_name].description,
            **measure(job_name, dtype, options.device, options.rounds),
            "environment": details,
        }
        others = [other for other in read() if any(other[field] != value for field, value in key.items())]
        write([*others, result])


if __name__ == "__main__":
    main()

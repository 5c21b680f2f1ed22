"""Trained weights of several processes beside those of one: fp32, on a CPU, through the command line.

    python benchmarks/processes.py     (five minutes on two cores)

writes benchmarks/results/processes.json and the table in docs/processes.md, which `make test` compares with the JSON.
"""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from peftly.utils.environment import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "processes.json"
PAGE = ROOT / "docs" / "processes.md"
SAMPLES = ROOT / "src" / "peftly" / "sample_data" / "complaints" / "train.jsonl"
TABLE = re.compile(r"(<!-- table: processes -->\n).*?(<!-- end of table -->)", re.DOTALL)
EXAMPLES, BATCH, EPOCHS = 41, 8, 2
"""Examples of a training. The last step of an epoch has one, so that all processes but one have none."""
COLUMNS = {"2": "2 processes", "2 fsdp": "2, `train.fsdp`", "4": "4 processes"}


@dataclass(frozen=True)
class Job:
    """A training that several processes repeat.

    Attributes:
        name: name in the table.
        base: short name of the base.
        method: method, with its default settings.
        ways: columns of the table that are measured.
        options: options of the repetitions beside those of the training in one process.
        stop: step after which the repetition is stopped; one process continues it. 0: it is not stopped.
    """

    name: str
    base: str
    method: str
    ways: Sequence[str]
    options: tuple[str, ...] = ()
    stop: int = 0


JOBS = (
    Job("smollm2-135m, LoRA", "smollm2-135m", "lora", ("2", "2 fsdp", "4")),
    Job("smollm2-135m, a soft prompt", "smollm2-135m", "prompt_tuning", ("2", "2 fsdp", "4")),
    Job(
        "smollm2-135m, LoRA, stopped after step 4 and continued in one process", "smollm2-135m", "lora", ("2",), stop=4
    ),
    Job("minilm-l6, LoRA", "minilm-l6", "lora", ("2", "4")),  # with `fsdp` a head starts without a probe
    Job(
        "minilm-l6, LoRA, one process with smaller micro-batches",
        "minilm-l6",
        "lora",
        ("1",),
        ("--set", "train.micro_batch_tokens=128"),
    ),
)


def weights(run: Path) -> torch.Tensor:
    """Return all trained weights of a run as one tensor."""
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    return torch.cat([tensors[name].double().flatten() for name in sorted(tensors)])


def train(folder: Path, job: Job, way: str, options: Sequence[str] = ()) -> torch.Tensor:
    """Train in a number of processes, and return the trained weights.

    Raises:
        RuntimeError: the training failed.
    """
    count, _, sharded = way.partition(" ")
    out = next(out for number in itertools.count() if not (out := folder / f"run-{number}").exists())
    settings = ["dtype=float32", *(["train.fsdp=true"] if sharded else [])]
    words = ["train", "--base", job.base, "--method", job.method, "--data", str(folder / "rows.jsonl")]
    words += ["--validation", "none", "--epochs", str(EPOCHS), "--batch-size", str(BATCH // int(count))]
    words += ["--out", str(out), *options, *(word for setting in settings for word in ("--set", setting))]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", count] if count != "1" else []
    stop = job.stop if count != "1" else 0
    code = run([*launcher, "-m", "peftly", *words], stop)
    if stop:
        code = run(["-m", "peftly", "train", "--resume", str(out)])
    if code:
        raise RuntimeError(f"{job.name}, {way}: exit code {code}")
    return weights(out)


def run(words: Sequence[str], stop: int = 0) -> int:
    """Run Python with one thread a process, stop it by SIGINT after a step (0: never), and return the exit code."""
    command, environment = [sys.executable, *words], os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if stop and line.startswith(f"step {stop}/"):
            process.send_signal(signal.SIGINT)
    return process.wait()


def measure(folder: Path) -> list[dict[str, Any]]:
    """Return the relative differences of every job."""
    rows = SAMPLES.read_text(encoding="utf-8").splitlines(keepends=True)[:EXAMPLES]
    (folder / "rows.jsonl").write_text("".join(rows), encoding="utf-8")
    results = []
    for job in JOBS:
        expected = train(folder, job, "1")
        differences = {
            way: float((train(folder, job, way, job.options) - expected).norm() / expected.norm()) for way in job.ways
        }
        results.append({"job": job.name, "differences": differences})
        print(results[-1], flush=True)
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the table of the page."""
    rows = [["run", "1 process", *COLUMNS.values()]]
    for result in results:
        found = result["differences"]
        rows.append([result["job"], *(f"{found[way]:.1e}" if way in found else "" for way in ("1", *COLUMNS))])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, "|---" * len(rows[0]) + "|")
    return "\n" + "\n".join(lines) + "\n\n"


def with_table(page: str, results: Sequence[dict[str, Any]]) -> str:
    """Return a page with the table of the results."""
    return TABLE.sub(lambda match: match[1] + table(results) + match[2], page)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder))
    found = {"examples": EXAMPLES, "batch": BATCH, "epochs": EPOCHS, "environment": environment(), "results": results}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Measure time and memory from a file with a million rows to the examples of the first training step.

    python benchmarks/large_data.py [--rows 1000000]

writes benchmarks/results/large_data.json: seconds and CPU seconds of each phase, and the memory at its peak beyond the
memory of the loaded base. Every setting has a process of its own.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results" / "large_data.json"
SETTINGS = (("smollm2-135m", "label"), ("smollm2-135m", "completion"), ("minilm-l6", "label"))
MAX_LENGTH = 128
STEP_SIZE = 8


def write_rows(file: Path, count: int, target: str) -> None:
    """Write rows with texts of 8 to 22 words of the sample tweets, and a label or a completion of 4 to 12 words."""
    draw = random.Random(0)
    tweets = (files("peftly") / "sample_data" / "complaints" / "train.jsonl").read_text(encoding="utf-8")
    words = sorted(set(re.findall(r"[\w@']+", tweets)))

    def text(least: int, most: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(least, most)))

    with file.open("w", encoding="utf-8") as lines:
        for _ in range(count):
            labels = ("complaint", "no complaint")
            row = {"text": text(8, 22), "label": draw.choice(labels)} if target == "label" else None
            lines.write(json.dumps(row or {"prompt": text(8, 22), "completion": text(4, 12)}) + "\n")


def measure(base_spec: str, target: str, count: int) -> dict[str, Any]:
    """Return the figures of one setting."""
    import psutil

    from peftly.data import load_data, read_data
    from peftly.models import load_base
    from peftly.training.checkpoint import digest
    from peftly.training.steps import examples_of_steps

    load = os.getloadavg()[0]
    base = load_base(base_spec)
    task = "causal_lm" if base_spec.startswith("smollm2") else "sequence_classification"
    with tempfile.TemporaryDirectory() as folder:
        small, file = Path(folder) / "small.jsonl", Path(folder) / "rows.jsonl"
        write_rows(small, 1000, target)
        write_rows(file, count, target)
        load_data(small, base.tokenizer, task=task)  # imports, and the caches of the tokenizer
        process = psutil.Process()
        start, peak = process.memory_info().rss, [0]

        def watch() -> None:
            while True:
                peak[0] = max(peak[0], process.memory_info().rss - start)
                time.sleep(0.02)

        threading.Thread(target=watch, daemon=True).start()
        phases: dict[str, dict[str, float]] = {}

        def timed(name: str, work: Callable[[], Any]) -> Any:
            seconds, cpu = time.perf_counter(), time.process_time()
            result = work()
            phases[name] = {
                "seconds": round(time.perf_counter() - seconds, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
            }
            return result

        raw = timed("read", lambda: read_data(file, max_length=MAX_LENGTH))
        formatted = timed("format, choose validation", lambda: raw.format(task))
        data = timed("tokenize", lambda: formatted.encode(base.tokenizer))
        steps: Iterator[Any] = examples_of_steps(data.train.encoded, STEP_SIZE, end=10, seed=0)
        timed("first step", lambda: next(steps))
        timed("hash for checkpoints", lambda: digest(data.train.encoded))
    return {
        "base": base_spec,
        "target": target,
        "rows": count,
        "load_before": round(load, 1),
        "tokens": sum(split.tokens for split in data.report.splits.values()),
        "seconds": round(sum(phase["seconds"] for phase in phases.values()), 1),
        "cpu_seconds": round(sum(phase["cpu_seconds"] for phase in phases.values()), 1),
        "peak_megabytes": round(peak[0] / 1e6),
        "phases": phases,
    }


def main() -> None:
    """Measure the settings and write the results."""
    from peftly.utils import environment

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    count = parser.parse_args().rows
    settings = []
    for base_spec, target in SETTINGS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            settings.append(pool.apply(measure, (base_spec, target, count)))
        print(json.dumps(settings[-1]), flush=True)
    RESULTS.write_text(json.dumps({"environment": environment(), "settings": settings}, indent=2) + "\n")


if __name__ == "__main__":
    main()

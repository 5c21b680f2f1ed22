"""Compare estimated and measured peak memory of every method on both real bases, and write the result into the docs.

    make tables

writes benchmarks/results/memory.json and the tables in docs/memory.md, which `make test` compares with the JSON. Each
training is a process of its own. A result that is already in the JSON is not measured again.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from docstrings import write_rows

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "memory.json"
PAGE = ROOT / "docs" / "memory.md"
BEGIN, END = "<!-- table: {} -->\n", "<!-- end of table -->\n"
TASKS = {"minilm-l6": "sequence_classification", "smollm2-135m": "causal_lm"}
"""Task of each real base."""

LENGTH, JOINED = 128, 8
"""Tokens of a long example, and texts that are joined for it."""

ROWS = {"long": ("float32", 6), "tweets": ("bfloat16", 60)}
"""Dtype and number of steps for each set of rows."""

VARIANTS = {"nf4": "quantization=nf4", "checkpointing": "train.gradient_checkpointing=true"}
"""Other trainings of LoRA on long rows, by name."""

LIMIT = 0.15
"""Largest relative error that is aimed at."""

Result = dict[str, Any]
"""Estimates and measurement of one training, as in the JSON."""


def trainings() -> Iterator[Result]:
    """Yield base, rows, method and variant of all trainings."""
    from peftly import METHODS, load_base

    for base, task in TASKS.items():
        model = load_base(base, task=task, labels=("one", "other")).model
        names = [name for name, method in METHODS.items() if method.adapter.unsupported_reason(model) is None]
        for rows in ROWS:
            yield from ({"base": base, "rows": rows, "method": name, "variant": ""} for name in names)
        yield from ({"base": base, "rows": "long", "method": "lora", "variant": variant} for variant in VARIANTS)


def write_long_rows(folder: Path) -> None:
    """Write texts of more than `LENGTH` tokens: `train.jsonl` and `validation.jsonl` in a folder for each task."""
    for task in TASKS.values():
        (folder / task).mkdir()
        _write_long_rows(folder / task, has_labels=task == "sequence_classification")


def _write_long_rows(folder: Path, *, has_labels: bool) -> None:
    """Write the rows of a task; without labels every token is trained, as `peftly methods` assumes."""
    write_rows(folder)
    for split in ("train", "validation"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
        texts = [row["text"] for row in rows]
        joined = [
            {"text": " ".join(texts[(number + step) % len(texts)] for step in range(JOINED))}
            | ({"label": row["label"]} if has_labels else {})
            for number, row in enumerate(rows[:48])
        ]
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in joined)
        (folder / f"{split}.jsonl").write_text(lines, encoding="utf-8")


def settings_of(training: Result) -> list[str]:
    """Return the options that a training shares with `peftly methods`."""
    dtype, _ = ROWS[training["rows"]]
    variant = ["--set", VARIANTS[training["variant"]]] if training["variant"] else []
    options = ["--base", training["base"], "--task", TASKS[training["base"]], "--set", f"dtype={dtype}"]
    return [*options, "--max-length", str(LENGTH), *variant]


def peftly(*arguments: str) -> str:
    """Run the command line, and return its output."""
    command = [sys.executable, "-m", "peftly", *arguments]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=_environment()).stdout


def _environment() -> dict[str, str]:
    """Return the environment without settings of memory, which the command line chooses."""
    chosen = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    return {name: value for name, value in os.environ.items() if name not in chosen}


def measure(training: Result, folder: Path) -> Result:
    """Train, and return the measured peak with the estimate that `peftly train` printed, and its duration."""
    _, steps = ROWS[training["rows"]]
    with as_file(files("peftly") / "sample_data" / "complaints") as tweets:
        data = tweets if training["rows"] == "tweets" else folder / TASKS[training["base"]]
        options = ["--data", str(data / "train.jsonl"), "--validation", str(data / "validation.jsonl")]
        options += ["--method", training["method"]]
        options += [f"--set=train.max_steps={steps}", f"--set=train.eval_steps={steps}", "--set=baselines=false"]
        peftly("train", *settings_of(training), *options, "--batch-size=8", f"--out={folder / 'run'}", "--overwrite")
    summary = json.loads((folder / "run" / "summary.json").read_text(encoding="utf-8"))
    return {
        "measured": summary["peak_memory_bytes"],
        "estimated": summary["estimated_memory_bytes"],
        "seconds": summary["seconds"],
    }


def estimates_before(training: Result) -> dict[str, int]:
    """Return the estimates of `peftly methods` for the steps and evaluations of every method, by name."""
    rows = json.loads(peftly("methods", *settings_of(training), "--batch-size=8", "--json"))
    return {
        row["method"]: max(row["training_bytes"], row["evaluation_bytes"]) for row in rows if "training_bytes" in row
    }


def read() -> list[Result]:
    """Return the stored results."""
    return json.loads(RESULTS.read_text(encoding="utf-8"))["results"] if RESULTS.exists() else []


def write(results: list[Result]) -> None:
    """Write the JSON: all results, and the machine of the measurement."""
    from peftly.utils.environment import environment

    content = {"environment": environment(), "results": results}
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def errors(results: list[Result]) -> list[float]:
    """Return the relative errors of all estimates."""
    names = ("estimated", "before")
    return [result[name] / result["measured"] - 1 for result in results for name in names if result.get(name)]


def tables(content: dict[str, Any]) -> dict[str, str]:
    """Return the tables of the docs, by base."""
    machine = content["environment"]
    found = {}
    for base in TASKS:
        lines = ["| method | rows | measured MB | `train` | `methods` |", "|---|---|---|---|---|"]
        results = [result for result in content["results"] if result["base"] == base]
        for result in results:
            name = f"`{result['method']}`{', ' + result['variant'] if result['variant'] else ''}"
            cells = [name, result["rows"], f"{result['measured'] / 1e6:,.0f}"]
            for estimate in (result["estimated"], result.get("before")):
                cells.append(f"{100 * (estimate / result['measured'] - 1):+.0f}%" if estimate else "")
            lines.append("| " + " | ".join(cells) + " |")
        wrong = errors(results)
        within = sum(abs(error) <= LIMIT for error in wrong)
        note = f"{within} of {len(wrong)} estimates are within 15%; errors from {100 * min(wrong):+.0f}% to "
        note += f"{100 * max(wrong):+.0f}%. One run each, {machine['cpu_cores']} cores ({machine['cpu']})."
        found[base] = "\n".join([*lines, "", note, ""])
    return found


def with_tables(page: str, content: dict[str, Any]) -> str:
    """Return the page with new tables."""
    for base, table in tables(content).items():
        head, rest = page.split(BEGIN.format(base))
        _, tail = rest.split(END, 1)
        page = head + BEGIN.format(base) + "\n" + table + "\n" + END + tail
    return page


def main() -> None:
    """Measure what the JSON lacks."""
    results = read()
    keys = ("base", "rows", "method", "variant")
    known = {tuple(result[key] for key in keys) for result in results}
    before: dict[tuple[str, str], dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_long_rows(Path(folder))
        for training in trainings():
            if tuple(training.values()) in known:
                continue
            result = {**training, **measure(training, Path(folder))}
            if training["rows"] == "long":
                group = training["base"], training["variant"]
                before[group] = before.get(group) or estimates_before(training)
                result["before"] = before[group][training["method"]]
            results.append(result)
            print(result, [f"{error:+.0%}" for error in errors([result])], flush=True)
            write(results)
    content = json.loads(RESULTS.read_text(encoding="utf-8"))
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), content), encoding="utf-8")


if __name__ == "__main__":
    main()

"""The quickstart: an untouched base, prompt tuning and LoRA on sample tweets, side by side."""

import json
import shlex
from collections import Counter
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from peftly.adapters import attached, detach
from peftly.data import Data, DataConfig, Split, load_data
from peftly.errors import ConfigError
from peftly.evaluation import evaluate
from peftly.methods import LoRA, MethodConfig, PromptTuning
from peftly.models import Base, load_base
from peftly.report import comparison_row, comparison_table, pick_samples, write_comparison
from peftly.runs.config import RunConfig
from peftly.runs.folder import clear_run, write_json
from peftly.runs.run import run
from peftly.training import ProgressBar, TrainConfig
from peftly.utils import environment, program

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["quickstart"]

TASK = "Is this tweet a complaint or not?"
SPLITS = ("train", "validation", "test")
RESULTS = "quickstart.json"
SHOWN = 6

# Eight tokens that show the form of an answer: the base says one of the labels from the start, and training is left
# with which. Rows that start as a question spend their first epoch on the form (docs/log.md).
ANSWERS = "Label: complaint\nLabel: no complaint"
METHODS: dict[str, tuple[str, MethodConfig, dict[str, Any]]] = {
    "prompt_tuning": (
        "prompt tuning",
        PromptTuning(num_virtual_tokens=8, init="text", init_text=ANSWERS),
        {"epochs": 5, "batch_size": 4, "eval_steps": 125, "learning_rate": 6e-3},
    ),
    "lora": ("LoRA", LoRA(), {"epochs": 2, "batch_size": 4}),
}
"""Folder: the name in the table, the settings of the method, and those of its training."""


def quickstart(
    out: Path,
    *,
    base_spec: str,
    seed: int,
    epochs: int | None,
    limit: int | None,
    json_file: Path | None,
    screen: "Console",
) -> dict[str, Any]:
    """Run it, print it, and write `out`: both runs, the data, the results and a report.

    Args:
        out: replaced if an earlier quickstart wrote it.
        base_spec: what `load_base` takes.
        seed: of both runs.
        epochs: of both runs; None: each method's own.
        limit: rows of each split; None: all.
        json_file: another place for the results.
        screen: where it prints.

    Raises:
        ConfigError: `out` holds something else.
    """
    _check_folder(out)
    screen.print(f"base: {base_spec}", markup=False)
    base = load_base(base_spec)
    _clear_folder(out, screen)
    config = _data_config(out / "data", limit)
    data = load_data(config, base.tokenizer)
    for line in data.report.lines():
        screen.print(line, markup=False)
    test = cast(Split, data.test)  # the sample data have one
    screen.print(f"\n[bold]untouched base[/]\nevaluating on the test split: {len(test.examples)} rows")
    untouched = evaluate(base.model, base.tokenizer, test, data.row_format)
    rows = [comparison_row("untouched base", untouched)]
    for folder, (name, method, training) in METHODS.items():
        screen.print(f"\n[bold]{name}[/]")
        train = TrainConfig(**training | {"seed": seed} | ({"epochs": epochs} if epochs else {}))
        settings = RunConfig(base=base_spec, data=config, method=method, train=train, out=str(out / folder))
        rows.append(_train(name, settings, base, data, screen))
    results = {
        "title": "peftly quickstart",
        "subtitle": f"{TASK} {base_spec}, {len(test.examples)} test rows, seed {seed}",
        "base": base_spec,
        "seed": seed,
        "texts": _texts(out / "data" / "test.jsonl"),
        "gold": [row.label for row in untouched.predictions],
        "rows": rows,
        "data": data.report.lines(),
        "environment": environment(),
    }
    for file in filter(None, (out / RESULTS, json_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, results)
    _print(results, write_comparison(out), out, screen)
    return results


def _check_folder(out: Path) -> None:
    """Refuse a folder that a quickstart cannot have; nothing is changed."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / RESULTS).is_file():
        raise ConfigError(f"--out {out} holds files that are not from a quickstart; choose another folder")


def _clear_folder(out: Path, screen: "Console") -> None:
    """Make `out` this quickstart's own; what an earlier one wrote there goes, and nothing else."""
    if (out / RESULTS).is_file():
        screen.print(f"replacing the earlier quickstart in {out}", markup=False)
        for folder in METHODS:
            clear_run(out / folder)
        for split in SPLITS:
            (out / "data" / f"{split}.jsonl").unlink(missing_ok=True)
        (out / "report.html").unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    # From the first moment on the folder says whose it is, so that a quickstart that was stopped can be repeated.
    write_json(out / RESULTS, {"task": TASK})


def _data_config(folder: Path, limit: int | None) -> DataConfig:
    """Put the sample data beside the runs, where the next commands can name it, and return where that is."""
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        with as_file(files("peftly") / "sample_data" / "complaints" / f"{split}.jsonl") as source:
            lines = source.read_text(encoding="utf-8").splitlines()
        (folder / f"{split}.jsonl").write_text("\n".join(_few(lines, limit)) + "\n", encoding="utf-8")
    train, validation, test = (str(folder / f"{split}.jsonl") for split in SPLITS)
    return DataConfig(train=train, validation=validation, test=test)


def _few(lines: list[str], limit: int | None) -> list[str]:
    """Return the first rows of every label in turn, so that few rows still show every label; None: all, as they are."""
    if limit is None:
        return lines
    seen: Counter[str] = Counter()
    turns = []
    for line in lines:
        label = json.loads(line)["label"]
        turns.append((seen[label], line))
        seen[label] += 1
    return [line for _, line in sorted(turns, key=lambda turn: turn[0])][:limit]


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _train(name: str, config: RunConfig, base: Base, data: Data, screen: "Console") -> dict[str, Any]:
    try:
        with ProgressBar(screen) as bar:
            result = run(
                config, base=base, data=data, say=lambda line: screen.print(line, markup=False), callbacks=[bar]
            )
    finally:
        if attached(base.model):
            detach(base.model)
    return result.comparison_row(name)


def _print(results: dict[str, Any], report: Path, out: Path, screen: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    screen.print()
    screen.print(comparison_table(results["rows"]))
    samples = Table("tweet", "is", *(row["name"] for row in results["rows"]))
    for sample in pick_samples(results, SHOWN):
        marks = (
            Text(("✓ " if guess == sample["gold"] else "✗ ") + guess, "green" if guess == sample["gold"] else "red")
            for guess in sample["predicted"]
        )
        samples.add_row(Text(sample["text"]), sample["gold"], *marks)
    screen.print(samples)
    screen.print(f"report: {report}\n\nNext:", markup=False)
    for command in next_commands(out, results["base"]):
        screen.print(f"  {command}", markup=False)


def next_commands(out: Path, base: str) -> list[str]:
    """Return commands that go on from here; each works as it is printed."""
    peftly, lora, data = program(), shlex.quote(str(out / "lora")), out / "data"
    return [
        f'{peftly} generate {lora} --text "@parcels third day of waiting, where is my order?"',
        f"{peftly} evaluate {lora}",
        f"{peftly} inspect {lora}",
        f"{peftly} train --base {shlex.quote(base)} --data {shlex.quote(str(data / 'train.jsonl'))} "
        f"--test {shlex.quote(str(data / 'test.jsonl'))} --method lora --out {shlex.quote(str(out.parent / 'mine'))}",
    ]

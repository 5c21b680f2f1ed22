"""The quickstart: an untouched base, prompt tuning and LoRA on sample data, in one comparison."""

import json
import shlex
from collections import Counter
from functools import partial
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

from peftly.adapters import attached, detach
from peftly.data import Data, DataConfig, Split, load_data
from peftly.methods import LoRA, MethodConfig, PromptTuning
from peftly.models import Base, load_base, resolve_base
from peftly.report import comparison_row, comparison_table, pick_samples, write_comparison
from peftly.runs.baselines import BASE, PROBE, baseline_scores
from peftly.runs.config import RunConfig
from peftly.runs.replacing import clear_run
from peftly.runs.run import run
from peftly.training import ProgressBar, TrainConfig
from peftly.utils import (
    MARK,
    bytes_text,
    check_output_folder,
    environment,
    make_folder,
    mark_text,
    program,
    read_mark,
    recover,
    replacing_files,
    share_text,
    write_json,
    write_new_file,
    write_text,
)

__all__ = ["QuickstartTask", "quickstart"]

QuickstartTask = Literal["messages", "tweets"]
"""Name of a task of the quickstart."""

_SPLITS = ("train", "validation", "test")
_KIND = "a quickstart"
_RESULTS = "quickstart.json"
_SHOWN_SAMPLES = 6

_PROMPT, _LORA = ("prompt_tuning", "prompt tuning"), ("lora", "LoRA")
"""Run folder and name in the comparison of each method."""


class _Task(NamedTuple):
    """A task of the quickstart.

    Attributes:
        data: folder of the rows in `sample_data`.
        question: the question that the labels answer.
        text: a text of the task that is not one of the rows.
        prompt_tuning, lora: settings of each method and of its training.
    """

    data: str
    question: str
    text: str
    prompt_tuning: tuple[MethodConfig, dict[str, Any]]
    lora: tuple[MethodConfig, dict[str, Any]]


# The tokens of each text have the form of the answers: the base predicts one of the labels from the start, and training
# only has to learn which. A prompt that does not show every label learns the messages half as fast (docs/log.md).
TASKS: dict[QuickstartTask, _Task] = {
    "messages": _Task(
        "messages",
        "Which department does this message go to?",
        "i paid for two of these and only one was in the parcel",
        prompt_tuning=(
            PromptTuning(num_virtual_tokens=10, init="text", init_text=" Label: billing, delivery, jobs, technical\n"),
            {"epochs": 3, "batch_size": 4, "learning_rate": 8e-3},
        ),
        lora=(LoRA(), {"epochs": 2, "batch_size": 4}),
    ),
    "tweets": _Task(
        "complaints",
        "Is this tweet a complaint or not?",
        "@parcels third day of waiting, where is my order?",
        prompt_tuning=(
            PromptTuning(num_virtual_tokens=8, init="text", init_text=" Label: complaint\nLabel: no complaint"),
            {"epochs": 5, "batch_size": 4, "eval_steps": 125, "learning_rate": 6e-3},
        ),
        lora=(LoRA(), {"epochs": 2, "batch_size": 4}),
    ),
}


def quickstart(
    out: Path,
    *,
    task: QuickstartTask = "messages",
    base_spec: str,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    seed: int,
    epochs: int | None = None,
    limit: int | None = None,
    json_file: Path | None = None,
    screen: Console,
) -> dict[str, Any]:
    """Train both adapters, print the comparison, and write data, run folders, results and report to `out`.

    Args:
        out: output folder; an earlier quickstart in it is replaced.
        task: task, which decides the rows and the settings.
        base_spec: base as `load_base` takes it.
        dtype: dtype of the computation, as in `RunConfig`.
        seed: seed of both runs.
        epochs: epochs of both runs; None: the default of each method.
        limit: maximum number of examples of each split; None: all.
        json_file: additional path for the results.
        screen: console for the output.

    Returns:
        The results, as written to quickstart.json.

    Raises:
        ConfigError: `out` cannot be written, or holds other files.
    """
    check_output_folder(out, kind=_KIND, overwrite=True, in_place=True)
    screen.print(f"base: {base_spec}", markup=False)
    base = load_base(base_spec, dtype=dtype)
    _clear_folder(out, screen)
    chosen = TASKS[task]
    config = _write_data(chosen.data, out / "data", limit)
    data = load_data(config, base.tokenizer)
    for line in data.report.lines():
        screen.print(line, markup=False)
    test = cast(Split, data.test)  # the sample data have a test split
    screen.print("\nuntouched base", style="bold")
    settings = partial(RunConfig, base=base_spec, dtype=dtype, data=config)
    baselines = baseline_scores(base, None, data, settings(method=LoRA(), out=str(out)), screen.print)
    weights = resolve_base(base_spec).weights_bytes()
    rows = [
        comparison_row(name, scores, size=(weights or 0) if name == BASE else 0) for name, scores in baselines.items()
    ]
    for (folder, name), (method, training) in ((_PROMPT, chosen.prompt_tuning), (_LORA, chosen.lora)):
        screen.print(f"\n{name}", style="bold")
        train = TrainConfig(**training | {"seed": seed} | ({"epochs": epochs} if epochs else {}))
        run_config = settings(method=method, train=train, baselines=False, out=str(out / folder))
        rows.append(_train(name, run_config, base, data, screen))
    results = {
        "title": "peftly quickstart",
        "subtitle": f"{chosen.question} {base_spec}, {len(test.examples)} test examples, seed {seed}",
        "task": task,
        "base": base_spec,
        "seed": seed,
        "texts": _texts(out / "data" / "test.jsonl"),
        "gold": [example.label for example in test.examples],
        "rows": rows,
        "data": data.report.lines(),
        "environment": environment(),
    }
    for file in filter(None, (out / _RESULTS, json_file)):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, results)
    _print(results, write_comparison(out, _RESULTS), out, screen)
    return results


def _clear_folder(out: Path, screen: Console) -> None:
    """Delete the files of an earlier quickstart, and mark the folder. Files of other origin are not touched."""
    recover(out / "data")
    if read_mark(out).get("kind") == _KIND:
        screen.print(f"replacing the earlier quickstart in {out}", markup=False)
        for folder, _ in (_PROMPT, _LORA):
            clear_run(out / folder)
    files = [f"data/{split}.jsonl" for split in _SPLITS] + ["report.html", _RESULTS]
    # With the mark an interrupted quickstart can be repeated in the same folder.
    with replacing_files(out, deletes=files if read_mark(out) else ()) as scratch:
        write_new_file(scratch / MARK, mark_text(_KIND).encode("utf-8"))


def _write_data(source: str, folder: Path, limit: int | None) -> DataConfig:
    """Write the sample data beside the runs, where the suggested commands find them."""
    make_folder(folder)
    for split in _SPLITS:
        with as_file(files("peftly") / "sample_data" / source / f"{split}.jsonl") as file:
            lines = file.read_text(encoding="utf-8").splitlines()
        write_text(folder / f"{split}.jsonl", "\n".join(_first_of_each_label(lines, limit)) + "\n")
    train, validation, test = (str(folder / f"{split}.jsonl") for split in _SPLITS)
    return DataConfig(train=train, validation=validation, test=test)


def _first_of_each_label(lines: list[str], limit: int | None) -> list[str]:
    """Return the first `limit` lines with the labels in turn, so that few lines have all labels; None: all lines."""
    if limit is None:
        return lines
    counts: Counter[str] = Counter()
    turns = []
    for line in lines:
        label = json.loads(line)["label"]
        turns.append((counts[label], line))
        counts[label] += 1
    return [line for _, line in sorted(turns, key=lambda turn: turn[0])][:limit]


def _texts(file: Path) -> list[str]:
    return [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]


def _train(name: str, config: RunConfig, base: Base, data: Data, screen: Console) -> dict[str, Any]:
    """Train one adapter, detach it from the base, and return its row of the comparison."""
    try:
        with ProgressBar(screen) as bar:
            result = run(
                config, base=base, data=data, log=lambda line: screen.print(line, markup=False), callbacks=[bar]
            )
    finally:
        if attached(base.model):
            detach(base.model)
    return result.comparison_row(name)


def _print(results: dict[str, Any], report: Path, out: Path, screen: Console) -> None:
    screen.print()
    print_summary(results, screen)
    screen.print(f"report: {report}\n\nNext:", markup=False)
    for command in _next_commands(out, results["task"], results["base"]):
        screen.print(f"  {command}", markup=False, soft_wrap=True)


def print_summary(results: dict[str, Any], screen: Console) -> None:
    """Print the scores, examples of answers, and the sizes of the adapters beside that of the base."""
    screen.print(comparison_table(results["rows"]))
    screen.print(_samples(results))
    for line in _sizes(results["rows"]):
        screen.print(line, markup=False)


def _samples(results: dict[str, Any]) -> Table:
    """Return a table of examples with the answers before and after training."""
    trained = [row for row in results["rows"] if row["name"] != PROBE]
    samples = Table("text", "label", *(row["name"] for row in trained), title="Answers before and after training")
    for sample in pick_samples(results | {"rows": trained}, _SHOWN_SAMPLES):
        marks = (
            Text(("✓ " if label == sample["gold"] else "✗ ") + label, "green" if label == sample["gold"] else "red")
            for label in sample["predicted"]
        )
        samples.add_row(Text(sample["text"]), sample["gold"], *marks)
    return samples


def _sizes(rows: list[dict[str, Any]]) -> list[str]:
    """Return a line for each adapter with its size beside that of the base."""
    base = rows[0]
    if not base["bytes"]:  # the base's files are not safetensors
        return []
    return [
        f"{row['name']}: {bytes_text(row['bytes'])} beside a base of {bytes_text(base['bytes'])}, "
        f"accuracy {share_text(base['accuracy'])} -> {share_text(row['accuracy'])}"
        for row in rows
        if row["parameters"]
    ]


def _next_commands(out: Path, task: QuickstartTask, base: str) -> list[str]:
    """Return commands to try after a quickstart, as they can be typed in this shell.

    Args:
        out: output folder of the quickstart.
        task: task of the quickstart.
        base: base of the quickstart, as `load_base` takes it.
    """
    peftly, data = program(), out / "data"
    prompt, lora = (shlex.quote(str(out / folder)) for folder, _ in (_PROMPT, _LORA))
    return [
        f"{peftly} generate {prompt} --text {shlex.quote(TASKS[task].text)}",
        f"{peftly} evaluate {lora}",
        f"{peftly} inspect {prompt}",
        f"{peftly} train --base {shlex.quote(base)} --data {shlex.quote(str(data / 'train.jsonl'))} "
        f"--test {shlex.quote(str(data / 'test.jsonl'))} --method lora --out {shlex.quote(str(out.parent / 'mine'))}",
    ]

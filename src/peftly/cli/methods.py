"""`peftly methods`."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftly.cli.console import console, echo, import_libraries, silence_libraries
from peftly.cli.options import BaseOption, BatchSize, ConfigFile, MaxLength, Overrides, TaskOption
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.runs import MemoryEstimate, RunConfig

__all__ = ["methods"]


def methods(
    config: ConfigFile = None,
    base: BaseOption = None,
    quantization: Annotated[
        str | None, typer.Option("--quantization", help="Quantization of the base's linear layers: nf4, fp4 or int8.")
    ] = None,
    task: TaskOption = None,
    max_length: MaxLength = None,
    batch_size: BatchSize = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the methods. With a base: the parameters and the memory of each on it, from its config alone."""
    flags = {
        "base": base,
        "quantization": quantization,
        "task": task,
        "max_length": max_length,
        "batch_size": batch_size,
    }
    if config is None and base is None:
        if overrides or any(value is not None for value in flags.values()):
            raise ConfigError("these settings are of a training on a base; name it: --base smollm2-135m")
        _print_methods(as_json=as_json)
        return
    import_libraries()
    from peftly.runs import load_config, one_run
    from peftly.utils import memory_of_process

    silence_libraries()
    process = memory_of_process()
    defaults = {"data": {"train": "-"}, "method": "lora", "out": "-"}
    _print_estimates(one_run(load_config(config, overrides or (), flags, defaults)), process, as_json=as_json)


def _print_methods(*, as_json: bool) -> None:
    from rich.table import Table

    from peftly.methods import METHODS

    if as_json:
        columns = ("summary", "learning_rate", "mergeable", "paper")
        rows = [{"method": name, **{key: getattr(method, key) for key in columns}} for name, method in METHODS.items()]
        echo(json.dumps(rows, indent=2))
        return
    table = Table("method", "trains", "learning rate", "mergeable", "paper")
    for name, method in METHODS.items():
        mergeable = "yes" if method.mergeable else "no"
        table.add_row(name, method.summary, f"{method.learning_rate:g}", mergeable, method.paper)
    screen = console()
    screen.print(table)
    screen.print("learning rate: the default for AdamW; mergeable: whether peftly merge can merge it into the base")
    screen.print("parameters and memory on a base: peftly methods --base smollm2-135m")


def _print_estimates(config: "RunConfig", process: int, *, as_json: bool) -> None:
    from rich.table import Table

    from peftly.runs import estimate_methods
    from peftly.utils import bytes_text, count_text

    table = Table("method", "trained parameters", "of all", "adapter", "opening", "training")
    rows: list[dict[str, Any]] = []
    estimates: dict[str, MemoryEstimate] = {}
    for name, found in estimate_methods(config, process):
        if isinstance(found, str):
            rows.append({"method": name, "no_estimate": found})
            table.add_row(name, "—", "—", "—", "—", found)
            continue
        estimates[name] = found
        rows.append({"method": name, **vars(found), "peak_bytes": found.peak_bytes})
        share = f"{found.trained_parameters / found.total_parameters:.4%}"
        sizes = map(bytes_text, (found.adapter_bytes, found.loading_bytes, found.steps_bytes))
        table.add_row(name, count_text(found.trained_parameters), share, *sizes)
    if as_json:
        echo(json.dumps(rows, indent=2))
        return
    screen = console()
    screen.print(table)
    if estimates:
        first = next(iter(estimates.values()))
        train = config.train
        screen.print(
            f"{config.base}: {bytes_text(first.base_bytes)} in memory. Peaks while it is opened, and while it is "
            f"trained on batches of {train.batch_size} examples of {config.data.max_length} tokens ({train.optimizer}) "
            f"and evaluated on batches of {train.evaluation_batch_size}."
        )
        screen.print(
            "On a CPU they are the memory of the whole process."
            if first.device == "cpu"
            else "They are the bytes of tensors on the GPU. With more free memory, more examples are computed at once."
        )

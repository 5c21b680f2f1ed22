"""Try every method on a tiny model of every class of transformers, and write the outcomes into the docs.

    python benchmarks/model_classes.py --again      # all, in half an hour on one core
    python benchmarks/model_classes.py              # the architectures that are not in the JSON: after an interruption
    python benchmarks/model_classes.py --only bert  # this architecture again, and the others stay
    python benchmarks/model_classes.py --report     # only the page

writes benchmarks/results/model_classes.json and the tables in docs/models.md. Each class is tried in a process of its
own, so that a crash or an endless loop is an outcome, too. The exit code is 1 if a method has a fault on some class.
"""

import argparse
import contextlib
import importlib
import importlib.metadata
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "model_classes.json"
sys.path.insert(0, str(ROOT / "tests" / "support"))
LARGEST, SECONDS = 20_000_000, 300
"""Most parameters of a model, and the time for one class."""

LEFT_OUT = {
    "mra": "its attention returns zeros without kernels for GPUs",
    "vits": "it draws the length of its sound at random",
}
"""Architectures whose outputs cannot be compared, with the reason."""

Result = dict[str, Any]
"""Outcome of one class: `base` is the reason why the model itself does not run, or `passes`, `refused` and `faults`."""


def classes() -> dict[str, dict[str, list[str]]]:
    """Return the classes of transformers that an Auto class opens, with these Auto classes, by architecture."""
    from transformers.models.auto import modeling_auto

    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for auto_name, auto in sorted(vars(modeling_auto).items()):
        mapping = getattr(auto, "_model_mapping", None) if auto_name.startswith("AutoModel") else None
        for model_type, names in getattr(mapping, "_model_mapping", {}).items():
            for name in names if isinstance(names, list | tuple) else [names]:
                found[model_type][name].append(auto_name)
    return {model_type: dict(found[model_type]) for model_type in sorted(found)}


def tiny(model_type: str, class_name: str) -> tuple[Any, Any]:
    """Return a tiny random model of a class, in evaluation mode, and inputs that it runs with.

    Raises:
        ValueError: no such model was made; the message says why.
    """
    import torch
    import transformers
    from model_inputs import working_inputs
    from tiny_configs import tiny_configs

    if model_type in LEFT_OUT:
        raise ValueError(LEFT_OUT[model_type])
    reason = ""
    for config in tiny_configs(model_type):
        try:
            if isinstance(config, Exception):
                raise config
            kind = getattr(transformers, class_name)
            with torch.device("meta"):
                count = sum(parameter.numel() for parameter in kind(config).parameters())
            if count > LARGEST:
                raise ValueError(f"it has {count:,} parameters")
            torch.manual_seed(0)
            model = kind(config).eval()
            for parameter in model.parameters():
                parameter.data.add_(0.02 * torch.randn_like(parameter))  # no zeros, which hide mistakes
            return model, working_inputs(model)
        except Exception as error:  # noqa: BLE001 -- of any class of transformers
            reason = reason or f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise ValueError(reason)


def check_class(model_type: str, class_name: str, cells: list[str], send: Any) -> None:
    """Check the methods on one class, and pass each outcome to `send` as soon as it is known."""
    from model_cells import check_cell, live_modules

    try:
        model, inputs = tiny(model_type, class_name)
        live = live_modules(model, inputs)
    except Exception as error:  # noqa: BLE001 -- of any class of transformers
        send({"base": str(error)[:250]})
        return
    send({"inputs": sorted(inputs), "parameters": model.num_parameters()})
    for cell in cells:
        send({"cell": cell})
        outcome = check_cell(model, inputs, cell, live)
        send({"cell": cell, "kind": outcome.kind, "reason": outcome.reason, "notes": outcome.notes})


def warm_up(cells: list[str]) -> None:
    """Import once, and not in every process, the modules that a check imports when it runs."""

    def check(send: Any) -> None:
        check_class("bert", "BertForSequenceClassification", cells, lambda line: None)
        send({"modules": sorted(sys.modules)})

    # In a process of its own: a pool of threads that has run here would not survive a fork.
    lines = in_process(check)
    for name in lines[-1]["modules"] if lines else ():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def imported(class_name: str) -> None:
    """Import the file of a class before the processes of an architecture begin, if it can be imported."""
    import transformers

    with contextlib.suppress(Exception):  # which is an outcome of the class
        getattr(transformers, class_name)


def in_process(work: Callable[[Any], None]) -> list[dict[str, Any]]:
    """Call a function in a process of its own, and return the lines that it has sent with the function it is given."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(read)
            with os.fdopen(write, "w", encoding="utf-8") as pipe:
                work(lambda line: print(json.dumps(line), file=pipe, flush=True))
        finally:
            os._exit(0)  # never into the code of the parent
    os.close(write)
    data, deadline = b"", time.monotonic() + SECONDS
    while select.select([read], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if not (part := os.read(read, 65536)):
            break
        data += part
    else:
        os.kill(child, signal.SIGKILL)
    os.close(read)
    os.waitpid(child, 0)
    return [json.loads(line) for line in data.decode().splitlines()]


def result_of(lines: list[dict[str, Any]], cells: list[str]) -> Result:
    """Return the result of a class from what its process has said."""
    head = lines[0] if lines else {"base": "its process ended"}
    if "base" in head:
        return head
    ended = {line["cell"]: line for line in lines if "kind" in line}
    begun = [line["cell"] for line in lines if "cell" in line]
    result: Result = {"inputs": head["inputs"], "passes": [], "refused": {}, "faults": {}, "notes": {}}
    for cell in cells:
        line = ended.get(cell, {"kind": "fault", "reason": "its process ended, or ran too long", "notes": []})
        if cell not in begun or line["kind"] == "left out":
            continue
        if line["kind"] == "passes":
            result["passes"].append(cell)
        elif line["kind"] == "refused":
            result["refused"].setdefault(line["reason"], []).append(cell)
        else:
            result["faults"][cell] = line["reason"]
        for note in line["notes"]:
            result["notes"].setdefault(note, []).append(cell)
    return result


def versions() -> dict[str, str]:
    """Return the versions of the libraries."""
    return {name: importlib.metadata.version(name) for name in ("transformers", "peft", "torch")}


def read(path: Path = RESULTS) -> dict[str, Any]:
    """Return the results, or empty ones."""
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    return {"versions": versions(), "architectures": {}}


def write(results: dict[str, Any], path: Path = RESULTS) -> None:
    """Write the results, a class on a line."""
    lines = [
        f" {json.dumps(model_type)}: {{\n"
        + ",\n".join(f"  {json.dumps(name)}: {json.dumps(result)}" for name, result in found.items())
        + "\n }"
        for model_type, found in sorted(results["architectures"].items())
    ]
    text = f'{{"versions": {json.dumps(results["versions"])},\n"architectures": {{\n' + ",\n".join(lines) + "\n}}\n"
    path.with_suffix(".part").write_text(text, encoding="utf-8")
    path.with_suffix(".part").replace(path)


def measure(options: argparse.Namespace) -> None:
    """Check the architectures that are not in the results."""
    warnings.simplefilter("ignore")
    import torch
    import transformers
    from model_cells import CELLS

    torch.set_num_threads(1)  # more do not survive a fork
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    results = {"versions": versions(), "architectures": {}} if options.again else read(options.out)
    known = results["architectures"]
    cells = options.cells or list(CELLS)
    warm_up(cells)
    for model_type, found in classes().items():
        is_wanted = model_type in options.only if options.only else model_type not in known
        if not is_wanted or (options.resume and model_type in known):
            continue
        started = processor_seconds()
        known[model_type] = {}
        for class_name, auto in found.items():
            imported(class_name)
            lines = in_process(partial(check_class, model_type, class_name, cells))
            result = result_of(lines, cells)
            known[model_type][class_name] = {"auto": auto, **result}
            show(model_type, class_name, result)
        write(results, options.out)
        print(f"{model_type}: {processor_seconds() - started:.1f} s", flush=True)


def processor_seconds() -> float:
    """Return the time on a processor of all processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def faults(results: dict[str, Any]) -> list[str]:
    """Return the faults in results, one line for each."""
    return [
        f"{model_type}:{class_name} {cell}: {reason}"
        for model_type, found in results["architectures"].items()
        for class_name, result in found.items()
        for cell, reason in result.get("faults", {}).items()
    ]


def show(model_type: str, class_name: str, result: Result) -> None:
    """Print the faults of a class."""
    for cell, reason in result.get("faults", {}).items():
        print(f"FAULT {model_type}:{class_name} {cell}: {reason}", flush=True)
    if "base" in result:
        print(f"BASE {model_type}:{class_name}: {result['base']}", flush=True)


def main() -> int:
    """Read the command line, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="architectures, which are tried again")
    parser.add_argument("--cells", nargs="*", help="methods, for a look at some faults; use another --out")
    parser.add_argument("--again", action="store_true", help="try all architectures again")
    parser.add_argument("--resume", action="store_true", help="leave out those of --only that are in the JSON")
    parser.add_argument("--out", type=Path, default=RESULTS, help="another file, and no page")
    parser.add_argument("--report", action="store_true", help="try nothing, and write the page")
    options = parser.parse_args()
    if not options.report:
        measure(options)
    if options.out == RESULTS:
        importlib.import_module("model_classes_page").write_page()
    found = faults(read(options.out))
    print(f"{len(found)} faults")
    return 1 if found else 0


if __name__ == "__main__":
    sys.modules["model_classes"] = sys.modules["__main__"]  # the page imports this file
    sys.exit(main())

"""Run the recipes of docs/recipes on their real bases, check the results against stated bounds, and write the pages.

    make recipes                              # every recipe, each in a process of its own (long)
    python benchmarks/recipes.py NAME ...     # some of them, in this process
    python benchmarks/recipes.py --folder F NAME   # keep the files in F/NAME; a finished run there is not trained again
    python benchmarks/recipes.py --seeds 1 2 NAME  # the whole job with other seeds, beside the results
    python benchmarks/recipes.py --pages      # only the tables and pictures, from the committed JSON

A recipe is a file `benchmarks/recipe_NAME.py` with

BASE        name of the base
BOUNDS      bounds of the result: `{"lora.accuracy": (0.85, None)}` for `result["lora"]["accuracy"] >= 0.85`; one end
            may be None. An element of a list is addressed by its index: `"epochs.0.loss"`
measure     `measure(folder: Path) -> dict`: runs the whole job, with all files in an empty temporary folder, and
            returns the result as JSON values
tables      `tables(content: dict) -> dict[str, str]`: Markdown tables by name, from the content of the JSON
PAGE        optional: name of the page, if it is not that of the recipe
HEADLINES   optional: paths and forms of the numbers that are also given for other seeds, by their names in the page:
            `{"accuracy of LoRA": ("lora.accuracy", ".1%")}`; `measure` then takes `seed`
pictures    optional, `pictures(content: dict) -> dict[str, str]`: SVG files by their name in docs/img

`measure` may call `train`, `peftly`, `scores` and `example` of this file, and `tables` may call `machine`. The content
of benchmarks/results/recipes/NAME.json is

    recipe, base, result, seconds, cpu_seconds, peak_memory_bytes, dtype, environment

and `other_seeds`, the headlines of each other seed that was measured; they stand in the table `NAME seeds` of the page.
Seconds and peak memory are those of the whole recipe; seconds are null if a run of an earlier call was used. A result
outside its bounds is an error, and nothing is written. The table X of docs/recipes/PAGE.md stands between
`<!-- table: X -->` and `<!-- end of table -->`. `make test` compares page, pictures and bounds with the JSON.
"""

import argparse
import importlib
import importlib.util
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "recipes"
PAGES = ROOT / "docs" / "recipes"
PICTURES = ROOT / "docs" / "img"
RECIPES = tuple(sorted(file.stem.removeprefix("recipe_") for file in Path(__file__).parent.glob("recipe_*.py")))
"""Names of all recipes."""

REUSED: list[Path] = []
"""Folders of the runs of an earlier call that this process has used."""


def recipe(name: str) -> ModuleType:
    """Import the file of a recipe."""
    if str(Path(__file__).parent) not in sys.path:
        sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module(f"recipe_{name}")


def example(name: str) -> ModuleType:
    """Import `examples/NAME.py`."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def peftly(*arguments: object) -> str:
    """Run a command of peftly in the root of the repository, and return what it writes to the standard output."""
    command = [sys.executable, "-m", "peftly", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def train(config: str, out: Path, *options: object, seed: int = 0) -> Path:
    """Run `peftly train` with a YAML file of the repository, and return the run folder.

    Args:
        config: path of the YAML file in the repository.
        out: run folder. If a finished run is there, it is the result.
        options: further options of the command.
        seed: seed of the training.
    """
    if any((out / name).is_file() for name in ("summary.json", "results.json")):
        REUSED.append(out)
    else:
        peftly("train", config, "--out", out, "--overwrite", "--seed", seed, *options)
    return out


def scores(run: Path) -> dict[str, Any]:
    """Return the numbers of a finished run: scores on its held-out `examples`, sizes, seconds, baselines."""
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    evaluation = json.loads((run / "evaluation.json").read_text(encoding="utf-8"))
    kept = {key: evaluation.get(key) for key in ("split", "accuracy", "macro_f1", "loss", "perplexity", "entity_f1")}
    kept |= {key: summary[key] for key in ("parameters", "bytes", "seconds", "steps", "best_step", "peak_memory_bytes")}
    kept |= {"examples": evaluation["rows"], "baselines": evaluation["baselines"]}
    return {key: value for key, value in kept.items() if value is not None}


def value_of(result: Any, path: str) -> float:
    """Return the number at a path such as `lora.accuracy` or `epochs.0.loss`."""
    for part in path.split("."):
        result = result[int(part)] if isinstance(result, list) else result[part]
    return float(result)


def outside(result: dict[str, Any], bounds: dict[str, tuple[float | None, float | None]]) -> list[str]:
    """Return a line for each number of a result that is outside its bounds."""
    lines = []
    for path, (low, high) in bounds.items():
        value = value_of(result, path)
        if not (low is None or value >= low) or not (high is None or value <= high):
            lines.append(f"{path} is {value:.4g}, outside {low} to {high}")
    return lines


def measure(name: str, folder: Path | None = None) -> dict[str, Any]:
    """Run a recipe and return the content of its JSON.

    Args:
        name: name of the recipe.
        folder: folder for its files; None: a temporary one.

    Raises:
        SystemExit: a number is outside its bounds.
    """
    from peftly.utils.environment import automatic_dtype, environment

    module = recipe(name)
    start, cpu_start = time.perf_counter(), cpu_seconds()
    with tempfile.TemporaryDirectory() as temporary:
        result = json.loads(json.dumps(module.measure(folder or Path(temporary))))
    is_whole = not REUSED
    content = {
        "recipe": name,
        "base": module.BASE,
        "result": result,
        "seconds": round(time.perf_counter() - start, 1) if is_whole else None,
        "cpu_seconds": round(cpu_seconds() - cpu_start, 1) if is_whole else None,
        "peak_memory_bytes": peak_memory(),
        "dtype": automatic_dtype(),
        "environment": environment(),
    }
    if lines := outside(result, module.BOUNDS):
        print(json.dumps(content, indent=1))
        raise SystemExit("\n".join(f"{name}: {line}" for line in lines))
    return content


def headlines(name: str, seed: int, folder: Path | None = None) -> dict[str, float]:
    """Run a recipe with another seed, and return its headlines.

    Raises:
        SystemExit: a number is outside its bounds.
    """
    module = recipe(name)
    with tempfile.TemporaryDirectory() as temporary:
        result = json.loads(json.dumps(module.measure(folder or Path(temporary), seed=seed)))
    if lines := outside(result, module.BOUNDS):
        raise SystemExit("\n".join(f"{name}, seed {seed}: {line}" for line in lines))
    return {title: value_of(result, path) for title, (path, _) in module.HEADLINES.items()}


def seeds_table(module: ModuleType, content: dict[str, Any]) -> str:
    """Return the table of the headlines: a line for each number, a column for each seed."""
    seeds = content["other_seeds"]
    lines = [f"| | seed 0 | {' | '.join(f'seed {seed}' for seed in seeds)} |", "|---|---" + "|---" * len(seeds) + "|"]
    for title, (path, form) in module.HEADLINES.items():
        values = [value_of(content["result"], path), *(found[title] for found in seeds.values())]
        lines.append(f"| {title} | {' | '.join(format(value, form) for value in values)} |")
    return "\n".join(lines)


def cpu_seconds() -> float:
    """Return the processor time of this process and of its finished children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def peak_memory() -> int:
    """Return the largest resident set so far of this process or of one of its finished children, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    processes = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    summaries = [json.loads(file.read_text("utf-8")) for run in REUSED for file in run.rglob("summary.json")]
    earlier = [summary["peak_memory_bytes"] for summary in summaries]
    return max([unit * resource.getrusage(who).ru_maxrss for who in processes] + earlier)


def results_of(name: str) -> Path:
    """Return the path of the JSON of a recipe."""
    return RESULTS / f"{name}.json"


def page_of(name: str) -> Path:
    """Return the path of the English page of a recipe."""
    return PAGES / f"{getattr(recipe(name), 'PAGE', name)}.md"


def read(name: str) -> dict[str, Any]:
    """Return the content of the JSON of a recipe."""
    content: dict[str, Any] = json.loads(results_of(name).read_text(encoding="utf-8"))
    return content


def with_tables(page: str, tables: dict[str, str]) -> str:
    """Return a page with new tables.

    Raises:
        ValueError: the page lacks the marks of a table.
    """
    for name, table in tables.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end of table -->"
        pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"the page needs the lines {begin.strip()} and {end} once")
        new = f"{begin}\n{table.strip()}\n\n{end}"
        page = pattern.sub(lambda _match, new=new: new, page)
    return page


def files_of(name: str) -> dict[Path, str]:
    """Return the page and the pictures of a recipe as its JSON gives them, by path."""
    module, content = recipe(name), read(name)
    tables = module.tables(content)
    if content.get("other_seeds"):
        tables |= {f"{name} seeds": seeds_table(module, content)}
    files = {page_of(name): with_tables(page_of(name).read_text(encoding="utf-8"), tables)}
    draw = getattr(module, "pictures", None)
    return files | {PICTURES / file: svg for file, svg in (draw(content) if draw else {}).items()}


def write_files(name: str) -> None:
    """Write the tables of the page and the pictures of a recipe."""
    for path, text in files_of(name).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def machine(content: dict[str, Any]) -> str:
    """Return a line on the machine, the time and the memory of a measurement, to stand under a table."""
    of = content["environment"]
    threads = f"{of['threads']} thread{'s' if of['threads'] != 1 else ''}"
    time = f"{content['cpu_seconds']:.0f} CPU seconds for the whole recipe, " if content["cpu_seconds"] else ""
    return (
        f"Measured on {content['base']} in {content['dtype']} with {threads} of a CPU ({of['cpu']}): {time}"
        f"peak memory {content['peak_memory_bytes'] / 2**20:,.0f} MiB."
    )


def main() -> None:
    """Measure the recipes, and write their JSON and pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"recipes: {', '.join(RECIPES)}")
    parser.add_argument("--folder", type=Path, help="keep the files of each recipe in a folder inside of this one")
    parser.add_argument("--seeds", type=int, nargs="+", default=[], help="other seeds than 0; end the list by --")
    parser.add_argument("--pages", action="store_true", help="write the pages from the committed JSON only")
    options = parser.parse_args()
    if unknown := set(options.names) - set(RECIPES):
        parser.error(f"there is no recipe {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    if options.pages:
        for name in options.names or RECIPES:
            write_files(name)
        return
    if not options.names:
        failed = [name for name in RECIPES if subprocess.run([sys.executable, __file__, name], check=False).returncode]
        raise SystemExit(f"failed: {', '.join(failed)}" if failed else 0)
    sys.modules.setdefault("recipes", sys.modules[__name__])  # the files of the recipes import this one by its name
    for name in options.names:
        folder = options.folder and (options.folder / name).resolve()
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
        if options.seeds:
            content = read(name)
            found = {str(seed): headlines(name, seed, folder and folder / f"seed-{seed}") for seed in options.seeds}
            content["other_seeds"] = dict(sorted((content.get("other_seeds", {}) | found).items()))
        else:
            earlier = read(name).get("other_seeds") if results_of(name).is_file() else None
            content = measure(name, folder) | ({"other_seeds": earlier} if earlier else {})
        results_of(name).parent.mkdir(parents=True, exist_ok=True)
        results_of(name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        write_files(name)
        print("\n\n".join(recipe(name).tables(content).values()))


if __name__ == "__main__":
    main()

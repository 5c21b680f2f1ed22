"""Run commands of the guides with the real bases, and write their outputs into the pages.

    python benchmarks/guide_outputs.py             all guides (ten minutes on two idle cores)
    python benchmarks/guide_outputs.py training    some guides
    python benchmarks/guide_outputs.py --pages     the pages from the committed JSON

writes benchmarks/results/guide_outputs.json, and the text behind each `<!-- output: NAME -->` of the English and the
Chinese page. `make test` compares the pages with the JSON.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results" / "guide_outputs.json"
SAMPLES = ROOT / "src" / "peftly" / "sample_data" / "complaints"
MARKED = re.compile(r"(<!-- output: (.+?) -->\n```text\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)
HOME = "/home/me"
"""Folder that stands in the pages for the folder of the commands."""
LEFT_OUT = "…"
TWEET = '--text "third day of waiting, where is my order?"'
TRAIN = "peftly train --data tweets.jsonl --method lora"
SMALL, ENCODER = "--base smollm2-135m", "--base minilm-l6"

Parts = Sequence[tuple[str, str]]
"""Beginnings of the first and of the last line of each part of an output; none: the whole output."""
WHOLE: Parts = ()


@dataclass(frozen=True)
class Command:
    """A line for a shell, and the parts of its output that a page shows.

    Attributes:
        line: the line. Its standard output and its standard error are one output.
        shown: parts of the output by the name in the marker of the page.
        interrupt_at: beginning of the line of the output after which the command gets Ctrl-C; "": never.
    """

    line: str
    shown: Mapping[str, Parts] = field(default_factory=dict)
    interrupt_at: str = ""


RUNS = (
    Command(f"{TRAIN} {SMALL} --out runs/tweets"),
    Command(f"{TRAIN} {ENCODER} --test test.jsonl --out runs/labels"),
)
"""Runs that several pages use."""
PAGES: dict[str, tuple[Command, ...]] = {
    "install": (Command("peftly env", {"peftly env": WHOLE}),),
    "training": (
        Command(
            f"{TRAIN} {ENCODER} --test test.jsonl --out runs/tweets_lora",
            {
                "decisions of train": [
                    *(("base:", "test:"), ("validation is", "validation is"), ("epochs:", "epochs:")),
                    ("new layers", "memory:"),
                ],
                "results of train": [("epoch training", "report:")],
            },
        ),
        Command(f"peftly methods {ENCODER}", {"methods of minilm-l6": WHOLE}),
        Command(
            f"peftly find-lr {ENCODER} --data tweets.jsonl --method lora --out lr",
            {"find-lr": [("learning", "suggestion")]},
        ),
    ),
    "evaluation": (
        Command("peftly evaluate runs/labels", {"evaluate": WHOLE}),
        Command(
            f"{TRAIN} {SMALL} --test test.jsonl --epochs 1 --out runs/one_epoch",
            {"one epoch": [("test: loss", "linear probe:")]},
        ),
    ),
    "predicting": (
        Command(
            "peftly predict runs/labels --data test.jsonl --out predictions.csv && echo && head -n 3 predictions.csv",
            {"predict": [("300 rows of", "Tracking page")]},
        ),
    ),
    "generating": (
        Command(f"peftly generate runs/tweets {TWEET}", {"generate": WHOLE}),
        Command(f"peftly generate runs/labels {TWEET}", {"generate labels": WHOLE}),
        Command(
            f"peftly train {SMALL} --data four.jsonl --validation none --method lora --epochs 10"
            " --out runs/instructions"
        ),
        Command(
            'peftly generate runs/instructions --text "Name a colour." --text "Name a city."'
            f" && peftly generate runs/tweets {TWEET} --json",
            {"generate several": WHOLE},
        ),
        Command(
            "printf 'What is the capital of Norway?\nAnd of Sweden?\n'"
            f' | peftly chat {SMALL} --system "Answer in one sentence."',
            {"chat": WHOLE},
        ),
    ),
    "memory": (
        Command(f"peftly methods {SMALL}", {"methods of smollm2-135m": WHOLE}),
        Command(
            f"{TRAIN} {SMALL} --out runs/memory", {"memory of train": [("memory:", "memory:"), ("trained", "trained")]}
        ),
    ),
    "heads": (
        Command(
            f"{TRAIN} {ENCODER} --out runs/tweets_labels",
            {"start of the head": [("head:", "head:"), ("new layers", "new layers")]},
        ),
    ),
    "tasks": (
        Command(
            f"{TRAIN} {ENCODER} --test test.jsonl --out runs/classes",
            {"task of train": [("task:", "task:")], "results of classes": [("best:", "trained")]},
        ),
        Command(f"peftly generate runs/classes {TWEET}", {"generate classes": WHOLE}),
        Command(f"peftly train {ENCODER} --data tags.jsonl --method lora --out runs/tags"),
        Command('peftly generate runs/tags --text "Lena Wu lives in Cairo ."', {"generate tags": WHOLE}),
    ),
    "trackers": (
        Command(f"{TRAIN} {ENCODER} --epochs 1 --set train.report_to=csv --out runs/csv"),
        Command("head -n 3 runs/csv/trackers/csv/train.csv", {"train.csv": WHOLE}),
        Command("cat runs/csv/trackers/csv/eval.csv", {"eval.csv": WHOLE}),
    ),
    "resuming": (
        Command(
            f"{TRAIN} {SMALL} --set train.max_steps=40 --out runs/stopped",
            {"interrupted": [("step 8/40", "error:")]},
            interrupt_at="step 10/40",
        ),
        Command("peftly train --resume runs/stopped", {"resumed": [("continuing", "step 14/40")]}),
    ),
    "merging": (Command("peftly merge runs/tweets --out merged/tweets", {"merge": WHOLE}),),
    "export": (Command("peftly export runs/tweets --to vllm --out out/tweets", {"export": WHOLE}),),
    "sharing": (
        Command(
            "peftly push runs/tweets --to alice/tweets --dry-run",
            {"push": [("# A lora", "# A lora"), ("## Scores", "| macro-F1"), ("  README.md", "nothing was")]},
        ),
    ),
    "data": (Command(f"peftly inspect tweets.jsonl {SMALL} --examples 1", {"inspect tweets": WHOLE}),),
    "templates": (Command("peftly inspect marked.yaml --examples 1", {"inspect template": [("example 1", "│Label")]}),),
    "inspect": (
        Command(f"peftly inspect faulty.jsonl {SMALL} --validation none --examples 1", {"inspect faulty": WHOLE}),
    ),
}
"""Commands of each page under docs/, in order. The page about Python is run as it is, see `python_page`."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = [*PAGES, "python"]
    parser.add_argument("names", nargs="*", help=f"guides (default: all): {', '.join(known)}")
    parser.add_argument("--pages", action="store_true", help="measure nothing, write the pages from the JSON")
    options = parser.parse_args()
    if wrong := set(options.names) - set(known):
        parser.error(f"no guide is called {', '.join(sorted(wrong))}")
    if not options.pages:
        outputs = read() if RESULTS.is_file() else {}
        with tempfile.TemporaryDirectory() as folder:
            outputs |= measure(options.names or known, Path(folder))
        named = {name for commands in PAGES.values() for command in commands for name in command.shown}
        outputs = {name: found for name, found in outputs.items() if name in named or found["page"] == "python"}
        RESULTS.write_text(json.dumps(outputs, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for page in pages():
        text = page.read_text(encoding="utf-8")
        page.write_text(with_outputs(text, read()), encoding="utf-8")


def read() -> dict[str, dict[str, str]]:
    """Return the page, the command and the shown output of each name."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def pages() -> list[Path]:
    """Return all pages with outputs."""
    return [page for page in sorted(DOCS.rglob("*.md")) if MARKED.search(page.read_text(encoding="utf-8"))]


def with_outputs(page: str, outputs: Mapping[str, Mapping[str, str]]) -> str:
    """Return a page with the outputs in its marked blocks.

    Raises:
        KeyError: a marker has an unknown name.
    """
    return MARKED.sub(lambda match: match[1] + outputs[match[2]]["text"] + match[4], page)


def measure(names: Sequence[str], folder: Path) -> dict[str, dict[str, str]]:
    """Run the commands of some pages in a folder, and return what `read` returns."""
    prepare(folder)
    for command in RUNS:
        output_of(command, folder)
    found = {}
    for name in names:
        if name == "python":
            found |= python_page(folder)
            continue
        for command in PAGES[name]:
            output = output_of(command, folder)
            for key, parts in command.shown.items():
                found[key] = {"page": name, "command": command.line, "text": selected(output, parts)}
    return found


def prepare(folder: Path) -> None:
    """Write the files of data that the commands name."""
    shutil.copy(SAMPLES / "train.jsonl", folder / "tweets.jsonl")
    shutil.copy(SAMPLES / "test.jsonl", folder / "test.jsonl")
    people, places = (
        ["Ada", "Ben", "Mira Holt", "Tom Reed", "Zoe", "Lin Xu", "Omar", "Eva Lang", "Sam"],
        [*("Quito", "Oslo", "Lima", "Rome", "Paris", "Delhi", "Accra", "Perth", "Cairo", "Riga")],
    )
    tagged = []
    for person in people:
        for city in places:
            first, *others = person.split()
            tags = ["B-PER", *["I-PER"] * len(others), "O", "O", "B-LOC", "O"]
            tagged.append({"tokens": [first, *others, "lives", "in", city, "."], "tags": tags})
    colours = [
        ("Name a colour.", "Red"),
        ("Name a city.", "Paris"),
        ("Name an animal.", "Cat"),
        ("Name a tool.", "Saw"),
    ]
    for file, beginning, page in (
        ("faulty.jsonl", "Here is a file with four faults.*?```text\n", "inspect"),
        ("marked.yaml", "(?=# marked.yaml)", "templates"),
    ):
        shown = re.search(beginning + "(.*?)```", (DOCS / f"{page}.md").read_text("utf-8"), re.DOTALL)
        assert shown is not None, f"docs/{page}.md: no {file}"
        (folder / file).write_text(shown[1], encoding="utf-8")
    for name, rows in {
        "tags": tagged,
        "four": [{"instruction": question, "output": answer} for question, answer in colours],
    }.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def output_of(command: Command, folder: Path) -> str:
    """Run a command in a folder, and return its output, in which the folder is called `HOME`.

    Raises:
        subprocess.CalledProcessError: the command failed without having been interrupted.
    """
    print(f"$ {command.line}", flush=True)
    environment = os.environ | {"COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    process = subprocess.Popen(
        ["bash", "-c", command.line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if command.interrupt_at and line.startswith(command.interrupt_at):
            os.killpg(process.pid, signal.SIGINT)
    output = "".join(lines)
    print(output, flush=True)
    if process.wait() != 0 and not command.interrupt_at:
        raise subprocess.CalledProcessError(process.returncode, command.line, output)
    return output.replace(str(folder.resolve()), HOME).replace(str(Path.home()), HOME)


def selected(output: str, parts: Parts) -> str:
    """Return the parts of an output, with an ellipsis between parts that are not neighbours.

    Raises:
        ValueError: the output lacks the first or the last line of a part.
    """
    lines = [line.rstrip() for line in output.strip("\n").splitlines()]
    if not parts:
        return "\n".join(lines) + "\n"
    found: list[str] = []
    end = -1
    for first, last in parts:
        start = next((i for i in range(max(end, 0), len(lines)) if lines[i].startswith(first)), None)
        stop = None if start is None else next((i for i in range(start, len(lines)) if lines[i].startswith(last)), None)
        if start is None or stop is None:
            raise ValueError(f"no lines from {first!r} to {last!r} in:\n{output}")
        if found and start > end:
            found.append(LEFT_OUT)
        found += lines[start : stop + 1]
        end = stop + 1
    return "\n".join(found) + "\n"


def python_page(folder: Path) -> dict[str, dict[str, str]]:
    """Run the blocks of docs/python.md in one process, and return what those printed whose output is shown."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    from page_blocks import blocks

    page = (DOCS / "python.md").read_text(encoding="utf-8")
    codes = [block.code for block in blocks(page) if block.language in ("python", "setup") and block.reason is None]
    between = "\x1e"
    script = "".join(f"print({between!r}, end='')\n{code}\n" for code in codes)
    print(f"docs/python.md: {len(codes)} blocks", flush=True)
    (folder / "python_page.py").write_text(script, encoding="utf-8")
    output = subprocess.run(
        [sys.executable, "python_page.py"], cwd=folder, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ).stdout
    print(output, flush=True)
    return {
        f"python {number}": {"page": "python", "command": code, "text": selected(text, WHOLE)}
        for number, (code, text) in enumerate(zip(codes, output.split(between)[1:], strict=True), 1)
        if f"<!-- output: python {number} -->" in page
    }


if __name__ == "__main__":
    main()

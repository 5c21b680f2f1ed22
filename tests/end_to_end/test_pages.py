"""Every command and code block of the documentation runs, in the order of its page, with tiny bases.

Bases and data of the Hub are folders of the same names in the page's folder, so that the text of a block is the text
that runs. A block that cannot run here says why in a comment in front of it.
"""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from commands import Peftly, peftly_here
from page_blocks import ROOT, Block, blocks, command_lines, english_pages

from peftly.runs.config_file import load_config

SHORT_NAMES = {"smollm2-135m": "llama", "minilm-l6": "bert"}
ON_THE_HUB = {
    "HuggingFaceTB/SmolLM2-135M": "llama",
    "Langboat/bloom-1b4-zh": "llama",
    "bigscience/bloomz-1b1": "llama",
    "bigscience/bloomz-560m": "llama",
    "bigscience/mt0-large": "t5",
    "google-bert/bert-base-chinese": "bert",
    "google-bert/bert-base-uncased": "bert",
    "google-t5/t5-small": "t5",
    "meta-llama/Llama-2-7b-hf": "llama",
    "Qwen/Qwen2.5-0.5B-Instruct": "llama",
    "THUDM/glm-4-9b-chat-hf": "llama",
}
DEFAULTS = {"data": {"train": "tweets.jsonl"}, "method": "lora", "out": "runs/page"}
"""Settings that a page may leave out of a block of YAML."""
SHELL = ("pip", "cp", "python", "make", "git", "cd", "export", "source", "tensorboard", "unset", "ls", "du", "curl")
"""Commands beside `peftly` that pages show and that do not run here."""

ROWS = {
    "chats.jsonl": [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in [("where is my order?", "on its way"), ("open on Sunday?", "yes, from ten")] * 8
    ],
    "instructions.jsonl": [
        {"instruction": "Name the colour.", "input": f"the {colour} shop", "output": colour}
        for colour in ("red", "blue", "green", "black") * 4
    ],
    "zh.jsonl": [
        {"instruction": "说出颜色。", "input": f"{colour}色的店", "output": colour} for colour in "红蓝绿黑" * 4
    ],
    "pairs.jsonl": [
        {"premise": "the store is open", "hypothesis": text, "label": label}
        for text, label in [("you can go in", "yes"), ("it is shut", "no")] * 10
    ],
    "tags.jsonl": [
        {"tokens": ["Ada", "lives", "in", city], "tags": ["B-PER", "O", "O", "B-LOC"]}
        for city in ("London", "Paris", "Berlin", "Rome") * 6
    ],
    "translation.jsonl": [
        {"source": source, "target": target} for source, target in [("good day", "guten Tag"), ("thanks", "danke")] * 8
    ],
}
PAGES = [
    page
    for page in english_pages()
    if page.name != "README.md"
    and any(block.language in ("bash", "python", "yaml") for block in blocks(page.read_text("utf-8")))
]


@pytest.fixture(scope="session", name="prepared")
def _prepared(tmp_path_factory, tweets, tiny_llama_folder, task_base) -> Path:
    """A folder with data, bases and two finished runs, which each page gets a copy of."""
    folder = tmp_path_factory.mktemp("pages")
    rows = [json.loads(line) for line in tweets.read_text().splitlines()]
    for name in ("tweets.jsonl", "test.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = ["text,label"] + [f"{row['text']},{row['label']}" for row in rows]
    (folder / "tweets.csv").write_text("\n".join(lines) + "\n")
    for name, content in ROWS.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        (folder / name).write_text(text, encoding="utf-8")
    common = ["--data", folder / "tweets.jsonl", "--method", "lora", "--set", "train.max_steps=4"]
    for run, base in (("tweets", tiny_llama_folder), ("labels", task_base("bert"))):
        outcome = peftly_here("train", "--base", base, *common, "--out", folder / "runs" / run)
        assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(name="here")
def _here(prepared, tmp_path, monkeypatch, tiny_llama_folder, task_base) -> dict[str, Path]:
    """Go to a folder for one page; return the folders of the bases."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for name in ("src", "benchmarks"):
        (tmp_path / name).symlink_to(ROOT / name)
    kinds = {"llama": tiny_llama_folder}
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for file in (tmp_path / "examples").glob("*.yaml"):
        bases = {name: kinds.get(kind) or task_base(kind) for name, kind in SHORT_NAMES.items()}
        file.write_text(with_bases(file.read_text("utf-8"), bases), encoding="utf-8")
    for name, kind in ON_THE_HUB.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(kinds.get(kind) or task_base(kind))
    monkeypatch.chdir(tmp_path)
    return {name: kinds.get(kind) or task_base(kind) for name, kind in SHORT_NAMES.items()}


def with_bases(text: str, bases: dict[str, Path]) -> str:
    """Put the folders of tiny bases where a text names a base by its short name."""
    for name, folder in bases.items():
        text = re.sub(rf"(?<![\w/.-]){name}(?![\w/.-])", str(folder), text)
    return text


def run_command(line: str, peftly: Peftly) -> None:
    program, *words = shlex.split(line, comments=True)
    if program != "peftly":
        assert program in SHELL, f"{line!r}: neither a command of peftly nor one of {SHELL}"
        if program == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
            assert words[0] in targets, line
        if program == "python" and words[0].endswith(".py"):
            assert Path(words[0]).is_file(), line
        return
    has_file = any(word.endswith((".yaml", ".yml")) and not word.startswith("examples/") for word in words)
    if words[0] == "train" and not has_file and "--resume" not in words and "max_steps" not in line:
        words += ["--set", "train.max_steps=4"]
    outcome = peftly(*words)
    assert outcome.code == 0, (line, outcome.err)


def run_block(block: Block, bases: dict[str, Path], names: dict[str, object], peftly: Peftly) -> None:
    code = with_bases(block.code, bases)
    match block.language:
        case "bash":
            for line in command_lines(code):
                run_command(line, peftly)
        case "python" | "setup":
            exec(compile(code, block.language, "exec"), names)
        case "yaml":
            named = re.match(r"# (\S+\.ya?ml)\n", block.code)
            file = Path(named[1] if named else "block.yaml")
            file.write_text(code, encoding="utf-8")
            load_config(file, defaults=DEFAULTS | {"base": str(bases["smollm2-135m"])})
        case "json":
            json.loads(code)


@pytest.mark.sample(8)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).with_suffix("").as_posix())
def test_the_blocks_of_a_page_run(page, here, peftly):
    run_page(page, here, peftly)


def test_the_blocks_of_the_readme_run(here, peftly):
    run_page(ROOT / "README.md", here, peftly)
    assert Path("my-adapter/adapter_model.safetensors").is_file()


def run_page(page: Path, here: dict[str, Path], peftly: Peftly) -> None:
    names: dict[str, object] = {"__name__": "page"}
    found = blocks(page.read_text(encoding="utf-8"))
    for number, block in enumerate(found):
        if block.fails:
            check_refusal(block, found[number + 1], here, peftly)
        elif block.reason is None:
            run_block(block, here, names, peftly)


def check_refusal(block: Block, message: Block, bases: dict[str, Path], peftly: Peftly) -> None:
    """Check that a command is refused with the message that the page shows."""
    (line,) = command_lines(with_bases(block.code, bases))
    outcome = peftly(*shlex.split(line)[1:])
    shown = outcome.err
    for name, folder in bases.items():
        shown = shown.replace(str(folder), name)
    assert (outcome.code, message.code.strip() in shown) == (2, True), (line, shown)


def test_every_block_names_its_language():
    for page in english_pages():
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(fences[::2]), page
        assert not any(fences[1::2]), page

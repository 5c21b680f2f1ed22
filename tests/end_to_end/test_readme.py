"""The lists of the README and of the pages about the code, and the configurations of a page."""

import ast
import re
import shutil
import tomllib
from pathlib import Path

import pytest
from commands import Peftly, commands_of

from peftly import METHODS
from peftly.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh.md").read_text(encoding="utf-8")
PACKAGES = sorted(file.parent for file in (ROOT / "src" / "peftly").glob("*/__init__.py"))


@pytest.fixture(name="here")
def _here(tmp_path, tweets, monkeypatch):
    (tmp_path / "tweets.jsonl").write_text(tweets.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.soak
def test_the_configurations_of_the_page_about_several_adapters(here, peftly: Peftly, tiny_llama_folder):
    page = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 4
    for name in ("test", "tickets"):
        (here / f"{name}.jsonl").write_text((here / "tweets.jsonl").read_text())
    shutil.copytree(tiny_llama_folder, here / "larger")
    bases = {"smollm2-135m": tiny_llama_folder, "bigscience/bloomz-560m": tiny_llama_folder}
    bases["bigscience/bloomz-1b1"] = here / "larger"
    for block in blocks:
        for name, folder in bases.items():
            block = block.replace(name, str(folder))
        (here / "run.yaml").write_text(block.replace("[1, 8, 20, 100]", "[1, 8]").replace("[0, 1]", "[0]"))
        outcome = peftly("train", "run.yaml", "--epochs", "1")
        assert (outcome.code, outcome.err) == (0, ""), block
    for folder in ("vote/member_5", "both/tickets", "mam"):
        assert (here / "runs" / folder / "adapter").is_dir()
    assert len(list((here / "runs/size-and-length").glob("*/*/adapter"))) == 2 * 2
    assert peftly("evaluate", "runs/vote").code == 0


def test_its_list_of_commands():
    (listed,) = re.findall(r"^`peftly --help` lists the commands: ([^.]+)\.", README, re.MULTILINE)
    assert re.findall(r"`([\w-]+)`", listed) == commands_of(app)


def test_its_list_of_commands_in_chinese():
    (listed,) = re.findall(r"^`peftly --help` 会列出全部命令：([^。]+)。", CHINESE, re.MULTILINE)
    assert re.findall(r"`([\w-]+)`", listed) == commands_of(app)


def test_its_table_of_methods():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (\S+) \|$", README, re.MULTILINE)
    assert rows == [(name, method.summary, method.paper) for name, method in METHODS.items()]


@pytest.mark.parametrize(
    ("name", "title"), [("how_it_works.md", "## The packages"), ("how_it_works.zh.md", "## 各个包")]
)
def test_the_list_of_packages_names_each_one_from_the_ground_up(name, title):
    page = (ROOT / "docs" / name).read_text(encoding="utf-8")
    section = page[page.index(title) : page.index("| `tests/` |")]
    shown = [
        name.removesuffix(".py").removesuffix("/") for name in re.findall(r"^\| `(\S+)` \|", section, re.MULTILINE)
    ]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = settings["tool"]["importlinter"]["contracts"]
    layers = [set(layer.split(" | ")) for layer in reversed(contract["layers"])]
    assert sorted(shown) == sorted(name for layer in layers for name in layer)
    heights = [next(height for height, layer in enumerate(layers) if name in layer) for name in shown]
    assert heights == sorted(heights)


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_a_package_lists_its_modules(folder):
    """In its docstring; the modules of commands and of methods are in their registries."""
    listed = set(re.findall(r"\w+", ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))))
    listed |= {
        "cli": {command.replace("-", "_") for command in commands_of(app)},
        "methods": {method.adapter.__module__.rpartition(".")[2] for method in METHODS.values()},
    }.get(folder.name, set())
    assert {file.stem for file in folder.glob("*.py")} - {"__init__"} <= listed

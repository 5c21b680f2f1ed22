"""What the README shows works as it stands, on a tiny base in place of the real one."""

import re
import shlex
from pathlib import Path

import pytest
from commands import Peftly, commands_of

from peftly import METHODS
from peftly.cli import app

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(name="here")
def _here(tmp_path, tweets, monkeypatch):
    (tmp_path / "tweets.jsonl").write_text(tweets.read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands(here, peftly: Peftly, tiny_llama_folder, task_base):
    bases = {"smollm2-135m": tiny_llama_folder, "minilm-l6": task_base("bert")}
    commands = re.findall(r"^    peftly (.+)$", README, re.MULTILINE)
    assert len(commands) == 4
    for command in commands:
        outcome = peftly(*(str(bases.get(word, word)) for word in shlex.split(command)))
        assert outcome.code == 0, (command, outcome.err)


def test_its_python(here, tiny_llama_folder):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0].replace("smollm2-135m", str(tiny_llama_folder)), "README.md", "exec"), {})
    assert (here / "my-adapter" / "adapter_model.safetensors").is_file()


def test_the_configurations_of_the_page_about_several_adapters(here, peftly: Peftly, tiny_llama_folder):
    page = (ROOT / "docs" / "composition.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 3
    for name in ("test", "tickets"):
        (here / f"{name}.jsonl").write_text((here / "tweets.jsonl").read_text())
    for block in blocks:
        (here / "run.yaml").write_text(block.replace("smollm2-135m", str(tiny_llama_folder)))
        outcome = peftly("train", "run.yaml", "--epochs", "1")
        assert (outcome.code, outcome.err) == (0, ""), block
    for folder in ("vote/member_5", "both/tickets", "mam"):
        assert (here / "runs" / folder / "adapter").is_dir()
    assert peftly("evaluate", "runs/vote").code == 0


def test_its_list_of_commands():
    (listed,) = re.findall(r"^`peftly --help` lists the commands: ([^.]+)\.", README, re.MULTILINE)
    assert re.findall(r"`(\w+)`", listed) == commands_of(app)


def test_its_table_of_methods():
    rows = re.findall(r"^\| `(\w+)` \| (.+) \| (\S+) \|$", README, re.MULTILINE)
    assert rows == [(name, method.summary, method.paper) for name, method in METHODS.items()]


def test_its_tree_names_every_module():
    tree = README[README.index("    src/peftly/") : README.index("    tests/")]
    shown = set(re.findall(r"[\w/]+\.py", tree))
    assert shown
    source = ROOT / "src" / "peftly"
    here = {path.name for path in source.glob("*.py")} | {path.name for path in (source / "methods").glob("*.py")}
    assert shown == here - {"__init__.py", "__main__.py"}

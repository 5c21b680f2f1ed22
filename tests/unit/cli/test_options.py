"""Options of the command line: given twice, given several times, and templates as they are typed."""

from pathlib import Path

import pytest
from typer.core import TyperOption
from typer.main import get_command
from typer.testing import CliRunner

from peftly.cli import app
from peftly.errors import ConfigError
from peftly.runs import load_config
from peftly.runs.config_file import dump_config

COMMANDS = get_command(app).commands
SINGLE = [
    (name, option.opts[0])
    for name, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, TyperOption) and not option.multiple and not option.is_flag
]


def test_that_walk_meets_the_options():
    assert {name for name, _ in SINGLE} >= {"train", "inspect", "evaluate", "generate", "chat", "merge", "export"}
    assert {("train", "--seed"), ("train", "--template"), ("evaluate", "--batch-size")} < set(SINGLE)


@pytest.mark.parametrize(("command", "option"), SINGLE)
def test_an_option_with_one_value_is_refused_if_it_is_given_twice(command, option):
    outcome = CliRunner().invoke(app, [command, option, "1", option, "1"])
    assert outcome.exit_code == 2
    assert outcome.stderr == f"error: {option} is given twice, and takes one value; give it once\n"


@pytest.mark.parametrize("command", ["train", "inspect"])
def test_data_options_take_several_files(command):
    several = {option.opts[0] for option in COMMANDS[command].params if getattr(option, "multiple", False)}
    assert several >= {"--data", "--validation", "--test", "--set"}


# --- configurations

FLAGS = {"base": "b", "method": "lora", "out": "o"}


def loaded(path: Path | None = None, overrides: tuple[str, ...] = (), **flags: object):
    return load_config(path, overrides, {**FLAGS, **flags} if path is None else flags)


def test_files_of_the_flags_and_of_yaml(tmp_path):
    config = loaded(data=["a.jsonl", "b.jsonl"], validation=["c.jsonl"], test=["none"])
    assert (config.data.train, config.data.validation) == (("a.jsonl", "b.jsonl"), "c.jsonl")
    assert config.data.sources == ["a.jsonl", "b.jsonl", "c.jsonl"]
    file = tmp_path / "c.yaml"
    file.write_text(dump_config(config))
    assert load_config(file) == load_config(file, stored=True) == config
    file.write_text("base: b\nmethod: lora\nout: o\ndata: {train: [a.jsonl, b.jsonl], test: none}\n")
    assert (load_config(file).data.train, load_config(file).data.test) == (("a.jsonl", "b.jsonl"), "none")


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (r"{text}\nLabel:", "{text}\nLabel:"),
        (r"{text}\tLabel:\n", "{text}\tLabel:\n"),
        (r"{text}\\nLabel:", r"{text}\nLabel:"),
        (r"C:\\{text}\d", "C:\\{text}\\d"),
        ("{text}\nLabel:", "{text}\nLabel:"),
    ],
)
def test_a_template_as_it_is_typed(typed, expected, tmp_path):
    file = tmp_path / "c.yaml"
    assert loaded(data=["a"], template=typed).data.template == expected
    head = "base: b\nmethod: lora\nout: o\n"
    if "\n" not in typed:
        assert loaded(overrides=(f"data.template='{typed}'",), data=["a"]).data.template == expected
        file.write_text(f"{head}data:\n  train: a\n  template: '{typed}'\n")
        assert load_config(file).data.template == expected
        file.write_text(f"{head}data: {{max_length: 9}}\njobs:\n  one: {{data: {{train: a, template: '{typed}'}}}}\n")
        jobs = load_config(file)
        assert jobs.jobs["one"].data.template == expected
        file.write_text(dump_config(jobs))
        assert load_config(file) == jobs
    config = loaded(data=["a"], template=typed)
    file.write_text(dump_config(config))
    assert load_config(file) == load_config(file, stored=True) == config


def test_a_setting_that_is_set_twice_is_refused():
    with pytest.raises(ConfigError, match=r"^--set train\.epochs is given twice"):
        loaded(overrides=("train.epochs=1", "train.epochs=2"), data=["a"])

"""Odd values and odd files of a configuration: a valid configuration or one ConfigError."""

import datetime
import math
import os
import typing

import pytest

from peftly import load_base, load_data
from peftly.adapters import attach
from peftly.errors import ConfigError
from peftly.methods import METHODS, LoRA
from peftly.models import Quantization
from peftly.runs.config import RunConfig
from peftly.runs.config_file import dump_config, load_config
from peftly.settings import Settings
from peftly.training import TrainConfig

ODD = [
    *(
        math.nan,
        math.inf,
        -math.inf,
        float("1e400"),
        -1,
        -0.0,
        0,
        0.5,
        2.0,
        2**31,
        2**32,
        2**63,
        -(2**63) - 1,
        10**5000,
    ),
    *(True, False, None, "", "nan", "inf", "-1", "1e400", "9" * 5000, "\0", "a\0b", "\ud800", "\x1b[2J", "[/]", b"x"),
    *([], {}, [[]], {"a": 1}, {1: 2}, [True], [None], [math.nan], datetime.date(2020, 1, 1), object(), {"name": "\0"}),
]


def settings_of(model, prefix=()):
    """Paths of the settings of a class, with those of the settings inside."""
    for name, field in model.model_fields.items():
        yield (*prefix, name), field
        kinds = (field.annotation, *typing.get_args(field.annotation))
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, Settings) and name != "method":
                yield from settings_of(kind, (*prefix, name))


def with_value(path, value, method):
    settings = {"base": "b", "data": {"train": "d"}, "method": {"name": method}, "out": "o"}
    if path[0] == "quantization" and len(path) > 1:
        settings["quantization"] = {"kind": "nf4"}
    inner = settings
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = value
    return settings


PATHS = [(path, "lora", field) for path, field in settings_of(RunConfig)]
PATHS += [
    (path, name, field) for name, entry in METHODS.items() for path, field in settings_of(entry.config, ("method",))
]


@pytest.mark.parametrize(("path", "method", "field"), PATHS, ids=lambda value: str(value)[:40])
def test_every_value_of_every_setting_is_valid_or_one_error(path, method, field, tmp_path):
    file = tmp_path / "config.yaml"
    for value in ODD:
        try:
            config = load_config(None, defaults=with_value(path, value, method))
        except ConfigError:
            continue
        file.write_text(dump_config(config), encoding="utf-8")
        assert load_config(file) == config  # NaN is not equal to itself
        if value in (True, False) and isinstance(value, bool):
            assert "bool" in str(field.annotation) or isinstance(value, typing.get_args(field.annotation))


def test_that_walk_meets_the_settings():
    assert len(PATHS) > 100
    assert {("train", "seed"), ("data", "max_length"), ("quantization", "kind"), ("method", "rank")} < {
        path for path, _, _ in PATHS
    }


LAUGHS = "a0: &a0 [x]\n" + "".join(
    f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 9)}]\n" for level in range(1, 12)
)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"base: " + b"[" * 2_000, "nested too deeply"),
        (b"- " * 2_000, "nested too deeply"),
        (b"a: " * 10_000, "not valid YAML"),
        (LAUGHS.encode(), "more than 10,000 values"),
        (b"base: &a [*a]\n", "more than 10,000 values"),
        (b"a: &a {<<: *a}\n", "more than 10,000 values"),
        (b"base: a\n\tout: b\n", "line 2 is not valid YAML"),
        (b"base: a\0b\n", "not valid YAML"),
        (b"base: a\x1b[2J\n", "not valid YAML"),
        ("base: a\n".encode("utf-16"), "save the file as UTF-8"),
        (b"base: !!python/object/apply:os.system [x]\n", "not valid YAML"),
        (b"base: !!int ''\n", "not valid YAML"),
        (b"base: !!timestamp x\n", "not valid YAML"),
        (b"base: !!bool maybe\n", "not valid YAML"),
        (b"base: 2024-13-45\n", "not valid YAML"),
        (b"base: " + b"9" * 5000 + b"\n", "not valid YAML"),
        (b"? [a]\n: b\n", "not valid YAML"),
        (b"a: 1\n--- \nb: 2\n", "not valid YAML"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"# " + b"x" * 1_000_001, "more than 1,000,000 bytes"),
        (b"base: [x, '" + b"y" * 500_000 + b"']\n", "base must be"),
        (b"base: x\nno: 1\n", "0 is not a setting"),
        (b'base: "a\\0b"\n', "NUL"),
        (b'base: "a\\udcffb"\n', "half of a character"),
    ],
    ids=range(24),
)
def test_an_odd_file_is_one_error(tmp_path, content, words):
    file = tmp_path / "run.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_file_with_a_byte_order_mark_windows_line_ends_and_aliases(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(
        b"\xef\xbb\xbfbase: b\r\nout: o\r\nmethod: lora\r\ntrain: {learning_rate: 1e-4}\r\ndata: &d {train: d}\r\n"
        b"jobs: {a: {data: *d}, b: {data: {<<: *d, target: t}}}\r\n"
    )
    jobs = load_config(file).jobs
    assert jobs["a"].train.learning_rate == 1e-4
    assert (jobs["b"].data.train, jobs["b"].data.target) == ("d", "t")


def test_what_is_no_file_is_one_error(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path, tmp_path / "pipe", "/dev/zero", "a\0b", tmp_path / ("x" * 300), tmp_path / "nothing"):
        with pytest.raises(ConfigError):
            load_config(name)


@pytest.mark.parametrize("override", ["train.epochs=" + "[" * 2000, "train.epochs=" + "9" * 5000, "a=!!int ''"])
def test_an_odd_override_is_one_error(override):
    with pytest.raises(ConfigError, match=r"^--set "):
        load_config(None, [override], {"base": "b", "data": "d", "method": "lora", "out": "o"})


@pytest.mark.parametrize("seed", [2**32, 2**64, -1, True, 1.5, None, "x"])
def test_seeds_that_a_generator_does_not_take(seed, tiny_llama_folder):
    calls = [
        lambda: load_base(tiny_llama_folder, seed=seed),
        lambda: attach(load_base(tiny_llama_folder).model, LoRA(), seed=seed),
        lambda: load_data([{"text": "a", "label": "b"}], load_base(tiny_llama_folder).tokenizer, seed=seed),
        lambda: TrainConfig(seed=seed),
        lambda: load_config(None, defaults=with_value(("data", "seed"), seed, "lora")),
        lambda: load_config(None, defaults=with_value(("train", "seed"), seed, "lora")),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="seed"):  # a ConfigError, or pydantic's ValidationError
            call()


def test_the_largest_seed():
    assert TrainConfig(seed=2**32 - 1).seed == 2**32 - 1
    settings = {**with_value(("train", "seed"), 2**32 - 4, "lora"), "ensemble": 4}
    assert [part.train.seed for part in load_config(None, defaults=settings).parts().values()][-1] == 2**32 - 1
    with pytest.raises(ConfigError, match="seed must be a whole number from 0 to 4294967295; got 4294967296"):
        load_config(None, defaults={**settings, "ensemble": 5})


def test_a_truth_value_is_no_number():
    flags = {"base": "b", "data": "d", "method": "lora", "out": "o"}
    with pytest.raises(ConfigError, match=r"train.epochs: give a number, not a truth value; got True"):
        load_config(None, ["train.epochs=yes"], flags)
    with pytest.raises(ConfigError, match=r"data.target: give a text \(in YAML, yes and no need quotes\)"):
        load_config(None, ["data.target=no"], flags)
    assert load_config(None, ["data.target='no'", "train.epochs=1_000"], flags).train.epochs == 1000
    assert Quantization(kind="nf4", double=False).double is False

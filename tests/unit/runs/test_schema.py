"""The JSON Schema of the settings: complete, described, and in agreement with the settings classes."""

import copy
import json
import re
from pathlib import Path

import pytest
import yaml
from json_schema import fits

from peftly.errors import ConfigError
from peftly.methods import METHODS
from peftly.runs import JobsConfig, RunConfig, config_schema, load_config
from peftly.runs.config_file import dump_config

ROOT = Path(__file__).resolve().parents[3]
SCHEMA = config_schema()
RUN = {"base": "smollm2-135m", "data": {"train": "a.jsonl"}, "method": "lora", "out": "runs/a"}
SHARED = {key: value for key, value in RUN.items() if key != "method"}


class Loader(yaml.SafeLoader):
    """YAML 1.2, as editors read it: 1e-3 is a number, and yes is a text."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("true|false"), list("tf"))
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+\.[0-9]*|\.?[0-9]+)([eE][-+]?[0-9]+)?$"), list("-+.0123456789")
)


def in_schema(config):
    return fits(json.loads(json.dumps(config)), SCHEMA, SCHEMA)


def accepted(config, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(config))
    try:
        return load_config(file)
    except ConfigError:
        return None


def objects(schema, path=""):
    """Yield the schemas of all objects with settings, with their paths."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict) and "additionalProperties" in schema:
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}/{key}")
    elif isinstance(schema, list):
        for index, value in enumerate(schema):
            yield from objects(value, f"{path}/{index}")


def test_every_setting_has_a_description_and_no_other_name_is_accepted():
    count = 0
    for path, schema in objects(SCHEMA):
        assert schema["additionalProperties"] is False, path
        for name, value in schema["properties"].items():
            is_any = value == {}  # a setting of any method, in a job without the name of one
            is_part = "config" in schema["properties"]  # of a data set on the Hub
            assert is_any or is_part or len(value["description"].split()) > 1, (path, name)
            assert "None:" not in value.get("description", ""), (path, name)
            count += 1
    assert count > 150


def test_every_setting_of_every_class_is_in_it_with_its_default():
    for name, method in METHODS.items():
        properties = SCHEMA["definitions"][name]["properties"]
        assert properties.keys() == method.config.model_fields.keys()
        for setting, field in method.config.model_fields.items():
            if setting != "name":
                default = json.loads(json.dumps(field.get_default(call_default_factory=True)))
                assert properties[setting]["default"] == default, (name, setting)
    assert SCHEMA["properties"].keys() == RunConfig.model_fields.keys() | JobsConfig.model_fields.keys() | {"$schema"}


def configurations():
    """Return the configurations in examples and pages, by their place."""
    found = {str(file.relative_to(ROOT)): file.read_text(encoding="utf-8") for file in ROOT.glob("examples/**/*.yaml")}
    pages = [ROOT / "README.md", *ROOT.glob("docs/**/*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for number, match in enumerate(re.finditer(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)):
            if "<!-- not run" not in text[: match.start()].rpartition("\n\n")[2]:
                found[f"{page.relative_to(ROOT)} block {number + 1}"] = match[1]
    return found


CONFIGURATIONS = configurations()


def test_configurations_were_found():
    assert len(CONFIGURATIONS) >= 8


@pytest.mark.parametrize("place", CONFIGURATIONS)
def test_examples_and_pages_fit(place):
    """A page may show a part of a configuration: the settings that are missing there are added."""
    config = yaml.load(CONFIGURATIONS[place], Loader)
    shown = config if "jobs" in config else {**RUN, **config}
    assert in_schema(shown), place


@pytest.mark.parametrize(
    "config",
    [
        RUN,
        {**RUN, "$schema": "peftly.schema.json"},
        {**RUN, "method": {"name": "lora", "rank": 4, "target_modules": ["q_proj"], "rank_pattern": {"q_proj": 2}}},
        {**RUN, "method": ["lora", {"name": "prompt_tuning", "num_virtual_tokens": "text", "init_text": "a b"}]},
        {**RUN, "data": {"train": ["a.jsonl", {"name": "u/n", "split": "train"}], "validation": "none"}},
        {**RUN, "data": {"train": {"name": "user/name", "config": None}, "format": "alpaca"}},
        {**RUN, "quantization": "nf4", "ensemble": 5, "device_map": {"model.embed_tokens": 0, "lm_head": "cpu"}},
        {**RUN, "quantization": {"kind": "nf4", "double": False}, "ensemble": {"size": 2, "vote": "mean"}},
        {**RUN, "quantization": "none", "train": {"report_to": "none", "max_grad_norm": None}},
        {**RUN, "train": {"report_to": ["csv", "wandb"], "learning_rate": 0.001, "gradient_checkpointing": True}},
        {**RUN, "jobs": {"a": {}, "b-1": {"method": {"rank": 4}, "data": {"max_length": 64}}, "中文": {"base": "b"}}},
        {"base": "b", "out": "o", "data": {"max_length": 9}, "jobs": {"a": {"method": "ia3", "data": {"train": "t"}}}},
        {**SHARED, "jobs": {"method": ["lora", {"name": "dora", "rank": 2}], "train.seed": [0, 1]}},
        {**RUN, "jobs": {"method.rank": [1, 2], "data.train": ["a", ["a", "b"]], "data": [{"train": "a"}]}},
        {**SHARED, "jobs": {"method.name": ["prompt_tuning", "p_tuning"], "method.num_virtual_tokens": [1, 8]}},
        {**RUN, "jobs": {"method.rank_pattern.q_proj": [1, 2]}},
    ],
)
def test_forms_that_are_accepted(config, tmp_path):
    found = accepted(config, tmp_path)
    assert found is not None
    assert in_schema(config)
    assert in_schema(yaml.safe_load(dump_config(found)))


@pytest.mark.parametrize(
    "config",
    [
        {**RUN, "lr": 0.1},
        {key: value for key, value in RUN.items() if key != "out"},
        {key: value for key, value in RUN.items() if key != "data"},
        {**RUN, "data": "a.jsonl"},
        {**RUN, "data": {"max_length": 9}},
        {**RUN, "data": {"train": []}},
        {**RUN, "data": {"train": {"config": "a"}}},
        {**RUN, "data": {"train": "a", "format": "no-such"}},
        {**RUN, "train": {"num_train_epochs": 3}},
        {**RUN, "train": {"epochs": 0}},
        {**RUN, "train": {"report_to": "aim"}},
        {**RUN, "train": None},
        {**RUN, "method": "lorra"},
        {**RUN, "method": []},
        {**RUN, "method": {"rank": 4}},
        {**RUN, "method": {"name": "lora", "r": 4}},
        {**RUN, "method": {"name": "prompt_tuning", "rank": 4}},
        {**RUN, "method": {"name": "ia3", "init": "kaiming"}},
        {**RUN, "quantization": {"double": True}},
        {**RUN, "quantization": "int4"},
        {**RUN, "ensemble": 1},
        {**RUN, "jobs": {}},
        {**RUN, "jobs": {"a b": {}}},
        {**RUN, "jobs": {"a": {"out": "b"}}},
        {**RUN, "jobs": {"a": {"method": ["lora", "ia3"]}}},
        {**RUN, "jobs": {"a": {"method": {"r": 4}}}},
        {**RUN, "jobs": {"a": {}}, "ensemble": 2},
        {**RUN, "jobs": {"method.rank": []}},
        {**RUN, "jobs": {"method.rank": [1], "seed": [2]}},
        {**RUN, "jobs": {"method.rank": 4, "train.seed": [1]}},
        {**RUN, "jobs": {"method.rank": [0]}},
        {**SHARED, "method": "lora", "jobs": {"a": {}}, "out": ""},
    ],
)
def test_mistakes_that_are_refused(config, tmp_path):
    assert accepted(config, tmp_path) is None
    assert not in_schema(config)


VALUES = [
    0,
    1,
    -1,
    2,
    0.5,
    1.5,
    1e6 + 1,
    "text",
    "none",
    "auto",
    None,
    True,
    False,
    [],
    ["a"],
    {},
    {"a": 1},
    {"name": "a"},
]


def positions():
    """Yield each setting with its path, and the configuration around it."""
    sections = {
        "data": "DataConfig",
        "train": "TrainConfig",
        "quantization": "Quantization",
        "ensemble": "EnsembleConfig",
    }
    base = {**RUN, "quantization": {"kind": "nf4"}, "ensemble": {"size": 2}, "train": {}}
    for name in SCHEMA["properties"]:
        if name not in ("$schema", "jobs"):
            yield base, [name], SCHEMA["properties"][name]
    for section, definition in sections.items():
        for name, schema in SCHEMA["definitions"][definition]["properties"].items():
            yield base, [section, name], schema
    for method in METHODS:
        for name, schema in SCHEMA["definitions"][method]["properties"].items():
            yield {**base, "method": {"name": method}}, ["method", name], schema


TOGETHER = {"init", "init_text", "num_virtual_tokens", "projection_dim", "early_stopping_threshold", "block_size"}
TOGETHER |= {"compute_dtype", "double", "last_layers", "method", "position", "chat_template", "lr_scheduler_type"}
"""Settings with a rule about several of them, or about a file, which the schema does not have."""


def enumerated(schema):
    if isinstance(schema, dict):
        yield from schema.get("enum", [])
        for value in schema.values():
            yield from enumerated(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from enumerated(value)


def test_it_agrees_with_the_classes_on_many_values():
    """A value that pydantic converts, such as "8" for 8, may be refused by the schema, but none that is as typed."""
    count = 0
    for base, path, schema in positions():
        for value in [*VALUES, *enumerated(schema)]:
            config = copy.deepcopy(base)
            target = config
            for key in path[:-1]:
                target = target[key]
            target[path[-1]] = value
            try:
                RunConfig.model_validate(config)
                is_valid = True
            except (ValueError, ConfigError):
                is_valid = False
            count += 1
            if path[-1] in TOGETHER and not is_valid:
                continue
            if '"boolean"' in json.dumps(schema) and value in (0, 1) and is_valid:
                continue  # converted
            assert in_schema(config) == is_valid, (path, value)
    assert count > 2000

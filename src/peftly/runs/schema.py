"""JSON Schema of the configuration of a run, for editors and for the reference of the settings."""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, cast

from pydantic import BaseModel

from peftly.data import DataConfig
from peftly.methods import METHODS
from peftly.models import Quantization
from peftly.runs.config import EnsembleConfig, JobsConfig, RunConfig
from peftly.runs.config_mistakes import JOB_SETTINGS
from peftly.training import TrainConfig

__all__ = ["config_schema", "setting_texts"]

_DRAFT = "http://json-schema.org/draft-07/schema#"
"""The draft that the extensions for YAML read completely."""

_SECTIONS: dict[str, type[BaseModel]] = {
    "DataConfig": DataConfig,
    "TrainConfig": TrainConfig,
    "Quantization": Quantization,
    "EnsembleConfig": EnsembleConfig,
}

_JOB_NAME = r"^[\w\u0080-\uffff-]+$"
"""Name of a job, in the regular expressions of JavaScript, whose classes are those of ASCII."""


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 7) of the YAML file of a run, of an ensemble, of jobs, or of a sweep.

    The schema has all names, types, ranges, defaults and descriptions. Rules about several settings at once, such as
    `early_stopping_threshold` that needs `early_stopping_patience`, are checked by `load_config` only.
    """
    run = _object(RunConfig)
    properties = run["properties"]
    several = {"type": "array", "items": {"anyOf": _methods()}, "minItems": 1}
    properties["method"] = {"description": properties["method"]["description"], "anyOf": [*_methods(), several]}
    definitions = {name: _object(model) for name, model in _SECTIONS.items()}
    # Jobs share parts of their data settings, so that the file of the training data may be missing at one level.
    definitions["DataConfig"].pop("required")
    definitions |= {name: _method(name) for name in METHODS}
    definitions["Job"] = {
        "type": "object",
        "description": "Settings in which this job differs from the other ones.",
        "properties": _job_properties(properties),
        "additionalProperties": False,
    }
    return {
        "$schema": _DRAFT,
        "title": "Configuration of peftly",
        "description": "Settings of a run: peftly train FILE.",
        "type": "object",
        "properties": {
            "$schema": {"type": "string", "description": "Path of this schema, for the editor. It has no effect."},
            **properties,
            "jobs": _jobs(properties, definitions),
        },
        "additionalProperties": False,
        "if": {"required": ["jobs"]},
        "then": {"required": ["out"], "properties": {"ensemble": {"type": "null"}}},
        "else": {"required": run["required"], "properties": {"data": {"required": ["train"]}}},
        "definitions": definitions,
    }


def setting_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the text below each field of a settings class. pydantic could collect it, in a quarter of the import."""
    found = {}
    for owner in reversed(model.__mro__[: model.__mro__.index(BaseModel)]):
        (class_node,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        for field, text in pairwise(cast("ast.ClassDef", class_node).body):
            is_described = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_described:
                found[field.target.id] = str(cast("Any", text).value.value)
    return {name: " ".join(text.split()) for name, text in found.items() if name in model.model_fields}


def _object(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a settings class; classes inside are references to the definitions."""
    schema = model.model_json_schema(ref_template="#/definitions/{model}")
    texts = setting_texts(model)
    properties = {}
    for name, value in schema["properties"].items():
        factory = model.model_fields[name].default_factory
        empty: dict[str, Any] = {"default": {}} if factory is dict else {}  # pydantic leaves out what a function makes
        properties[name] = {"description": _in_yaml(texts[name]), **empty, **_plain(value)}
    required = {"required": schema["required"]} if "required" in schema else {}
    return {"type": "object", "properties": properties, "additionalProperties": False, **required}


def _in_yaml(text: str) -> str:
    """Return a description with the name that YAML has for Python's None."""
    return text.replace("None:", "`null`:")


def _plain(field: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a field without its title, which repeats the name, and without types beside a list."""
    plain = {key: value for key, value in field.items() if key != "title"}
    if "enum" in plain:
        plain.pop("anyOf", None)
    if "$ref" in plain:  # keys beside a reference have no effect
        plain = {key: value for key, value in plain.items() if key != "$ref"} | {"allOf": [{"$ref": plain["$ref"]}]}
    return plain


def _method(name: str) -> dict[str, Any]:
    """Return the schema of the settings of one method, which its name tells from the others."""
    method = METHODS[name]
    text = f"{name}: {method.summary}" + (f" ({method.paper})" if method.paper != "-" else "")
    schema = _object(method.config)
    schema["properties"]["name"] = {"description": text, "const": name}
    return {**schema, "description": text, "required": ["name"]}


def _methods() -> list[dict[str, Any]]:
    """Return the forms of one method: a name, or the settings of a method."""
    names = {"enum": list(METHODS), "enumDescriptions": [method.summary for method in METHODS.values()]}
    return [names, *({"$ref": f"#/definitions/{name}"} for name in METHODS)]


def _job_properties(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a job. Its method may have no name: it is then that of the file."""
    settings: dict[str, Any] = {key: {} for name in METHODS for key in METHODS[name].config.model_fields}
    method = {
        "description": properties["method"]["description"],
        "if": {"type": "object", "not": {"required": ["name"]}},
        "then": {"type": "object", "properties": settings, "additionalProperties": False},
        "else": {"anyOf": _methods()},
    }
    return {name: properties[name] for name in JOB_SETTINGS} | {"method": method}


def _jobs(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of `jobs`: jobs by name, or lists of values by the path of a setting."""
    lists = {path: _list_of(value) for path, value in _paths(properties, definitions)}
    by_name = _in_yaml(setting_texts(JobsConfig)["jobs"])
    return {
        "description": f"{by_name} Or lists of values by the path of a setting, such as `method.rank: [4, 16]`; every "
        "combination of the values is a run.",
        "anyOf": [
            {
                "type": "object",
                "propertyNames": {"pattern": _JOB_NAME},
                "additionalProperties": {"$ref": "#/definitions/Job"},
                "minProperties": 1,
            },
            {
                "type": "object",
                "properties": lists,
                "patternProperties": {r"^method\.(rank|alpha)_pattern\..+$": {"type": "array", "minItems": 1}},
                "additionalProperties": False,
                "minProperties": 1,
            },
        ],
    }


def _list_of(value: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": value["description"], "type": "array", "items": value, "minItems": 1}


def _paths(properties: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the settings in which jobs may differ, by path. A setting of several methods has the forms of all."""
    yield from _job_properties(properties).items()
    for section, definition in (("data", "DataConfig"), ("train", "TrainConfig")):
        yield from ((f"{section}.{name}", value) for name, value in definitions[definition]["properties"].items())
    yield "method.name", {"description": "Name of the method.", "enum": list(METHODS)}
    forms: dict[str, list[Any]] = {}
    for method in METHODS:
        for name, value in definitions[method]["properties"].items():
            if name != "name" and value not in forms.setdefault(name, []):
                forms[name].append(value)
    for name, values in forms.items():
        one = values[0] if len(values) == 1 else {"description": values[0]["description"], "anyOf": values}
        yield f"method.{name}", one

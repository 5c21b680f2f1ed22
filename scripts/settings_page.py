"""Write the tables of docs/settings.md and docs/settings.zh.md from the JSON Schema of the settings.

    make reference

`make test` checks that the pages are up to date.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from reference import Translator, pages, table, write

from peftly.methods import METHODS
from peftly.runs import config_schema
from peftly.runs.config_file import FLAGS
from peftly.setting_names import OTHER_NAMES

TRAINING = {
    "Length and batches": (
        "epochs",
        "max_steps",
        "batch_size",
        "gradient_accumulation_steps",
        "micro_batch_tokens",
    ),
    "Optimizer and learning rate": (
        "learning_rate",
        "optimizer",
        "weight_decay",
        "lr_scheduler_type",
        "warmup_ratio",
        "warmup_steps",
        "max_grad_norm",
        "seed",
    ),
    "Evaluation and early stopping": (
        "eval_steps",
        "evaluation_batch_size",
        "generation_examples",
        "metric_for_best_model",
        "early_stopping_patience",
        "early_stopping_threshold",
    ),
    "Checkpoints and records": ("save_steps", "checkpoint_steps", "keep_checkpoints", "report_to"),
    "Memory and speed": ("gradient_checkpointing", "frozen_layers_once", "packing", "fsdp"),
}
"""Settings of the training by subject."""

ANCHORS = {
    "DataConfig": "data-data",
    "TrainConfig": "training-train",
    "Quantization": "quantization-quantization",
    "EnsembleConfig": "ensemble-ensemble",
}
"""Anchors of the sections by the definition in the schema."""

OF_ALL_METHODS = ("name", "modules_to_save")
HEAD = ("setting", "values", "default", "what it does")

Properties = Mapping[str, Mapping[str, Any]]


def lines(translate: Translator) -> Iterator[str]:
    """Yield the lines of the written part of a page."""
    schema = config_schema()
    definitions = {name: part["properties"] for name, part in schema["definitions"].items()}
    yield from _section(translate, "The run")
    own = {name: value for name, value in schema["properties"].items() if name not in ("$schema", "jobs")}
    yield from _settings(translate, own, "", schema["else"]["required"])
    yield from _section(translate, "Data: {}", "`data`")
    yield from (translate("See [data](data.md) for the formats, and [templates](templates.md)."), "")
    yield from _settings(translate, definitions["DataConfig"], "data.", ["train"])
    yield from _methods(translate, definitions)
    yield from _section(translate, "Training: {}", "`train`")
    yield translate(
        "A step is one update of the trained weights: `batch_size` × `gradient_accumulation_steps` examples on every "
        "process. See [training](training.md)."
    )
    if listed := set(definitions["TrainConfig"]) ^ {name for names in TRAINING.values() for name in names}:
        raise SystemExit(f"error: TRAINING of scripts/settings_page.py does not fit: {', '.join(sorted(listed))}")
    for title, names in TRAINING.items():
        yield from ("", f"### {translate(title)}", "")
        yield from _settings(translate, {name: definitions["TrainConfig"][name] for name in names}, "train.")
    yield from _section(translate, "Quantization: {}", "`quantization`")
    yield translate("A name such as `quantization: nf4`, or a mapping with these settings. See [QLoRA](qlora.md).")
    yield ""
    yield from _settings(translate, definitions["Quantization"], "quantization.", ["kind"])
    yield from _section(translate, "Ensemble: {}", "`ensemble`")
    yield translate(
        "A number of members such as `ensemble: 5`, or a mapping with these settings. See [several adapters]"
        "(composition.md)."
    )
    yield ""
    yield from _settings(translate, definitions["EnsembleConfig"], "ensemble.", ["size"])
    yield from _other_names(translate)


def _section(translate: Translator, title: str, *values: str, level: int = 2) -> Iterator[str]:
    yield from ("", f"{'#' * level} {translate(title, *values)}", "")


def _methods(translate: Translator, definitions: Mapping[str, Properties]) -> Iterator[str]:
    """Yield the lines about the methods: a list of them, what they share, and the settings of each."""
    yield from _section(translate, "Method: {}", "`method`")
    yield translate(
        "A name such as `method: lora`, or a mapping with the name and the settings of this method. See "
        "[the methods](methods.md)."
    )
    yield ""
    yield from table(
        [translate(word) for word in ("method", "trains", "default learning rate", "paper")],
        [
            (f"[`{name}`](#{name})", translate(method.summary), f"{method.learning_rate:g}", _paper(method.paper))
            for name, method in METHODS.items()
        ],
    )
    yield from ("", translate("Settings of every method:"), "")
    shared = {name: definitions["lora"][name] for name in OF_ALL_METHODS}
    shared["name"] = {"description": "Name of the method.", "enum": list(METHODS)}
    yield from _settings(translate, shared, "method.", ["name"])
    tables: dict[str, str] = {}
    for name in METHODS:
        yield from _section(translate, "{}", f"`{name}`", level=3)
        own = {key: value for key, value in definitions[name].items() if key not in OF_ALL_METHODS}
        same = tables.setdefault(json.dumps(own), name)
        if not own:
            yield translate("This method has no settings of its own.")
        elif same != name:
            yield translate("The settings are those of {}.", f"[`{same}`](#{same})")
        else:
            yield from _settings(translate, own, "method.")


def _paper(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper.removeprefix('arXiv:')})" if paper.startswith("arXiv:") else "—"


def _settings(
    translate: Translator, properties: Properties, section: str, required: Sequence[str] = ()
) -> Iterator[str]:
    """Yield the lines of a table of settings."""
    options = {path: f"`--{flag.replace('_', '-')}`" for flag, path in FLAGS.items()}
    rows = []
    for name, value in properties.items():
        option = options.get(f"{section}{name}")
        default = translate("required") if name in required else _default(value)
        rows.append(
            (
                f"`{name}`" + (f"<br>{option}" if option else ""),
                values_text(value, translate),
                default,
                translate(value["description"]),
            )
        )
    yield from table([translate(word) for word in HEAD], rows)


def _default(value: Mapping[str, Any]) -> str:
    return _code(value["default"]) if "default" in value else "—"


def values_text(schema: Mapping[str, Any], translate: Translator) -> str:
    """Return the values that a schema allows, in words."""
    return translate(" or ").join(dict.fromkeys(_forms(schema, translate)))


def _forms(schema: Mapping[str, Any], translate: Translator) -> list[str]:
    """Return the forms that the value of a setting may have; null, if it is allowed, is the last."""
    reference = (schema.get("allOf") or [schema])[0].get("$ref", "").rpartition("/")[2]
    if reference:
        anchor = ANCHORS.get(reference)
        return [f"[{translate('mapping')}](#{anchor})" if anchor else translate("mapping")]
    if schema.get("enum") == list(METHODS):
        return [translate("name of a method")]
    if "enum" in schema:
        return [
            ", ".join(_code(value) for value in schema["enum"] if value is not None),
            *_null(None in schema["enum"]),
        ]
    if "const" in schema:
        return [_code(schema["const"])]
    if "anyOf" in schema:
        parts = [(form.get("type"), form, _forms(form, translate)) for form in schema["anyOf"]]
        forms = [form for kind, _, found in parts if kind != "array" for form in found]
        for kind, form, found in parts:
            if kind == "array":
                is_same = set(_forms(form["items"], translate)) <= set(forms)
                forms += [translate("list of these")] if is_same else found
        has_null = "`null`" in forms
        return [*(form for form in forms if form != "`null`"), *_null(has_null)]
    kind = schema["type"]
    if kind in ("integer", "number"):
        return [_range(schema, translate)]
    if kind == "array":
        return [translate("list: {}", values_text(schema["items"], translate))]
    plain = {"string": "text", "object": "mapping"}.get(kind)
    return [translate(plain) if plain else "`null`" if kind == "null" else "`true`, `false`"]


def _code(value: object) -> str:
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def _null(is_allowed: bool) -> list[str]:
    return ["`null`"] if is_allowed else []


def _range(schema: Mapping[str, Any], translate: Translator) -> str:
    kind = translate("whole number" if schema["type"] == "integer" else "number")
    if "minimum" in schema and "maximum" in schema:
        return translate("{} from {} to {}", kind, schema["minimum"], schema["maximum"])
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "exclusiveMaximum": "<"}
    bounds = ", ".join(f"{sign} {schema[key]:.15g}" for key, sign in signs.items() if key in schema)
    return f"{kind} {bounds}"


def _other_names(translate: Translator) -> Iterator[str]:
    """Yield the lines of the table of names in other tools."""
    yield from _section(translate, "Names in other tools")
    yield translate(
        "peftly has one name for each setting. A name of transformers, TRL, PEFT, bitsandbytes, axolotl, "
        "LLaMA-Factory, ms-swift, Unsloth, Lightning or AdapterHub is an error that says the name to use. See [coming "
        "from other tools](coming_from.md) for whole jobs."
    )
    yield ""
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, other in OTHER_NAMES.items():
        if other.settings:
            groups.setdefault(tuple(other), []).append(name)
    rows = []
    for (settings, value, note), names in groups.items():
        conversion = [translate("true is {}", f"`{value}`")] if value else []
        conversion += [translate(note)] if note else []
        ours = ", ".join(f"`{setting}`" for setting in settings)
        rows.append((", ".join(f"`{name}`" for name in names), ours, translate("; ").join(conversion)))
    yield from table([translate(word) for word in ("name elsewhere", "setting of peftly", "how to convert it")], rows)


def current() -> dict[Path, str]:
    """Return the pages as they should be, by file."""
    return pages("settings", lines)


if __name__ == "__main__":
    write(current())

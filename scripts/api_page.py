"""Write the names of docs/api.md and docs/api.zh.md from the docstrings of the public names.

    make reference

`make test` checks that the pages are up to date. The Chinese page has Chinese tables, and the docstrings as they are.
"""

import inspect
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

sys.path.insert(0, str(Path(__file__).parent))

from reference import Translator, pages, table, write

import peftly
from peftly.errors import PeftlyError
from peftly.runs import setting_texts

SECTIONS = {
    "Base models and data": ("load_base", "Base", "Quantization", "dequantize", "load_data", "DataConfig"),
    "Adapters": (
        "attach",
        "attached",
        "set_adapters",
        "use_adapters",
        "use_prompt_positions",
        "cache_adapter_tensors",
        "trainable_parameters",
        "detach",
        "save_adapter",
        "load_adapter",
        "load",
    ),
    "Methods": (
        "METHODS",
        "PromptTuning",
        "PTuning",
        "PrefixTuning",
        "PTuningV2",
        "AdapterConfig",
        "LoRA",
        "DoRA",
        "IA3",
        "BitFit",
        "Selective",
        "Full",
    ),
    "Training": (
        "train",
        "train_together",
        "TrainConfig",
        "Job",
        "TrainResult",
        "Callback",
        "find_learning_rate",
        "LearningRateTest",
    ),
    "Use and evaluation": (
        "generate",
        "predict",
        "classify",
        "tag_words",
        "evaluate",
        "Evaluation",
        "evaluate_ensemble",
        "Ensemble",
        "open_run",
    ),
    "Merging and exporting": ("merge", "save_merged", "combine", "export", "convert"),
    "Errors": (),
}
"""The public names by subject; the errors are added from their tree."""


INTRODUCTIONS = {
    "Base models and data": "Open a base, and turn rows into batches of token ids.",
    "Adapters": "Put adapters on a model, choose the active ones, save them, load them, and take them off.",
    "Methods": "A class of settings for each method, such as `LoRA(rank=16)`, which `attach` takes.",
    "Training": "Train the adapters of a model.",
    "Use and evaluation": "Generate, classify and score with an adapted model.",
    "Merging and exporting": "Turn adapters into a plain model, or into the files of other tools.",
    "Errors": "`except peftly.PeftlyError` catches all errors that you can remedy; the message says how.",
}

_METHODS = "Mapping of the name of each method to its `Method`; `peftly methods` prints it."
_PROGRAM = "a signature"


def lines(translate: Translator) -> Iterator[str]:
    """Yield the lines of the written part of a page."""
    sections = {**SECTIONS, "Errors": tuple(name for name in sorted(peftly.__all__) if _is_error(name))}
    missing = set(peftly.__all__) - {"__version__"} - {name for names in sections.values() for name in names}
    if missing:
        raise SystemExit(f"error: {', '.join(sorted(missing))} is in no section of scripts/api_page.py")
    for title, names in sections.items():
        yield from ("", f"## {translate(title)}", "", translate(INTRODUCTIONS[title]), "")
        rows = [(f"[`{name}`](#{name.lower()})", translate(_summary(name))) for name in names]
        yield from table([translate("name"), translate("what it does")], rows)
        for name in names:
            yield from ("", f"### {name}", "")
            yield from _without_repeated_blanks(_entry(name, getattr(peftly, name), translate))


def _summary(name: str) -> str:
    return _METHODS if name == "METHODS" else _first_line(getattr(peftly, name))


def _without_repeated_blanks(text: Iterator[str]) -> list[str]:
    """Return lines without a blank line after another one or at the end."""
    found: list[str] = []
    for line in text:
        if line.strip() or (found and found[-1]):
            found.append(line.rstrip())
    while found and not found[-1]:
        found.pop()
    return found


def _is_error(name: str) -> bool:
    value = getattr(peftly, name)
    return inspect.isclass(value) and issubclass(value, PeftlyError)


def _entry(name: str, value: Any, translate: Translator) -> Iterator[str]:
    """Yield the lines of one name: its signature, its docstring and its settings."""
    if name == "METHODS":
        yield _METHODS
        return
    if inspect.isclass(value) and issubclass(value, BaseModel):
        yield from _docstring(value, translate)
        yield from _settings(value, translate)
        return
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        yield from (f"<!-- not run: {_PROGRAM} -->", "```python", _signature(name, value), "```", "")
    yield from _docstring(value, translate)
    if inspect.isclass(value) and name == "Callback":
        yield ""
        for method, function in inspect.getmembers(value, inspect.isfunction):
            if not method.startswith("_"):
                yield f"- `{_signature(method, function)}`: {_first_line(function)}"


def _signature(name: str, value: Any) -> str:
    """Return the signature of a function or class, on several lines if it is long."""
    signature = inspect.signature(value)
    parts, keyword_only = [], False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
        keyword_only = keyword_only or parameter.kind in (parameter.KEYWORD_ONLY, parameter.VAR_POSITIONAL)
        parts.append(_parameter(parameter))
    back = signature.return_annotation
    returns = "" if back in (inspect.Signature.empty, None) or inspect.isclass(value) else f" -> {_annotation(back)}"
    line = f"{name}({', '.join(parts)}){returns}"
    return line if len(line) <= 100 else "\n".join([f"{name}(", *(f"    {part}," for part in parts), f"){returns}"])


def _parameter(parameter: inspect.Parameter) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    text = star + parameter.name
    if parameter.annotation is not parameter.empty:
        text += f": {_annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return text
    default = "..." if callable(parameter.default) or "factory" in repr(parameter.default) else repr(parameter.default)
    return f"{text} = {default}" if ":" in text else f"{text}={default}"


def _annotation(annotation: Any) -> str:
    """Return an annotation without the paths of modules."""
    if isinstance(annotation, typing.ForwardRef):
        annotation = annotation.__forward_arg__
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    text = re.sub(r"ForwardRef\(['\"]([^'\"]+)['\"]\)", r"\1", text).replace("'", "").replace('"', "")
    return re.sub(r"\b(?:peftly|torch|transformers|collections|pathlib|typing)(?:\.\w+)*\.(?=[A-Za-z_])", "", text)


def _first_line(value: Any) -> str:
    return (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")


def _docstring(value: Any, translate: Translator) -> Iterator[str]:
    """Yield a docstring as Markdown: `Args:` and the like become lists, and indented code a block."""
    text = (inspect.getdoc(value) or "").splitlines()
    at = 0
    while at < len(text):
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", text[at])
        is_code = text[at].startswith("    ")
        if section is None and not is_code:
            yield f"**{translate('Example')}**" if text[at] == "Example::" else text[at]
            at += 1
            continue
        start = at + (section is not None)
        end = next((i for i in range(start, len(text)) if text[i] and not text[i].startswith(" ")), len(text))
        block = textwrap.dedent("\n".join(text[start:end])).strip().splitlines()
        if section is None:
            yield from ("```python", *block, "```", "")
        else:
            yield from (f"**{translate(section[1])}**", "")
            yield from _listed(block) if section[1] not in ("Returns", "Yields") else block
            yield ""
        at = end


def _listed(block: list[str]) -> Iterator[str]:
    for line in block:
        entry = re.match(r"([\w, *]+): (.*)", line)
        if entry and not line.startswith(" "):
            names = ", ".join(f"`{one.strip()}`" for one in entry[1].split(","))
            yield f"- {names}: {entry[2]}"
        else:
            yield f"  {line.strip()}" if line.strip() else ""


def _settings(model: type[BaseModel], translate: Translator) -> Iterator[str]:
    """Yield the fields of a settings class as a table."""
    texts = setting_texts(model)
    rows = []
    for name, field in model.model_fields.items():
        required = field.default is PydanticUndefined and field.default_factory is None
        default = translate("required") if required else f"`{field.get_default(call_default_factory=True)!r}`"
        in_yaml = translate(texts.get(name, "").replace("None:", "`null`:"))  # the texts of the page about the settings
        rows.append((f"`{name}`", default, re.sub("`null`([:：])", r"None\1", in_yaml)))
    yield ""
    yield from table([translate(word) for word in ("setting", "default", "what it does")], rows)


def current() -> dict[Path, str]:
    """Return the pages as they should be, by file."""
    return pages("api", lines)


if __name__ == "__main__":
    write(current())

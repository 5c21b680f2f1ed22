"""Write docs/api.md from the docstrings of the public names.

    make reference

`make test` checks that the page is up to date.
"""

import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import peftly
from peftly.errors import PeftlyError
from peftly.runs import setting_texts

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"

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


def page() -> str:
    """Return the page."""
    sections = {**SECTIONS, "Errors": tuple(name for name in sorted(peftly.__all__) if _is_error(name))}
    missing = set(peftly.__all__) - {"__version__"} - {name for names in sections.values() for name in names}
    if missing:
        raise SystemExit(f"error: {', '.join(sorted(missing))} is in no section of scripts/api_page.py")
    lines = [
        "# Python API",
        "",
        "Every name is imported from `peftly`. This page is made from the docstrings by `make reference`.",
    ]
    for title, names in sections.items():
        lines += ["", f"## {title}", ""]
        lines += [f"[`{name}`](#{name.lower()})" + (" ·" if name != names[-1] else "") for name in names]
        for name in names:
            lines += ["", f"### {name}", "", *_entry(name, getattr(peftly, name))]
    return "\n".join(lines) + "\n"


def _is_error(name: str) -> bool:
    value = getattr(peftly, name)
    return inspect.isclass(value) and issubclass(value, PeftlyError)


def _entry(name: str, value: Any) -> Iterator[str]:
    """Yield the lines of one name: its signature, its docstring and its settings."""
    if name == "METHODS":
        yield "Mapping of the name of each method to its `Method`; `peftly methods` prints it."
        return
    if inspect.isclass(value) and issubclass(value, BaseModel):
        yield from _docstring(value)
        yield from _settings(value)
        return
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        yield from ("```python", _signature(name, value), "```", "")
    yield from _docstring(value)
    if inspect.isclass(value) and name == "Callback":
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


def _docstring(value: Any) -> Iterator[str]:
    """Yield a docstring as Markdown: `Args:` and the like become lists."""
    lines = (inspect.getdoc(value) or "").splitlines()
    at = 0
    while at < len(lines):
        section = re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", lines[at])
        if section is None:
            yield lines[at]
            at += 1
            continue
        end = next((i for i in range(at + 1, len(lines)) if lines[i] and not lines[i].startswith(" ")), len(lines))
        block = textwrap.dedent("\n".join(lines[at + 1 : end])).strip().splitlines()
        yield f"**{section[1]}**"
        yield ""
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


def _settings(model: type[BaseModel]) -> Iterator[str]:
    """Yield the fields of a settings class as a table."""
    meanings = setting_texts(model)
    yield from ("", "| setting | default | meaning |", "|---|---|---|")
    for name, field in model.model_fields.items():
        default = "required" if field.default is PydanticUndefined else f"`{field.default!r}`"
        meaning = meanings.get(name, "").replace("|", "\\|")
        yield f"| `{name}` | {default} | {meaning} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")

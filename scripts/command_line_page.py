"""Write the commands of docs/command_line.md and docs/command_line.zh.md from the functions of the command line.

    make reference

`make test` checks that the pages are up to date, and runs their examples.
"""

import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

sys.path.insert(0, str(Path(__file__).parent))

from reference import Translator, pages, table, write

from peftly.cli import app

EXAMPLES = {
    "quickstart": ("peftly quickstart", "it takes minutes on the real base; tests/end_to_end/test_cli_quickstart.py"),
    "train": ("peftly train --base smollm2-135m --data tweets.jsonl --method prompt_tuning --out runs/prompt", ""),
    "find-lr": ("peftly find-lr --base smollm2-135m --data tweets.jsonl --method lora --steps 20", ""),
    "evaluate": ("peftly evaluate runs/tweets --data test.jsonl", ""),
    "predict": ("peftly predict runs/tweets --data test.jsonl --out predictions.jsonl", ""),
    "generate": ('peftly generate runs/tweets --text "third day of waiting, where is my order?"', ""),
    "chat": ("peftly chat runs/tweets", "it waits for what you type"),
    "combine": ("peftly combine runs/tweets runs/more --weights 0.7,0.3 --out adapters/sum", ""),
    "merge": ("peftly merge runs/tweets --out merged/tweets", ""),
    "export": ("peftly export runs/tweets --to peft --out exported/tweets", ""),
    "convert": ("peftly convert old/adapter converted/adapter", ""),
    "push": ("peftly push runs/tweets --to alice/tweets --base HuggingFaceTB/SmolLM2-135M --dry-run", ""),
    "inspect": ("peftly inspect tweets.jsonl --base smollm2-135m", ""),
    "explain": ("peftly explain runs/prompt", ""),
    "methods": ("peftly methods --base smollm2-135m", ""),
    "schema": ("peftly schema --out peftly.schema.json", ""),
    "env": ("peftly env", ""),
}
"""An example of each command, and the reason why the test of the page does not run it."""

VALUES = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}
"""Names of values by type, for options without a name of their own."""


def lines(translate: Translator) -> Iterator[str]:
    """Yield the lines of the written part of a page."""
    functions = {_name(function): function for function in (each.callback for each in app.registered_commands)}
    if wrong := functions.keys() ^ EXAMPLES.keys():
        raise SystemExit(f"error: EXAMPLES of scripts/command_line_page.py does not fit: {', '.join(sorted(wrong))}")
    yield from ("", f"## {translate('The commands')}", "")
    yield from table(
        [translate("command"), translate("what it does")],
        [(f"[`{name}`](#peftly-{name})", _summary(function, translate)) for name, function in functions.items()],
    )
    yield from ("", translate("Options in front of the command:"), "")
    yield from _parameters(app.registered_callback.callback, translate)
    for name, function in functions.items():
        yield from ("", f"## `peftly {name}`", "", _summary(function, translate), "")
        example, reason = EXAMPLES[name]
        yield from [f"<!-- not run: {reason} -->"] * bool(reason)
        yield from ("```bash", example, "```", "")
        yield from _parameters(function, translate)


def _name(function: Callable[..., Any]) -> str:
    return function.__name__.replace("_", "-")


def _summary(function: Callable[..., Any], translate: Translator) -> str:
    return translate(" ".join((inspect.getdoc(function) or "").split()))


def _parameters(function: Any, translate: Translator) -> Iterator[str]:
    """Yield the lines of the table of arguments and options of a command."""
    rows = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if parameter.annotation is typer.Context:
            continue
        kind, info = typing.get_args(parameter.annotation)
        text = translate(info.help)
        if info.min is not None:
            text = translate("{} At least {}.", text, info.min)
        if info.envvar:
            text = translate("{} Environment variable: {}.", text, f"`{info.envvar}`")
        rows.append((_form(parameter, kind, info), _default(parameter, translate), text))
    yield from table([translate(word) for word in ("argument or option", "default", "what it does")], rows)


def _form(parameter: inspect.Parameter, kind: Any, info: Any) -> str:
    """Return an argument or an option with the name of its value."""
    if isinstance(info, ArgumentInfo):
        several = " …" if typing.get_origin(kind) is list else ""
        return f"`{info.metavar}{several}`"
    assert isinstance(info, OptionInfo)
    value = "" if kind is bool else f" {info.metavar or _value(kind)}"
    names = [name for name in (info.default, *info.param_decls) if isinstance(name, str)]  # Typer takes the first so
    return f"`{', '.join(names)}{value}`"


def _value(kind: Any) -> str:
    """Return the name of a value of a type, or the values of a list of choices, for the usage of an option."""
    choices = typing.get_args(kind)
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(map(str, choices)) + "}"
    return _value(next(part for part in choices if part is not types.NoneType)) if choices else VALUES[kind]


def _default(parameter: inspect.Parameter, translate: Translator) -> str:
    if parameter.default is parameter.empty:
        return translate("required")
    return "—" if parameter.default is None or parameter.default is False else f"`{parameter.default}`"


def current() -> dict[Path, str]:
    """Return the pages as they should be, by file."""
    return pages("command_line", lines)


if __name__ == "__main__":
    write(current())

"""`peftly chat`."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli.console import echo, echo_pieces, silence_libraries
from peftly.cli.opening import open_model
from peftly.cli.options import Field, MaxNewTokens, MinP, ModelBase, OptionalRun, Stop, System, Temperature, TopK
from peftly.cli.prompts import description, field_options, messages, open_fields, read_fields, text_prompt, with_system
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.data import Example, RowFormat
    from peftly.runs import OpenRun

__all__ = ["chat"]


def chat(
    run: OptionalRun = None,
    base: ModelBase = None,
    system: System = None,
    field: Field = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    min_p: MinP = None,
    stop: Stop = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampling.")] = None,
) -> None:
    """Chat with a trained adapter or a base. /reset starts a new conversation, /exit or Ctrl-D ends the program."""
    silence_libraries()
    from peftly.inference import generate as write

    opened = open_model(run, base)
    _check_writes_answers(opened, shlex.quote(run) if run is not None else f"--base {shlex.quote(str(base))}")
    template = opened.row_format if opened.row_format and opened.row_format.kind != "chat" else None
    fields = read_fields(field)
    _introduce(opened, template, fields, system)
    opening = messages("", system)[:-1] if template is None else []
    history = list(opening)
    while (question := _ask()) is not None:
        if question == "/reset":
            history = list(opening)
            echo("(new conversation)")
        elif question:
            history.append({"role": "user", "content": question})
            answer = write(
                opened.model,
                opened.tokenizer,
                history if template is None else _formatted(template, history, with_system(template, fields, system)),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                min_p=min_p,
                stop=stop or (),
                seed=seed,
                stream=echo_pieces(),
            )[0]
            echo()
            history.append({"role": "assistant", "content": answer if template is None else answer.strip()})


def _check_writes_answers(opened: "OpenRun", source: str) -> None:
    """Raise ConfigError for a model that gives labels, or that learned plain text.

    Args:
        opened: run, adapter or base.
        source: arguments of `peftly generate` that open the same model.
    """
    from peftly.models import task_of

    command = f"peftly generate {source}"
    if task_of(opened.model) in ("sequence_classification", "token_classification"):
        raise ConfigError(f'this model gives labels and writes no text; use {command} --text "…"')
    if opened.row_format is not None and opened.row_format.kind == "text":
        raise ConfigError(f'this run learned plain text, which it continues; use {command} --prompt "…"')


def _introduce(opened: "OpenRun", template: "RowFormat | None", fields: dict[str, str], system: str | None) -> None:
    """Print how a line becomes a prompt. A model that cannot chat fails here, before the first question.

    Args:
        opened: run, adapter or base.
        template: row format of a run that was trained with a template.
        fields: values of fields by name.
        system: system message.

    Raises:
        ConfigError: the options do not fit the run.
        DataError: the tokenizer has no chat template.
    """
    from peftly.data import prompt_ids

    if template is None:
        if fields:
            raise ConfigError("--field is for a run that learned a template; this model answers conversations")
        prompt_ids(messages("?", system), opened.tokenizer)
    else:
        fields = with_system(template, fields, system)
        missing = open_fields(template, fields)
        if len(missing) != 1:
            others = field_options(open_fields(template, ())[:-1])
            raise ConfigError(
                f"this run learned {description(template)}, and a line fills one field; give the others: {others}"
            )
        text_prompt(template, "?", fields)
        seen = "earlier lines are its 'history'" if "history" in template.input_fields else "it sees no earlier lines"
        echo(f"this run learned {description(template)}: a line is {missing[0]!r}; {seen}")
    echo("/reset starts a new conversation, /exit or Ctrl-D ends the program")


def _formatted(template: "RowFormat", history: Sequence[Mapping[str, str]], fields: Mapping[str, str]) -> "Example":
    """Return the prompt of the last message of a conversation, for a run that was trained with a template."""
    texts = [message["content"] for message in history]
    earlier = [list(turn) for turn in zip(texts[:-1:2], texts[1::2], strict=True)]
    given = {**fields, "history": earlier} if "history" in template.input_fields else fields
    return text_prompt(template, texts[-1], given)


def _ask() -> str | None:
    """Return the next line of the user; None at the end of the conversation."""
    try:
        question = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        echo()
        return None
    return None if question in ("/exit", "/quit") else question

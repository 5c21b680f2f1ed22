"""`peftly chat`."""

import sys
from typing import Annotated

import typer

from peftly.cli._console import quiet
from peftly.cli._model import RunArgument, open_model
from peftly.cli._options import BaseOption, MaxNewTokens, Temperature

__all__ = ["chat"]


def chat(
    run: RunArgument = None,
    base: BaseOption = None,
    system: Annotated[str | None, typer.Option("--system", help="What the model is told before the talk.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
) -> None:
    """Talk with a trained adapter or a base. /reset begins anew, /exit or Ctrl-D ends."""
    quiet()
    from peftly.data import prompt_ids
    from peftly.inference import generate as write

    opened = open_model(run, base)
    opening = [{"role": "system", "content": system}] if system else []
    # A model that cannot chat says so now, not after the first question.
    prompt_ids([*opening, {"role": "user", "content": "?"}], opened.tokenizer)
    typer.echo("/reset begins anew, /exit or Ctrl-D ends", err=False)
    history = list(opening)
    while (question := _ask()) is not None:
        if question == "/reset":
            history = list(opening)
            typer.echo("(new talk)")
        elif question:
            history.append({"role": "user", "content": question})
            answer = write(
                opened.model,
                opened.tokenizer,
                history,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                stream=lambda piece: typer.echo(piece, nl=False),
            )[0]
            typer.echo()
            history.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    """Return what a person typed, or None when they are done."""
    try:
        question = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        typer.echo()
        return None
    return None if question in ("/exit", "/quit") else question

"""`peftly chat`."""

import sys
from typing import Annotated

import typer

from peftly.cli.console import echo, silence_libraries
from peftly.cli.opening import open_model
from peftly.cli.options import BaseOption, MaxNewTokens, MinP, OptionalRun, Stop, Temperature, TopK

__all__ = ["chat"]


def chat(
    run: OptionalRun = None,
    base: BaseOption = None,
    system: Annotated[str | None, typer.Option("--system", help="System message of the conversation.")] = None,
    max_new_tokens: MaxNewTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    min_p: MinP = None,
    stop: Stop = None,
) -> None:
    """Chat with a trained adapter or a base. /reset starts a new conversation, /exit or Ctrl-D ends the program."""
    silence_libraries()
    from peftly.data import prompt_ids
    from peftly.inference import generate as write

    opened = open_model(run, base)
    opening = [{"role": "system", "content": system}] if system else []
    # A model without a chat template fails here, before the first question.
    prompt_ids([*opening, {"role": "user", "content": "?"}], opened.tokenizer)
    echo("/reset starts a new conversation, /exit or Ctrl-D ends the program")
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
                history,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                min_p=min_p,
                stop=stop or (),
                stream=lambda piece: echo(piece, nl=False),
            )[0]
            echo()
            history.append({"role": "assistant", "content": answer})


def _ask() -> str | None:
    """Return the next line of the user; None at the end of the conversation."""
    try:
        question = input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        echo()
        return None
    return None if question in ("/exit", "/quit") else question

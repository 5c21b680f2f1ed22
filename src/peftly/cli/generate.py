"""`peftly generate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli._console import quiet
from peftly.cli._model import RunArgument, open_model
from peftly.cli._options import BaseOption, MaxNewTokens, Temperature
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.data import Example, RowFormat

__all__ = ["generate"]


def generate(
    run: RunArgument = None,
    text: Annotated[
        str | None, typer.Option("--text", help="A text, put into the template that the run was trained with.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="What the model reads, as it is.")] = None,
    pair: Annotated[
        str | None, typer.Option("--pair", help="The second text, for a classifier that was trained on two.")
    ] = None,
    base: BaseOption = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: Annotated[float, typer.Option("--top-p", help="Draw from the likeliest words of this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option("--repetition-penalty", help="Above 1: say less twice.")] = 1.0,
    num_beams: Annotated[int, typer.Option("--num-beams", help="Above 1: search for the likeliest whole text.")] = 1,
    seed: Annotated[int | None, typer.Option("--seed", help="Repeat the same draws.")] = None,
) -> None:
    """Let a trained adapter (or, with --base, an untouched base) write; a classifier says its labels instead."""
    if (text is None) == (prompt is None):
        raise ConfigError("give --text (put into the run's template) or --prompt (read as it is); one of the two")
    quiet()
    from peftly.cli._answers import print_answer
    from peftly.inference import generate as write
    from peftly.models import task_of

    opened = open_model(run, base)
    if task_of(opened.model) in ("sequence_classification", "token_classification"):
        print_answer(opened, text if text is not None else str(prompt), pair)
        return
    if pair is not None:
        raise ConfigError("--pair is for a classifier of two texts; put both into --prompt for a model that writes")
    words = _in_template(opened.row_format, text) if text is not None else str(prompt)
    streams = num_beams == 1
    completions = write(
        opened.model,
        opened.tokenizer,
        words,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        seed=seed,
        stream=(lambda piece: typer.echo(piece, nl=False)) if streams else None,
    )
    typer.echo("" if streams else completions[0])


def _in_template(row_format: "RowFormat | None", text: str) -> "Example | list[dict[str, str]]":
    if row_format is None:
        raise ConfigError("this model does not say how a text becomes a prompt; give the whole prompt with --prompt")
    return [{"role": "user", "content": text}] if row_format.kind == "chat" else row_format.format_prompt(text)

"""`peftly generate`."""

from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli.console import echo, silence_libraries
from peftly.cli.opening import open_model
from peftly.cli.options import BaseOption, MaxNewTokens, MinP, OptionalRun, Stop, Temperature, TopK
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.data import Example, RowFormat

__all__ = ["generate"]


def generate(
    run: OptionalRun = None,
    text: Annotated[str | None, typer.Option("--text", help="Text for the template of the run.")] = None,
    field: Annotated[
        list[str] | None,
        typer.Option("--field", metavar="NAME=TEXT", help="Text for one field of the template. Repeatable."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Complete prompt, used without a template.")] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="Second text, for a classifier of text pairs.")] = None,
    base: BaseOption = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: Annotated[
        float, typer.Option("--top-p", help="Sample from the most likely tokens with this total probability.")
    ] = 1.0,
    min_p: MinP = None,
    repetition_penalty: Annotated[
        float, typer.Option("--repetition-penalty", help="Above 1: make repeated tokens less likely.")
    ] = 1.0,
    num_beams: Annotated[int, typer.Option("--num-beams", help="Above 1: beam search with this many beams.")] = 1,
    stop: Stop = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampling.")] = None,
) -> None:
    """Generate text with a trained adapter, or with an untouched base (--base). A classifier prints its labels."""
    if sum(given is not None for given in (text, field, prompt)) != 1:
        raise ConfigError(
            "give either --text (a text for the template of the run), --field for each field of the template, or "
            "--prompt (a complete prompt)"
        )
    row = text if field is None else _fields(field)
    silence_libraries()
    from peftly.cli.answers import print_answer
    from peftly.inference import generate as write
    from peftly.models import task_of

    opened = open_model(run, base)
    if task_of(opened.model) in ("sequence_classification", "token_classification"):
        print_answer(opened, str(prompt) if row is None else row, pair)
        return
    if pair is not None:
        raise ConfigError("--pair is for a classifier of two texts; for this model put both into --prompt")
    streams = num_beams == 1
    completions = write(
        opened.model,
        opened.tokenizer,
        str(prompt) if row is None else _formatted(opened.row_format, row),
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        stop=stop or (),
        seed=seed,
        stream=(lambda piece: echo(piece, nl=False)) if streams else None,
    )
    echo("" if streams else completions[0])


def _fields(options: list[str]) -> dict[str, str]:
    """Return the fields and texts of `--field`."""
    pairs = [option.partition("=") for option in options]
    if wrong := next((option for option, (_, sign, _) in zip(options, pairs, strict=True) if not sign), None):
        raise ConfigError(f"--field {wrong}: give a name and a text, as in --field 'question=Where is it?'")
    return {name: text for name, _, text in pairs}


def _formatted(row_format: "RowFormat | None", row: str | dict[str, str]) -> "Example | list[dict[str, str]]":
    if row_format is None:
        raise ConfigError("this model has no template for --text; give the complete prompt with --prompt")
    if row_format.kind != "chat":
        return row_format.format_prompt(row)
    if not isinstance(row, str):
        raise ConfigError("--field is for a template, and this model was trained on conversations; use --text")
    return [{"role": "user", "content": row}]

"""`peftly generate`."""

from typing import Annotated

import typer

from peftly.cli.console import echo, echo_pieces, silence_libraries
from peftly.cli.opening import open_model
from peftly.cli.options import Field, MaxNewTokens, MinP, ModelBase, OptionalRun, Stop, System, Temperature, TopK
from peftly.cli.prompts import Inputs, prompt_of, read_fields
from peftly.errors import ConfigError

__all__ = ["generate"]


def generate(
    run: OptionalRun = None,
    text: Annotated[
        str | None, typer.Option("--text", help="Text for the template of the run, or a user's message.")
    ] = None,
    field: Field = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Complete prompt, used without a template.")] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="Second text, for a classifier of text pairs.")] = None,
    system: System = None,
    base: ModelBase = None,
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
    inputs = Inputs(text, prompt, read_fields(field), pair, system)
    if (prompt is None) == (text is None and not inputs.field):
        raise ConfigError(
            'give either --text "…" (a text for the template of the run), --field NAME="…" for each field of the '
            'template, or --prompt "…" (a complete prompt)'
        )
    silence_libraries()
    from peftly.cli.answers import print_answer
    from peftly.data import Example
    from peftly.inference import generate as write
    from peftly.models import task_of

    opened = open_model(run, base)
    example = prompt_of(opened, inputs, is_base=run is None)
    if isinstance(example, Example) and task_of(opened.model) in ("sequence_classification", "token_classification"):
        print_answer(opened, example)
        return
    streams = num_beams == 1
    show = (lambda piece: echo(piece, nl=False)) if prompt is not None else echo_pieces()
    completions = write(
        opened.model,
        opened.tokenizer,
        example,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        num_beams=num_beams,
        stop=stop or (),
        seed=seed,
        stream=show if streams else None,
    )
    if not streams:
        show(completions[0])
    echo()

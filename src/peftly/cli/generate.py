"""`peftly generate`."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peftly.cli.console import echo, echo_pieces, silence_libraries
from peftly.cli.opening import open_model
from peftly.cli.options import (
    Field,
    MaxNewTokens,
    MinP,
    ModelBase,
    NumBeams,
    OptionalRun,
    RepetitionPenalty,
    RowLimit,
    RowsFile,
    RowTarget,
    RowTemplate,
    Stop,
    System,
    Temperature,
    TopK,
    TopP,
)
from peftly.cli.prompts import Inputs, is_classifier, prompt_of, prompt_row, read_fields
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from peftly.data import RowFormat, Rows
    from peftly.runs import OpenRun

__all__ = ["generate"]


def generate(
    run: OptionalRun = None,
    text: Annotated[
        list[str] | None,
        typer.Option("--text", help="Text for the template of the run, or a user's message. Repeatable."),
    ] = None,
    field: Field = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Complete prompt, used without a template.")] = None,
    pair: Annotated[str | None, typer.Option("--pair", help="Second text, for a classifier of text pairs.")] = None,
    system: System = None,
    data: RowsFile = None,
    limit: RowLimit = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Texts or rows per batch.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print each answer as one line of JSON.")] = False,
    base: ModelBase = None,
    template: RowTemplate = None,
    target: RowTarget = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_k: TopK = None,
    top_p: TopP = 1.0,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = 1.0,
    num_beams: NumBeams = 1,
    stop: Stop = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the sampling.")] = None,
) -> None:
    """Generate text with a trained adapter, or with an untouched base (--base). A classifier prints its labels."""
    texts = text or []
    inputs = Inputs(texts[0] if texts else None, prompt, read_fields(field), pair, system)
    _check(inputs, texts, data=data, as_json=as_json, limit=limit, template=template, target=target)
    silence_libraries()
    generation = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "num_beams": num_beams,
        "stop": stop or (),
        "seed": seed,
    }
    if data is not None:
        _answer_data(run, base, data, limit, template, target, batch_size, generation, as_json=as_json)
        return
    opened = open_model(run, base)
    if len(texts) > 1 or (as_json and prompt is None):
        given = [inputs._replace(text=each) for each in texts] or [inputs]
        found = [prompt_row(opened, each, is_base=run is None) for each in given]
        _answer_rows(opened, found[0][0], [row for _, row in found], batch_size, generation, as_json=as_json)
        return
    _answer_one(opened, inputs, generation, is_base=run is None)


def _check(inputs: Inputs, texts: Sequence[str], *, data: object, as_json: bool, **others: object) -> None:
    """Raise ConfigError for options that have no effect together."""
    has_text = bool(texts) or bool(inputs.field)
    if data is not None:
        if has_text or inputs.prompt is not None or inputs.pair is not None or inputs.system is not None:
            raise ConfigError(
                "--data has the texts in its rows; leave out --text, --field, --prompt, --pair and --system"
            )
        return
    if as_json and inputs.prompt is not None:
        raise ConfigError("--json prints rows with their answers, and a complete prompt is no row; leave it out")
    for name, value in others.items():
        if value is not None:
            raise ConfigError(f"--{name} is for the rows of --data; give --data, or leave it out")
    if (inputs.prompt is None) != has_text:
        raise ConfigError(
            'give either --text "…" (a text for the template of the run), --field NAME="…" for each field of the '
            'template, or --prompt "…" (a complete prompt); or the rows of a file with --data'
        )


def _answer_one(opened: "OpenRun", inputs: Inputs, generation: Mapping[str, Any], *, is_base: bool) -> None:
    """Print the answer to one prompt, piece by piece."""
    from peftly.cli.answers import print_answer
    from peftly.data import Example
    from peftly.inference import generate as write

    example = prompt_of(opened, inputs, is_base=is_base)
    if isinstance(example, Example) and is_classifier(opened):
        print_answer(opened, example)
        return
    streams = generation["num_beams"] == 1
    show = (lambda piece: echo(piece, nl=False)) if inputs.prompt is not None else echo_pieces()
    completions = write(opened.model, opened.tokenizer, example, **generation, stream=show if streams else None)
    if not streams:
        show(completions[0])
    echo()


def _answer_data(
    run: str | None,
    base: str | None,
    data: Sequence[str],
    limit: int | None,
    template: str | None,
    target: str | None,
    batch_size: int,
    generation: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Print the answer to each row of files."""
    from peftly.data import read_escapes
    from peftly.runs import PredictionRequest, prepare_rows

    request = PredictionRequest(run, base, template and read_escapes(template), target)
    rows, row_format, found = prepare_rows(request, data if len(data) > 1 else data[0], limit)
    opened = open_model(None, base) if found is None else found.open()
    _print_answers(opened, row_format, rows, batch_size, generation, as_json=as_json)


def _answer_rows(
    opened: "OpenRun",
    row_format: "RowFormat",
    rows: list[dict[str, Any]],
    batch_size: int,
    generation: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    from peftly.data import read_prompt_rows

    _print_answers(opened, row_format, read_prompt_rows(rows), batch_size, generation, as_json=as_json)


def _print_answers(
    opened: "OpenRun",
    row_format: "RowFormat",
    rows: "Rows",
    batch_size: int,
    generation: Mapping[str, Any],
    *,
    as_json: bool,
) -> None:
    """Print the answers in the order of the rows, each as soon as those before it are known."""
    import json

    from peftly.cli.answers import answer_text
    from peftly.inference import Answer
    from peftly.runs import PredictSettings, RowPredictions, row_with_answer

    settings = PredictSettings(batch_size, is_text=True, window=1, generation=generation)
    predictions = RowPredictions(opened, rows, row_format, settings)
    answers: dict[int, Answer] = {}
    number = 0
    for indices, batch in predictions.batches():
        answers.update(zip(indices, batch, strict=True))
        while number in answers:
            answer = answers.pop(number)
            if as_json:
                echo(json.dumps(row_with_answer(rows.rows[number], answer), ensure_ascii=False, default=str))
            else:
                echo(("\n" if number else "") + _quoted_input(row_format, rows.rows[number]))
                echo(answer_text(answer))
            number += 1


def _quoted_input(row_format: "RowFormat", row: Mapping[str, Any]) -> str:
    """Return the input of a row as lines that begin with "> "."""
    from peftly.data import row_prompt

    if row_format.kind == "chat":
        example = row_prompt(row_format, row, "the row")
        texts = [str(example.messages[-1]["content"])] if example else [""]
    else:
        values = {name: row.get(name) for name in row_format.input_fields if row.get(name) not in (None, "", [])}
        shown = {
            name: " ".join(map(str, value)) if isinstance(value, list) else str(value) for name, value in values.items()
        }
        texts = list(shown.values()) if len(shown) < 2 else [f"{name}: {value}" for name, value in shown.items()]
    return "\n".join(f"> {line}" for line in "\n".join(texts).split("\n"))

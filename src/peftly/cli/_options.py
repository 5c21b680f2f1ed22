"""Options that several commands share, each with one name and one help text."""

from typing import Annotated

import typer

from peftly.errors import ConfigError

__all__ = [
    "Adapters",
    "BaseOption",
    "BatchSize",
    "ConfigFile",
    "DataFile",
    "MaxLength",
    "MaxNewTokens",
    "Overrides",
    "Target",
    "TaskOption",
    "Temperature",
    "Template",
    "TestFile",
    "ValidationFile",
    "Weights",
    "read_weights",
]

Adapters = Annotated[
    list[str], typer.Argument(metavar="ADAPTER...", help="Run folders, adapter folders or Hub ids, of one base.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="A short name (smollm2-135m), a Hub id, a folder or a .gguf file.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Examples of a batch; train.gradient_accumulation_steps batches make a step."),
]
ConfigFile = Annotated[str | None, typer.Argument(help="A YAML file; without one the options say everything.")]
DataFile = Annotated[
    str | None,
    typer.Option("--data", help="Training rows: a JSON Lines, JSON, CSV or Parquet file, a folder or a Hub id."),
]
MaxLength = Annotated[int | None, typer.Option("--max-length", help="Tokens that a longer example is cut to.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Where a text that does not end is cut.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path, as in --set method.rank=16; repeatable."),
]
Target = Annotated[str | None, typer.Option("--target", help="The field that is to be predicted.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="causal_lm, seq2seq_lm, sequence_classification or token_classification; without: what fits the base.",
    ),
]
Temperature = Annotated[float, typer.Option("--temperature", help="0: the likeliest words; above: drawn, more freely.")]
Template = Annotated[
    str | None, typer.Option("--template", help='What the model reads, as in "Tweet text : {text} Label :".')
]
TestFile = Annotated[str | None, typer.Option("--test", help="Rows for the final scores.")]
ValidationFile = Annotated[
    str | None,
    typer.Option("--validation", help="Rows to watch during training; without: a tenth of the training rows."),
]
Weights = Annotated[str | None, typer.Option("--weights", help="How much of each adapter, as in 0.7,0.3; for LoRA.")]


def read_weights(weights: str) -> list[float]:
    """Return the numbers of `--weights`.

    Raises:
        ConfigError: it holds something else.
    """
    try:
        return [float(part) for part in weights.split(",")]
    except ValueError:
        raise ConfigError(f"--weights {weights}: give numbers with commas between them, as in 0.7,0.3") from None

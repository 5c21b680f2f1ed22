"""Arguments and options that several commands share, each with one name and one help text."""

import math
from contextlib import suppress
from typing import Annotated

import typer

from peftly.errors import ConfigError

__all__ = [
    "Adapters",
    "BaseOption",
    "BatchSize",
    "ChatTemplate",
    "ConfigFile",
    "DataFile",
    "Ensemble",
    "Epochs",
    "Field",
    "Format",
    "Head",
    "LearningRate",
    "MaxLength",
    "MaxNewTokens",
    "MethodOption",
    "MinP",
    "ModelBase",
    "MovedBase",
    "NumBeams",
    "OptionalRun",
    "Overrides",
    "Patience",
    "QuantizationOption",
    "RepetitionPenalty",
    "RowLabels",
    "RowLimit",
    "RowTarget",
    "RowTemplate",
    "RowsFile",
    "Run",
    "Seed",
    "Stop",
    "System",
    "Target",
    "TaskOption",
    "Temperature",
    "Template",
    "TestFile",
    "TopK",
    "TopP",
    "ValidationFile",
    "Weights",
    "read_weights",
]

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, adapter folder, or Hub id of an adapter.")]
OptionalRun = Annotated[
    str | None, typer.Argument(metavar="RUN", help="Run folder, adapter folder, or Hub id of an adapter.")
]
Adapters = Annotated[
    list[str],
    typer.Argument(metavar="ADAPTER", help="Run folders, adapter folders or Hub ids, all for the same base."),
]
ConfigFile = Annotated[
    str | None, typer.Argument(metavar="CONFIG", help="YAML file with the configuration. Options override it.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", help="Base model: short name (smollm2-135m), Hub id, folder or .gguf file.")
]
MovedBase = Annotated[
    str | None,
    typer.Option("--base", help="Base of the adapter, if it has moved or is another than the adapter names."),
]
ModelBase = Annotated[
    str | None, typer.Option("--base", help="Base of the run, if it has moved; without a run, an untouched base.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Examples per batch; a step has train.gradient_accumulation_steps batches."),
]
DataFile = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Training data: JSON Lines, JSON, CSV, TSV or Parquet file, folder or Hub id. Repeatable.",
    ),
]
Field = Annotated[
    list[str] | None,
    typer.Option("--field", metavar="NAME=TEXT", help="Value for a field of the template of the run. Repeatable."),
]
Format = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="NAME",
        help="Named format of the rows: alpaca, alpaca-human, belle, chatml, firefly, llama-2, twitter-complaints or "
        "vicuna.",
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option("--max-length", help="Maximum number of tokens of an example; longer examples are truncated."),
]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Maximum number of tokens to generate.")]
MinP = Annotated[
    float | None,
    typer.Option("--min-p", help="Sample only from tokens with at least this fraction of the highest probability."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting by its path: --set method.rank=16. Repeatable."),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer in front of this text. Repeatable."),
]
ChatTemplate = Annotated[
    str | None,
    typer.Option(
        "--chat-template", metavar="FILE", help="Chat template for conversations: a file. Default: the base's own."
    ),
]
NumBeams = Annotated[int, typer.Option("--num-beams", help="Above 1: beam search with this many beams.")]
RepetitionPenalty = Annotated[
    float, typer.Option("--repetition-penalty", help="Above 1: make repeated tokens less likely.")
]
RowsFile = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Rows: JSON Lines, JSON, CSV, TSV or Parquet file, folder or Hub id (its test split). Repeatable.",
    ),
]
RowLimit = Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows.")]
RowLabels = Annotated[
    list[str] | None,
    typer.Option("--label", help="A label to choose from, for a base without a run. Repeatable."),
]
RowTemplate = Annotated[
    str | None,
    typer.Option("--template", help="Template of the prompts, for a base without a run: '{text}\\nLabel:'."),
]
RowTarget = Annotated[
    str | None,
    typer.Option(
        "--target", help="Field with the answers, for scores. Default: that of the training, or a usual name."
    ),
]
System = Annotated[str | None, typer.Option("--system", help="System message of the conversation.")]
Target = Annotated[str | None, typer.Option("--target", help="Field to learn. Default: guessed from the rows.")]
TaskOption = Annotated[
    str | None,
    typer.Option(
        "--task",
        help="causal_lm, seq2seq_lm, sequence_classification or token_classification. Default: a task that fits the "
        "base.",
    ),
]
Temperature = Annotated[
    float, typer.Option("--temperature", help="Sampling temperature. 0: the most likely token at each step.")
]
Template = Annotated[
    str | None,
    typer.Option("--template", help="Template of the prompt: '{text}\\nLabel:'. \\n is a line break, \\t a tab."),
]
TestFile = Annotated[
    list[str] | None,
    typer.Option(
        "--test",
        metavar="FILE",
        help="Test data for the final scores; none: no test, even if the data set has a test split. Repeatable.",
    ),
]
TopP = Annotated[
    float, typer.Option("--top-p", help="Sample only from the most likely tokens that have this total probability.")
]
TopK = Annotated[int | None, typer.Option("--top-k", help="Sample only from this number of most likely tokens.")]
ValidationFile = Annotated[
    list[str] | None,
    typer.Option(
        "--validation",
        metavar="FILE",
        help="Validation data; none: no validation. Default: the validation split of the data set, or a tenth of the "
        "training data. Repeatable.",
    ),
]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Weight of each adapter: 0.7,0.3. Only for LoRA. Default: 1 for each.")
]
Ensemble = Annotated[
    int | None, typer.Option("--ensemble", help="Train this number of adapters, which vote on the label (an ensemble).")
]
Epochs = Annotated[int | None, typer.Option("--epochs", help="Passes over the training data.")]
Head = Annotated[
    str | None,
    typer.Option("--head", help="New head of a sequence classifier: auto, transformers, mean or first."),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--learning-rate", help="Peak learning rate. Default: that of the method, see peftly methods."),
]
MethodOption = Annotated[str | None, typer.Option("--method", help="Method to train; see peftly methods.")]
Patience = Annotated[
    int | None,
    typer.Option(
        "--early-stopping-patience", help="Stop the training after this number of evaluations without a better score."
    ),
]
QuantizationOption = Annotated[
    str | None, typer.Option("--quantization", help="Quantization of the base's linear layers: nf4, fp4 or int8.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Seed of all random numbers.")]


def read_weights(weights: str) -> list[float]:
    """Return the numbers of `--weights`.

    Raises:
        ConfigError: the text is not a list of numbers.
    """
    with suppress(ValueError):
        numbers = [float(part) for part in weights.split(",")]
        if all(map(math.isfinite, numbers)):
            return numbers
    raise ConfigError(f"--weights {weights}: give numbers with commas between them, as in 0.7,0.3")

"""`peftly inspect`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from peftly.cli._console import console, quiet
from peftly.cli._options import BaseOption, DataFile, MaxLength, Overrides, Target, Template, TestFile, ValidationFile
from peftly.errors import ConfigError

if TYPE_CHECKING:
    from rich.text import Text
    from transformers import PreTrainedTokenizerBase

    from peftly.config import RunConfig
    from peftly.data import Encoded

__all__ = ["inspect"]


def inspect(
    source: Annotated[str | None, typer.Argument(help="A run folder or a YAML file; without one, options.")] = None,
    base: BaseOption = None,
    data: DataFile = None,
    validation: ValidationFile = None,
    test: TestFile = None,
    template: Template = None,
    target: Target = None,
    max_length: MaxLength = None,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", min=1, help="How many training examples to show.")] = 3,
) -> None:
    """Show the exact tokens of some training examples: which are trained, and what was cut."""
    flags = {
        "base": base,
        "data": data,
        "validation": validation,
        "test": test,
        "template": template,
        "target": target,
        "max_length": max_length,
    }
    config = _config(source, overrides or [], flags)
    quiet()
    from peftly.base import load_base
    from peftly.data import load_data

    tokenizer = load_base(config.base, dtype=config.dtype, device=config.device).tokenizer
    loaded = load_data(config.data, tokenizer)
    screen = console()
    marked = screen.color_system is None or screen.no_color
    for place, encoded in enumerate(loaded.train.encoded[:rows], start=1):
        cut = f", {encoded.cut} cut" if encoded.cut else ""
        trained = sum(encoded.trained)
        screen.print(f"example {place}: {len(encoded.input_ids)} tokens, {trained} trained{cut}", style="bold")
        screen.print(_tokens(encoded, tokenizer, marked=marked), end="\n\n")
    screen.print("⟦trained⟧, not trained" if marked else "[green]trained[/], [dim]not trained[/]", end="\n\n")
    for line in loaded.report.lines():
        screen.print(line, markup=False)


def _config(source: str | None, overrides: list[str], flags: Mapping[str, object]) -> "RunConfig":
    from peftly.config import load_config

    if source is not None and Path(source).is_dir():
        if not (Path(source) / "config.yaml").is_file():
            raise ConfigError(f"{source} holds no run: it has no config.yaml")
        source = str(Path(source) / "config.yaml")
    return load_config(source, overrides, flags, defaults={"method": "lora", "out": "unused"})


def _tokens(encoded: "Encoded", tokenizer: "PreTrainedTokenizerBase", *, marked: bool) -> "Text":
    """Return the tokens with a bar between them; runs of trained ones are green, or in double brackets."""
    from rich.text import Text

    text = Text()
    before = False
    for place, (token_id, trained) in enumerate(zip(encoded.input_ids, encoded.trained, strict=True)):
        if marked and before and not trained:
            text.append("⟧")
        text.append("│" if place else "", style="dim")
        if marked and trained and not before:
            text.append("⟦")
        text.append(_token_text(token_id, tokenizer), style="bold green" if trained else "dim")
        before = trained
    return text.append("⟧") if marked and before else text


def _token_text(token_id: int, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return a token as it reads; one that is part of a character is shown by its name in the vocabulary."""
    words = str(tokenizer.decode([token_id], clean_up_tokenization_spaces=False))
    if "\ufffd" in words or not words:
        words = str(tokenizer.convert_ids_to_tokens(token_id))
    return words.replace("\n", "⏎\n").replace("\t", "⇥")

"""The tokens of an example, printed with a mark on the trained tokens."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from peftly.report import visible

if TYPE_CHECKING:
    from peftly.report import TokenUnit

__all__ = ["units_text"]


def units_text(units: "Sequence[TokenUnit]", answer: "Sequence[TokenUnit]", *, brackets: bool) -> Text:
    """Return the tokens of an example with bars between them. Trained tokens are green, or in double brackets.

    Args:
        units: tokens that the model reads.
        answer: target that is not part of them.
        brackets: whether to mark trained tokens with brackets, for output without colours.
    """
    text = _joined(units, brackets=brackets)
    if answer:
        text.append(" → ", style="dim")
        text.append_text(_joined(answer, brackets=brackets))
    return text


def _joined(units: "Sequence[TokenUnit]", *, brackets: bool) -> Text:
    """Return units with bars between them, with sequences of trained units marked."""
    text = Text()
    was_trained = False
    for position, unit in enumerate(units):
        if brackets and was_trained and not unit.trained:
            text.append("⟧")
        text.append("│" if position else "", style="dim")
        if brackets and unit.trained and not was_trained:
            text.append("⟦")
        shown = unit.text if unit.kind == "label" else visible(unit.text)
        shown += f"({len(unit.ids)})" if len(unit.ids) > 1 else ""
        shown += f"/{unit.tag}" if unit.tag is not None else ""
        text.append(shown, style="bold green" if unit.trained else "dim")
        was_trained = unit.trained
    return text.append("⟧") if brackets and was_trained else text

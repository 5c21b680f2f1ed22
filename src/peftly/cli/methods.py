"""`peftly methods`."""

from peftly.cli._console import console

__all__ = ["methods"]


def methods() -> None:
    """List what can be trained."""
    from rich.table import Table

    from peftly.methods import METHODS

    table = Table("method", "trains", "learning rate", "mergeable", "paper")
    for name, method in METHODS.items():
        mergeable = "yes" if method.mergeable else "no"
        table.add_row(name, method.summary, f"{method.learning_rate:g}", mergeable, method.paper)
    screen = console()
    screen.print(table)
    screen.print("learning rate: the default for AdamW; mergeable: can be folded into the base's own weights")

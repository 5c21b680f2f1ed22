"""`peftly methods`."""

from peftly.cli.console import console

__all__ = ["methods"]


def methods() -> None:
    """List the methods with their default learning rates and papers."""
    from rich.table import Table

    from peftly.methods import METHODS

    table = Table("method", "trains", "learning rate", "mergeable", "paper")
    for name, method in METHODS.items():
        mergeable = "yes" if method.mergeable else "no"
        table.add_row(name, method.summary, f"{method.learning_rate:g}", mergeable, method.paper)
    screen = console()
    screen.print(table)
    screen.print("learning rate: the default for AdamW; mergeable: whether peftly merge can merge it into the base")

"""`peftly push`."""

from typing import Annotated

import typer

from peftly.cli.console import echo, silence_libraries

__all__ = ["push"]


def push(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or folder of an adapter.")],
    to: Annotated[str, typer.Option("--to", metavar="USER/NAME", help="Repository on the Hub; created if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Create the repository as a private one.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="Branch to upload to; created if missing. Default: main.")
    ] = None,
    message: Annotated[str | None, typer.Option("--message", help="Message of the commit.")] = None,
    base: Annotated[
        str | None, typer.Option("--base", help="Hub id of the base, if the adapter names a local folder.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the files and the card, and upload nothing.")
    ] = False,
) -> None:
    """Upload an adapter to the Hub, with a card. The token is that of `hf auth login` or HF_TOKEN."""
    silence_libraries()
    from peftly.runs import push as upload
    from peftly.utils import bytes_text

    pushed = upload(run, to, private=private, revision=revision, message=message, base=base, dry_run=dry_run)
    if dry_run:
        echo(pushed.card)
    width = max(map(len, pushed.files))
    for name, size in pushed.files.items():
        echo(f"  {name:<{width}}  {bytes_text(size)}")
    for note in pushed.notes:
        echo(note)
    echo(f"nothing was uploaded to {to} (--dry-run)" if dry_run else f"pushed to {pushed.url}")

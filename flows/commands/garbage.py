"""The command that makes room: what no run reaches any more, shown, and with --delete deleted."""

from typing import Annotated

import typer

from flows.commands.options import StoreUrl

PANEL = "Serve"


def add_to(app: typer.Typer) -> None:
    """Make this command part of `sppo`."""
    app.command("gc", rich_help_panel=PANEL)(collect_garbage)


def collect_garbage(
    store: StoreUrl,
    delete: Annotated[bool, typer.Option("--delete", help="Delete it; else it is only shown.")] = False,
    older_than: Annotated[
        str, typer.Option(metavar="DAYS", help="Only what was not written for so long: 7d, or hours, such as 36h.")
    ] = "7d",
    keep: Annotated[
        list[str] | None, typer.Option(metavar="STAGE/DIGITS", help="An artifact to keep, with all it was made from.")
    ] = None,
) -> None:
    """What no run, branch or publication reaches, and attempts that were given up. Nothing is deleted without --delete."""
    from flows.collection import show_garbage
    from flows.terminal import plain_console
    from sppo.store import Store

    show_garbage(plain_console(), Store(store), delete, older_than, keep or [])

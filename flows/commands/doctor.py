"""The command that says what is open or wrong on this machine before a run finds out."""

from typing import Annotated

import typer

PANEL = "Serve"


def add_to(app: typer.Typer) -> None:
    """Make this command part of `sppo`."""
    app.command("doctor", rich_help_panel=PANEL)(examine)


def examine(
    store: Annotated[
        str | None,
        typer.Option("--store", envvar="SPPO_STORE", help="To be tried out as well: a folder, or s3://bucket/prefix."),
    ] = None,
) -> None:
    """What is open or wrong here: server, store, scratch, credentials, versions, devices, limits. Exit status 1 if anything is
    wrong."""
    from flows.doctor import diagnose, show
    from flows.terminal import plain_console

    findings = diagnose(store)
    show(plain_console(), findings)
    if any(finding.state == "wrong" for finding in findings):
        raise typer.Exit(1)

"""The command that fetches what evaluation needs once: the rows of the Portuguese tasks."""

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Run"


def add_to(app: typer.Typer) -> None:
    """Make this command part of `sppo`."""
    app.command("fetch-tables", rich_help_panel=PANEL)(fetch_tables)


def fetch_tables(
    root: Annotated[str, typer.Argument(metavar="ROOT", help="Where they go: a folder, or s3://bucket/prefix.")],
    clones: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Clones of the datasets, OWNER/NAME below it, to read in place of the hub."),
    ] = None,
    revision: Annotated[
        str, typer.Option(help="Of every dataset on the hub; what it stands for now is written down.")
    ] = "main",
) -> None:
    """Copy the rows of the Open Portuguese LLM Leaderboard's nine tasks from the hub to where evaluations read them, once."""
    from flows.terminal import plain_console, watched
    from sppo.portuguese import tables
    from tasks.reporting import report

    console = plain_console()
    with watched(console):
        fetched = tables.fetch(root, clones=clones, revision=revision, report=report)
    files = fetched.manifest.files
    for key, file in files.items():
        console.print(f"{file.rows:6d} rows  {key}  of {file.revision[:12]}", markup=False, soft_wrap=True)
    rows = sum(file.rows for file in files.values())
    console.print(f"fetched  {len(files)} tables, {rows} rows -> {root}", markup=False, soft_wrap=True)
    console.print(f"recipe   evaluation.portuguese_tables: {root}", markup=False, soft_wrap=True)

"""The command that tells others of a policy: its model card, and with --push the policy itself."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.options import RunName, StoreUrl

PANEL = "Run"


def add_to(app: typer.Typer) -> None:
    """Make this command part of `sppo`."""
    app.command("card", rich_help_panel=PANEL)(write_card)


def write_card(
    run: RunName,
    store: StoreUrl,
    iteration: Annotated[
        int | None, typer.Option(min=1, help="Whose policy it is about; the last finished one, if none is given.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Where README.md goes; card-RUN-ITERATION.")] = None,
    repo: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="What the policy is, or will be, published as.")
    ] = None,
    scores: Annotated[
        list[str] | None, typer.Option("--scores", metavar="FILE|benchmark/DIGITS", help="More scores than the run's own.")
    ] = None,
    license_name: Annotated[str | None, typer.Option("--license", help="Such as gemma; that of a known base model.")] = None,
    base_model: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="On the hub; the recipe's.")] = None,
    language: Annotated[list[str] | None, typer.Option(help="ISO 639 code; may be given several times.")] = None,
    push: Annotated[bool, typer.Option("--push", help="Upload weights, tokenizer, card and evaluation in one commit.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Of a repository that --push makes; else it is private.")] = False,
) -> None:
    """Write the model card of a policy, README.md, from a run's artifacts. Nothing leaves this machine without --push."""
    import sppo.card
    from flows.terminal import plain_console
    from sppo.errors import CardError
    from sppo.runs import finished_iterations, read_iteration, read_recipe
    from sppo.store import Store

    if repo is not None:
        sppo.card.check_repo(repo)
    elif push:
        raise CardError("--push without --repo; expected the repository to upload to, such as --repo owner/name")
    token = sppo.card.token_of() if push else ""
    opened = Store(store)
    read_recipe(opened, run)
    number = iteration or max(1, len(finished_iterations(opened, run)))
    metadata = sppo.card.Metadata(license_name, base_model, languages=tuple(language or ()))
    more = [sppo.card.named_scores(opened, name) for name in scores or []]
    card = sppo.card.read_card(opened, run, number, repo, metadata, more)
    written = sppo.card.write_folder(card, output or Path(f"card-{run}-{number}"))
    console = plain_console()
    console.print(f"wrote    {written['README.md']}", markup=False, soft_wrap=True)
    if push and repo is not None:
        weights = sppo.card.weights_of(opened, read_iteration(opened, run, number)).folder()
        files = {file.name: weights / file.name for file in card.files} | written
        message = f"SPPO, iteration {number} of run {run}"
        console.print(f"pushed   {sppo.card.push(repo, files, message, token, public)}", markup=False, soft_wrap=True)

"""Commands about what runs depend on: the server and workers of this machine, the server's automations, the store's speed."""

from pathlib import Path
from typing import Annotated

import typer

from sppo.errors import LaunchError

PANEL = "Serve"
PROJECT = Path(__file__).resolve().parents[2]
stores = typer.Typer(help="Where artifacts are kept.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `sppo`."""
    for name, command in (("serve", start_serving), ("stop", stop_serving), ("automations", install_automations)):
        app.command(name, rich_help_panel=PANEL)(command)
    app.add_typer(stores, name="store", rich_help_panel=PANEL)


def start_serving(
    gpu_workers: Annotated[int, typer.Option(help="Of the pool gpu; they share the devices out equally.")] = 1,
    port: Annotated[int | None, typer.Option(help="Of the server; the first free one from 4200.")] = None,
    store: Annotated[
        str | None, typer.Option(envvar="SPPO_STORE", help="For the deployments; var/store, if none is given.")
    ] = None,
) -> None:
    """Start a Prefect server, work pools, deployments and workers on this machine, in the background."""
    from flows.serving import serve, show_served
    from flows.terminal import plain_console

    show_served(plain_console(), serve(PROJECT, gpu_workers, port, store))


def stop_serving() -> None:
    """End what `sppo serve` started, with the work that is under way. What was committed is kept."""
    from flows.serving import stop
    from flows.terminal import plain_console

    plain_console().print(f"{stop(PROJECT)} processes ended", markup=False)


def install_automations(
    notify: Annotated[
        str | None,
        typer.Option(metavar="TYPE/NAME", help="A notification block to send failures to, such as slack-webhook/team."),
    ] = None,
    resumes: Annotated[int, typer.Option(min=0, help="How often a run that lost its worker is resumed within a day.")] = 3,
) -> None:
    """Let the configured Prefect server resume runs whose worker was lost, up to a limit, and say so when one fails."""
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings

    from flows.automations import install
    from flows.terminal import plain_console

    if get_current_settings().api.url is None:
        raise LaunchError("no Prefect server is configured; set PREFECT_API_URL, or run `sppo serve`, which has automations")
    with get_client(sync_client=True) as client:
        for name in install(client, notify, resumes):
            plain_console().print(f"installed {name}", markup=False)


@stores.command("bench")
def measure_store(
    url: Annotated[str, typer.Argument(metavar="URL", help="A folder, or s3://bucket/prefix.")],
    quick: Annotated[bool, typer.Option("--quick", help="A sixteenth of the bytes.")] = False,
) -> None:
    """How fast a store is from here: a large file and many small ones, up and down, records and look-ups, all verified."""
    from flows.inspection import speed_table
    from flows.terminal import plain_console
    from sppo.store.speed import Load, measure

    load = Load(large_bytes=32 << 20, small_files=60, records=20, lookups=100) if quick else Load()
    plain_console().print(speed_table(url, measure(url, load)))

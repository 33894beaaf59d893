"""The command line, `sppo`. Each command imports what it needs when it runs: `sppo --help` answers at once."""

import sys

import typer

from flows.commands import card, doctor, garbage, looking, runs, services, tables
from sppo.errors import SppoError

app = typer.Typer(
    help="Self-Play Preference Optimization of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for commands in (runs, card, looking, garbage, services, tables, doctor):
    commands.add_to(app)


def main() -> None:
    """Entry point: an error of ours is its message and exit status 2, never a traceback."""
    try:
        app()
    except SppoError as error:
        sys.stderr.write(f"sppo: {error}\n")
        sys.exit(2)
    except OSError as error:
        from sppo.store.room import no_room

        told = no_room(error)
        if told is None:
            raise
        sys.stderr.write(f"sppo: {told}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()

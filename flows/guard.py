"""Ends what a process started as soon as that one has ended, however it ended: `python -m flows.guard WORD`.

For processes that another library starts, such as Prefect's temporary server, whose end the kernel cannot be asked to tie to
ours. They are known by a random word in their environment.
"""

import os
import secrets
import subprocess
import sys

from flows import background

MARK = "SPPO_GUARDED_BY"
GRACE_S = 10.0
"""Between SIGTERM and SIGKILL."""


def guard_children() -> None:
    """From now on, no process that this one starts outlives it."""
    word = secrets.token_hex(8)
    subprocess.Popen(
        [sys.executable, "-m", "flows.guard", word],
        stdin=subprocess.PIPE,  # the kernel closes it when we are gone
        start_new_session=True,  # Ctrl-C is not for it
    )
    os.environ[MARK] = word


def main() -> None:
    """Wait for the end of who started this."""
    sys.stdin.read()
    background.end(background.bearing(MARK, sys.argv[1]), GRACE_S)


if __name__ == "__main__":
    main()

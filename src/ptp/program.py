"""The programs `ptp` and `ptp-export`: streams and signals first, then the command line, which takes a moment."""

import sys
from collections.abc import Sequence

from ptp import console


def run(arguments: Sequence[str] | None = None) -> None:
    """Run `ptp` as a program of its own.

    Args:
        arguments: instead of the program's own.
    """
    console.set_up()
    try:
        from ptp.cli import main
    except KeyboardInterrupt as interruption:
        ended = isinstance(interruption, console.Terminated)
        print("error: ended by SIGTERM" if ended else "error: interrupted", file=sys.stderr)
        sys.exit(143 if ended else 130)
    main(arguments)


def run_export() -> None:
    """Run `ptp-export` as a program of its own."""
    run(["export", *sys.argv[1:]])

"""What a library raises in the middle of an export, as one line that says in which step, and nothing else of it."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ptp.errors import ExportError, PtpError, cause


@contextmanager
def one_line(step: Callable[[], str]) -> Iterator[None]:
    """Turn an exception of a library into an error of this package; the library's own is its cause.

    Args:
        step: returns what is being done.

    Raises:
        ExportError: the step, and the first line of what was raised.
    """
    try:
        yield
    except (PtpError, OSError):  # of a full disk and the like, with the file's name
        raise
    except Exception as error:
        failure = ExportError(f"{step()} failed", got=cause(error))
        for note in getattr(error, "__notes__", ()):  # such as how to go on
            failure.add_note(note)
        raise failure from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep warnings and log lines of libraries off the terminal: stderr is for the one line of an error."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)

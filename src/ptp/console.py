"""The terminal's side of the programs: encodings, warnings, signals, and what is printed for other programs."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

OBEYED = {
    code: None
    for code in (
        *range(0x20), *range(0x7F, 0xA0),  # C0 and C1
        0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # change the direction of what follows
        0x2028, 0x2029,  # lines and paragraphs of their own
    )
    if chr(code) not in "\n\t"
}  # fmt: skip
"""What a terminal would obey, for `str.translate`; joiners and wide spaces are text and stay."""


TRACEBACK = "PTP_TRACEBACK"
"""Environment variable: errors that nobody expected end in Python's traceback, and libraries may write to stderr."""


class Terminated(KeyboardInterrupt):
    """SIGTERM: the program ends as after Ctrl-C, with another exit status."""


def set_up() -> None:
    """Prepare a program's streams, warnings and signals."""
    for descriptor in range(3):  # of one that is closed, the next file that is opened would get the number
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if not os.environ.get(TRACEBACK):
        _silence_libraries()
    widen_streams()
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background does not get it
        signal.signal(signal.SIGINT, _end)


def _silence_libraries() -> None:
    """Keep what libraries warn of or write to stderr by themselves from a person, who sees errors as one line.

    Libraries in C and Rust write to the descriptor 2, whatever Python's `sys.stderr` is: this program's own lines go to
    a copy of it, and the descriptor itself to nowhere.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    if sys.stderr is None or sys.stderr.fileno() != 2:
        return
    own = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors=sys.stderr.errors)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    sys.stderr = own


def widen_streams() -> None:
    """Let stdout and stderr take every character, whatever their encoding, and be there."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed when the program was started
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):  # UTF-8, too: a file's name may hold what is no character
            stream.reconfigure(errors="backslashreplace")


def to_json(value: Any) -> str:
    """Return JSON that stdout's encoding can hold."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def shown(value: object) -> str:
    """Return a value as text without what a terminal would obey."""
    return str(value).translate(OBEYED)


def _end(number: int, frame: FrameType | None) -> None:
    # what is cleaned up now takes a moment: a further signal neither stops that nor changes the exit status
    for further in (signal.SIGINT, signal.SIGTERM):
        signal.signal(further, signal.SIG_IGN)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


@contextmanager
def going_on(folder: Path) -> Iterator[None]:
    """Say on an interruption that what a folder holds is not lost."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.add_note(f"{folder} holds what was done, and the same command goes on from there")
        raise

"""How much memory this process has had at most, and giving back what it no longer needs."""

import ctypes
import sys
from pathlib import Path

STATUS = Path("/proc/self/status")


def peak_bytes() -> int:
    """Return the largest resident size so far; 0 where the system has no `/proc`.

    Not getrusage: its figure begins with the memory of the process that started this one.
    """
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def give_back() -> None:
    """Return freed memory to the system, where the C library keeps it: glibc 2.8 GB after one image of a 7B model."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim:
        trim(0)

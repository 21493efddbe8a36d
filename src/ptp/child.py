"""Worker processes end when the process that started them does, however it ends."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""Of Linux's prctl: the signal that a process gets when its parent dies; it survives an exec."""


def end_with(parent: int) -> None:
    """Let this process be killed when its parent ends; called by a worker before it begins.

    Only Linux can do this. Elsewhere a worker whose parent was killed ends when its work is done.

    Args:
        parent: the process that started this one.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)

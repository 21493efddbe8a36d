"""A worker process ends when the process that started it does, however that ends."""

import os
import signal
import subprocess
import sys

import pytest

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=1)
sys.stdin.read()
"""
WORKER = """
import sys, threading
from ptp.child import end_with
end_with(int(sys.argv[1]))
print("ready", flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_ends_with_its_parent(how: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        parent.send_signal(how)
        # the worker holds the other end: it is closed when both are gone
        assert parent.stdout.read() == b""


def test_a_worker_whose_parent_is_gone_does_not_begin() -> None:
    done = subprocess.run([sys.executable, "-c", WORKER, str(os.getpid() + 1)], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")

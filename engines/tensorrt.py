"""Builds by TensorRT-RTX, on any machine, and by TensorRT, on the device, each in a process of its own."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ptp.bundle.engine import MODULES, EngineBackend
from ptp.engines.worker import REPEATABLE, Answer, Request
from ptp.errors import BuildError

LIBRARIES: dict[EngineBackend, str] = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}

ADVICE = (
    (r"K exceeds the maximum value allowed", "TensorRT's TopK gives at most 3840: export with a smaller --keep"),
    (r"out of memory|OutOfMemory|bad_alloc|[Ii]nsufficient (device )?memory|SIGKILL", "it needs more free memory"),
    (r"^exit status|^signal", "run it again on a machine with more free memory, or report the graph"),
    (r"has no (BuilderFlag|HardwareCompatibilityLevel)", "leave the option out or install a newer release"),
)
"""What to do about words of a builder, by pattern; the first that fits."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build gave: builder version, engine size in bytes, wall time in seconds, the builder's peak in bytes."""

    version: str
    engine_bytes: int
    seconds: float
    peak_bytes: int


def is_installed(backend: EngineBackend) -> bool:
    """Return whether the backend's Python package is there (extras `rtx` and `tensorrt`)."""
    return importlib.util.find_spec(MODULES[backend]) is not None


def try_build(graph: Path, ranges: Mapping[str, tuple[int, int, int]] | None = None) -> BuildReport:
    """Build an ONNX graph with TensorRT-RTX and throw the engine away.

    Args:
        graph: the graph's file.
        ranges: inputs of one integer that shapes depend on: its smallest, most frequent and largest value.

    Raises:
        BuildError: the parser or the builder refused the graph, or crashed; the message holds its own words.
    """
    profile = {name: [[value] for value in values] for name, values in (ranges or {}).items()}
    answer = run_builder("tensorrt-rtx", graph, profiles=[profile])
    return BuildReport(
        version=answer.version,
        engine_bytes=answer.engine_bytes,
        seconds=answer.seconds,
        peak_bytes=answer.peak_bytes,
    )


def run_builder(backend: EngineBackend, graph: Path, **request: Any) -> Answer:
    """Build an engine in a process of its own.

    Args:
        backend: the library; that it is installed was asked before.
        graph: the graph's file.
        request: further fields of `Request`.

    Raises:
        BuildError: the parser or the builder refused the graph, or crashed; the message holds its own words.
    """
    wanted = Request(module=MODULES[backend], graph=graph.name, **request)
    # full TensorRT times its tactics, so that no two builds are the same, and more threads are quicker
    arguments = [REPEATABLE] if backend == "tensorrt-rtx" else []
    done = subprocess.run(
        [sys.executable, "-P", "-m", "ptp.engines.worker", str(os.getpid()), *arguments],
        input=json.dumps(asdict(wanted)),
        cwd=graph.parent,
        env=os.environ | {"PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    answer = _last_object(done.stdout)
    if done.returncode == 0 and answer:
        return Answer(**answer)
    said = str(answer["error"]) if "error" in answer else _last_words(done)
    advice = next((do for pattern, do in ADVICE if re.search(pattern, said)), None)
    raise BuildError(f"{LIBRARIES[backend]} refused {graph.name}", got=said, do=advice)


def _last_object(output: str) -> dict[str, Any]:
    lines = output.splitlines()
    try:
        value = json.loads(lines[-1]) if lines else None
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Return how a worker ended that gave no answer."""
    status = done.returncode
    end = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return f"{end}: {lines[-1]}" if lines else end

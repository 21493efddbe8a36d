"""TensorRT-RTX: builds engines on any machine, with or without a GPU.

The builder runs in a process of its own (`python -m ptp.engines.tensorrt_rtx MODEL [RANGES]`): its memory is given back
when it ends, and a crash inside it is an error message here.
"""

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ptp.errors import BuildError

Range = tuple[int, int, int]
"""Smallest, most frequent and largest value."""


@dataclass(frozen=True, kw_only=True)
class BuildReport:
    """What a build gave: builder version, engine size in bytes, wall time in seconds."""

    version: str
    engine_bytes: int
    seconds: float


def is_installed() -> bool:
    """Return whether the `tensorrt-rtx` package is there (extra `rtx`)."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


def try_build(path: Path, ranges: Mapping[str, Range] | None = None) -> BuildReport:
    """Build an ONNX graph into an engine and throw the engine away.

    Args:
        path: the graph.
        ranges: inputs of one integer that shapes depend on, and the optimisation profile's values of them.

    Raises:
        BuildError: the parser or the builder refused the graph, or crashed; the message holds its own words.
    """
    command = [sys.executable, "-m", "ptp.engines.tensorrt_rtx", str(path), json.dumps(dict(ranges or {}))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    if done.returncode == 0 and lines:
        return BuildReport(**json.loads(lines[-1]))
    errors = [line for line in (done.stdout + done.stderr).splitlines() if "[E]" in line or "error:" in line.lower()]
    said = " ".join(errors[:3]) or f"exit status {done.returncode}"
    raise BuildError(f"TensorRT-RTX refused {path.name}", got=said)


def _build(path: str, ranges: Mapping[str, Range]) -> BuildReport:
    import tensorrt_rtx as trt

    start = time.perf_counter()
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(path):
        sys.exit("error: " + "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    if ranges:
        profile = builder.create_optimization_profile()
        for name, values in ranges.items():
            profile.set_shape_input(name, *([value] for value in values))
        if config.add_optimization_profile(profile) < 0:
            sys.exit(f"error: the optimisation profile {ranges} was refused")
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        sys.exit("error: the builder returned no engine")
    return BuildReport(version=trt.__version__, engine_bytes=engine.nbytes, seconds=time.perf_counter() - start)


if __name__ == "__main__":
    print(json.dumps(vars(_build(sys.argv[1], json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}))))

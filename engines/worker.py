"""The process that builds one engine: the only code that calls the builders of TensorRT and TensorRT-RTX.

`python -P -m ptp.engines.worker [--repeatable]` reads a `Request` as JSON from stdin and prints an `Answer`, or an
object with one key `error`, as the last line of stdout. Its memory is given back when it ends, and a crash of the
builder is an error message elsewhere. It runs in the graph's folder.

One code serves TensorRT-RTX 1.7 and TensorRT 10.3 to 11, whose bindings differ in little: flags are asked for by name,
since their numbers and their number change between versions.
"""

import contextlib
import ctypes
import importlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ptp.child import end_with
from ptp.peak_memory import peak_bytes

Tensor = tuple[str, str, list[int | str]]
"""Name, element type and shape; a dimension that the graph leaves open is text, or −1 as the builder has it."""

Bounds = Sequence[Sequence[int]]
"""Smallest, most frequent and largest shape, or values of an input of shapes."""

DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool"}
"""The manifest's names for the builders' types."""

REPEATABLE = "--repeatable"
"""Argument: give the same bytes in every build, where the builder can."""

ADDR_NO_RANDOMIZE = 0x0040000
"""`personality(2)`: the program's addresses are the same in every run."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to build.

    Attributes:
        module: `tensorrt_rtx` or `tensorrt`.
        graph: file name of the ONNX graph in the working folder.
        engine: file to write the engine to; None throws it away.
        inputs: what the network's inputs must be; None compares neither inputs nor outputs.
        outputs: likewise.
        profiles: bounds of the inputs that are not fixed, one mapping for each optimisation profile.
        compute_capability: a name of `ComputeCapability`, such as SM86; None builds for this machine's GPU.
        workspace_bytes: most scratch memory of one tactic; None leaves it to the builder.
        flags: names of `BuilderFlag` to set.
        hardware_compatibility: a name of `HardwareCompatibilityLevel`.
        timing_cache: file that holds the tactics' times, used and written; None for no cache.
    """

    module: str
    graph: str
    engine: str | None = None
    inputs: Sequence[Tensor] | None = None
    outputs: Sequence[Tensor] = ()
    profiles: Sequence[Mapping[str, Bounds]] = ()
    compute_capability: str | None = None
    workspace_bytes: int | None = None
    flags: Sequence[str] = ()
    hardware_compatibility: str | None = None
    timing_cache: str | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was built.

    Attributes:
        version: of the library.
        settings: every setting that is not the builder's default, by name.
        inputs: of the network, in its order.
        outputs: likewise.
        engine_bytes: size of the engine.
        seconds: wall time from reading the graph to the engine.
        peak_bytes: largest resident memory of this process; 0 where the system does not tell.
    """

    version: str
    settings: dict[str, bool | int | str]
    inputs: list[Tensor]
    outputs: list[Tensor]
    engine_bytes: int
    seconds: float
    peak_bytes: int


class RefusedError(Exception):
    """The builder's own words, or ours, why there is no engine."""


def build(request: Request) -> Answer:
    """Build an engine.

    Raises:
        RefusedError: the library is too old for the request, or it refused the graph.
    """
    trt = importlib.import_module(request.module)
    return _Build(trt, request).run()


@dataclass
class _Build:
    """One build by one of the two libraries; what it sets is noted in `settings`."""

    trt: Any
    request: Request
    settings: dict[str, bool | int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.log = _make_log(self.trt)
        self.builder = self.trt.Builder(self.log)

    def run(self) -> Answer:
        start = time.perf_counter()
        network = self._parse()
        inputs = [self._describe(network.get_input(i)) for i in range(network.num_inputs)]
        outputs = [self._describe(network.get_output(i)) for i in range(network.num_outputs)]
        if self.request.inputs is not None:
            problems = [*differences("input", inputs, self.request.inputs)]
            problems += differences("output", outputs, self.request.outputs)
            if problems:
                raise RefusedError(f"the graph is not what the manifest says: {', '.join(problems[:4])}")
        config = self._configure(inputs)
        engine = self.builder.build_serialized_network(network, config)
        if engine is None:
            raise RefusedError(self.log.text() or "the builder returned no engine and no reason")
        if self.request.engine is not None:
            with open(self.request.engine, "wb") as file:
                file.write(engine)
                file.flush()
                os.fsync(file.fileno())
        self._keep_timings(config)
        return Answer(
            version=self.trt.__version__,
            settings=self.settings,
            inputs=inputs,
            outputs=outputs,
            engine_bytes=engine.nbytes,
            seconds=time.perf_counter() - start,
            peak_bytes=peak_bytes(),
        )

    def _parse(self) -> Any:
        """Read the graph. Without the flag, TensorRT 11 makes strongly typed networks, and no others."""
        flags, strongly_typed = 0, getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        if strongly_typed is not None:
            flags |= 1 << int(strongly_typed)
            self.settings["STRONGLY_TYPED"] = True
        network = self.builder.create_network(flags)
        parser = self.trt.OnnxParser(network, self.log)
        if not parser.parse_from_file(self.request.graph):
            words = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
            raise RefusedError(words or self.log.text() or "the parser gave no reason")
        self._parser = parser  # the network refers to weights that it holds
        return network

    def _configure(self, inputs: Sequence[Tensor]) -> Any:
        trt, request = self.trt, self.request
        config = self.builder.create_builder_config()
        # ten bits of mantissa would choose other tokens than the float32 graph that was checked
        config.clear_flag(trt.BuilderFlag.TF32)
        self.settings["TF32"] = False
        for name in request.flags:
            config.set_flag(self._named("BuilderFlag", name))
            self.settings[name] = True
        if request.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
            self.settings["WORKSPACE"] = request.workspace_bytes
        if request.hardware_compatibility is not None:
            level = self._named("HardwareCompatibilityLevel", request.hardware_compatibility)
            config.hardware_compatibility_level = level
            self.settings["HARDWARE_COMPATIBILITY"] = request.hardware_compatibility
        if request.compute_capability is not None:
            capability = self._named("ComputeCapability", request.compute_capability)
            config.num_compute_capabilities = 1
            if not config.set_compute_capability(capability, 0):
                raise RefusedError(self.log.text() or f"{request.compute_capability} was refused")
            self.settings["COMPUTE_CAPABILITY"] = request.compute_capability
        if request.timing_cache is not None:
            known = None
            with contextlib.suppress(OSError, RuntimeError):  # it only saves work: a damaged one costs a second timing
                known = config.create_timing_cache(Path(request.timing_cache).read_bytes())
            # one of another device is refused, and timing begins anew
            if known is None or not config.set_timing_cache(known, ignore_mismatch=False):
                config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
        fixed = {name for name, _, shape in inputs if -1 not in shape}
        for number, bounds in enumerate(request.profiles):
            profile = self.builder.create_optimization_profile()
            for name, values in bounds.items():
                (profile.set_shape_input if name in fixed else profile.set_shape)(name, *map(tuple, values))
            if bounds and config.add_optimization_profile(profile) < 0:
                raise RefusedError(f"optimisation profile {number} was refused: {self.log.text()}")
        return config

    def _keep_timings(self, config: Any) -> None:
        if self.request.timing_cache is None:
            return
        path = Path(self.request.timing_cache)
        with contextlib.suppress(OSError):  # the engine is there already
            path.parent.mkdir(parents=True, exist_ok=True)
            stage = path.with_name(f"{path.name}.{os.getpid()}")
            stage.write_bytes(memoryview(config.get_timing_cache().serialize()))
            stage.replace(path)

    def _named(self, group: str, name: str) -> Any:
        member = getattr(getattr(self.trt, group, None), name, None)
        if member is None:
            raise RefusedError(f"{self.request.module} {self.trt.__version__} has no {group} {name}")
        return member

    def _describe(self, tensor: Any) -> Tensor:
        kind = tensor.dtype.name
        return tensor.name, DTYPES.get(kind, kind), [*tensor.shape]


def differences(kind: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> Iterator[str]:
    """Say where a network's inputs or outputs are not the expected ones; a dimension that it leaves open fits all."""
    wanted = {name: (dtype, shape) for name, dtype, shape in expected}
    there = {name: (dtype, shape) for name, dtype, shape in found}
    yield from (f"no {kind} {name}" for name in wanted if name not in there)
    yield from (f"unknown {kind} {name}" for name in there if name not in wanted)
    for name in wanted.keys() & there.keys():
        (dtype, shape), (wanted_dtype, wanted_shape) = there[name], wanted[name]
        fits = len(shape) == len(wanted_shape) and all(
            size in (-1, other) or isinstance(other, str) for size, other in zip(shape, wanted_shape, strict=True)
        )
        if dtype != wanted_dtype or not fits:
            yield f"{kind} {name} is {dtype} {shape} instead of {wanted_dtype} {[*wanted_shape]}"


def _make_log(trt: Any) -> Any:
    """Return a logger that keeps the errors; its base class is the library's."""
    serious = {trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR}

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.errors.append(message)

        def text(self) -> str:
            # on a machine without a GPU each error brings one about the driver along
            telling = [line for line in self.errors if "Cuda Runtime" not in line]
            return "; ".join((telling or self.errors)[:3])

    return Log()


def _start_again_repeatably() -> None:
    """Start this process again at fixed addresses and on one CPU.

    TensorRT-RTX orders by address, and its threads, as many as there are CPUs, race for memory; else the engines of two
    builds differ in some bytes. Where the system refuses, they do.
    """
    if sys.platform == "linux" and ctypes.CDLL(None).personality(ADDR_NO_RANDOMIZE) >= 0:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
        os.execv(sys.executable, [word for word in sys.orig_argv if word != REPEATABLE])


def main() -> None:
    """Serve one request of the process whose number is the first argument."""
    end_with(int(sys.argv[1]))
    if REPEATABLE in sys.argv:
        _start_again_repeatably()
    try:
        print(json.dumps(asdict(build(Request(**json.load(sys.stdin))))), flush=True)
    except (RefusedError, OSError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main()

"""One graph of a bundle: traced, linted and written, and how long that took."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ptp.bundle.manifest import GraphSpec
from ptp.export.config import ExportConfig
from ptp.export.lint import lint
from ptp.export.passes import QuantizeWeights, ShareWeights
from ptp.export.plan import Plan
from ptp.export.specs import GraphIO
from ptp.export.to_onnx import save, trace
from ptp.export.weights import Skeleton

Progress = Callable[[str, int | None, int | None], None]
"""Called with what is being done, and how much of it is done where that is known."""

SUFFIX = {"fp32": "", "fp16": "_fp16"}
DECODER_SUFFIX = {
    ("fp32", "int4"): "_q4",
    ("fp16", "int4"): "_q4f16",
    ("fp32", "int8"): "_int8",
    ("fp16", "int8"): "_int8f16",
}
"""File name endings of transformers.js, and `_int8f16`, for which it has none."""


class Clock:
    """How long each kind of step took, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add the time of what is done inside to a step."""
        started = time.perf_counter()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.perf_counter() - started


@dataclass(frozen=True, kw_only=True)
class GraphWriter:
    """Writes the graphs of one export.

    Attributes:
        plan: what is being exported.
        skeleton: the model that the traced modules hold parts of.
        stage: the bundle's folder.
        say: told of every step.
        clock: told how long it took.
    """

    plan: Plan
    skeleton: Skeleton
    stage: Path
    say: Progress
    clock: Clock

    def write(
        self,
        module: nn.Module,
        io: GraphIO,
        name: str,
        *,
        static: bool = False,
        stock: bool = True,
        beside: Path | None = None,
    ) -> GraphSpec:
        """Trace, lint and write one graph, if that is not done yet.

        Args:
            module: what is traced.
            io: its inputs and outputs.
            name: of the file, without its ending.
            static: whether no dimension may be open.
            stock: whether it is in the operators that every backend takes, and linted.
            beside: another graph's file, whose weights are referred to and not written again.
        """
        config = self.plan.config
        spec = GraphSpec(file=graph_file(name, config), inputs=io.inputs, outputs=io.outputs)
        if (self.stage / spec.file).exists():
            return spec
        self.say(f"tracing {name}", None, None)
        with self.clock("tracing"):
            model = trace(module, io, opset=config.opset, initializers=self.skeleton.initializers(module))
            if config.quantization:
                QuantizeWeights(config.quantization)(model)
            if stock:
                lint(model, name, static=static)
        self.say(f"writing {name}", None, None)
        with self.clock("writing"):
            if beside is not None:
                ShareWeights(beside)(model)
            save(model, self.stage / spec.file, lambda done, of: self.say(f"writing {name}, bytes", done, of))
        return spec


def graph_file(name: str, config: ExportConfig) -> str:
    """Return a graph's path in the bundle."""
    suffix = SUFFIX[config.precision]
    if config.quantize and name.startswith("decoder"):
        suffix = DECODER_SUFFIX[config.precision, config.quantize]
    return f"onnx/{name}{suffix}.onnx"

"""Write the contract's dimension names over those that the tracer invented."""

from collections.abc import Sequence

import onnx_ir as ir

from ptp.bundle.manifest import TensorSpec


class ApplyContract(ir.passes.InPlacePass):
    """Rename dynamic dimensions of inputs and outputs; numbers are left for the contract's check.

    A dimension inside the graph that has the same symbol as a renamed one gets its name too; others keep theirs.

    Args:
        inputs: the contract's inputs.
        outputs: the contract's outputs.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return whether a dimension was renamed."""
        names: dict[str, str] = {}
        for values, specs in ((model.graph.inputs, self.inputs), (model.graph.outputs, self.outputs)):
            for value, spec in zip(values, specs, strict=False):
                if value.shape is None or len(value.shape) != len(spec.shape):
                    continue
                for axis, size in enumerate(spec.shape):
                    found = value.shape[axis]
                    if isinstance(size, str) and isinstance(found, ir.SymbolicDim) and found.value != size:
                        value.shape[axis] = size
                        names[str(found.value)] = size
        for value in (value for node in model.graph for value in node.outputs if value.shape is not None):
            for axis, found in enumerate(value.shape or ()):
                if isinstance(found, ir.SymbolicDim) and found.value in names and value.shape is not None:
                    value.shape[axis] = names[found.value]
        return ir.passes.PassResult(model, modified=bool(names))

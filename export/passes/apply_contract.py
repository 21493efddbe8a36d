"""Write the contract's dimension names over those that the tracer invented."""

from collections.abc import Sequence

import onnx_ir as ir

from ptp.bundle.manifest import TensorSpec


class ApplyContract(ir.passes.InPlacePass):
    """Rename dynamic dimensions of inputs and outputs; numbers are left for the contract's check.

    Where the contract has one dynamic dimension alone, every dynamic dimension inside the graph is that one.

    Args:
        inputs: the contract's inputs.
        outputs: the contract's outputs.
    """

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.inputs, self.outputs = inputs, outputs

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return whether a dimension was renamed."""
        modified = False
        for values, specs in ((model.graph.inputs, self.inputs), (model.graph.outputs, self.outputs)):
            for value, spec in zip(values, specs, strict=False):
                if value.shape is None or len(value.shape) != len(spec.shape):
                    continue
                for axis, size in enumerate(spec.shape):
                    found = value.shape[axis]
                    if isinstance(size, str) and isinstance(found, ir.SymbolicDim) and found.value != size:
                        value.shape[axis] = size
                        modified = True
        names = {size for spec in (*self.inputs, *self.outputs) for size in spec.shape if isinstance(size, str)}
        if len(names) == 1:
            modified |= self._name_inside(model, *names)
        return ir.passes.PassResult(model, modified=modified)

    @staticmethod
    def _name_inside(model: ir.Model, name: str) -> bool:
        modified = False
        for value in (value for node in model.graph for value in node.outputs if value.shape is not None):
            for axis, size in enumerate(value.shape or ()):
                if isinstance(size, ir.SymbolicDim) and size.value != name and value.shape is not None:
                    value.shape[axis] = name
                    modified = True
        return modified

"""Take the probes off the outputs; they stay in the graph as named inner values."""

import onnx_ir as ir


class HideProbes(ir.passes.InPlacePass):
    """Remove the last outputs of a graph, keeping the values that the remaining outputs are computed from.

    Args:
        count: how many outputs to hide.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Return whether an output was hidden."""
        for _ in range(self.count):
            model.graph.outputs.pop()
        return ir.passes.PassResult(model, modified=self.count > 0)

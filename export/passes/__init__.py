"""Edits of a traced graph; one small class each, in its own file."""

import onnx_ir as ir
import onnx_ir.passes.common as common

from ptp.export.passes.apply_contract import ApplyContract
from ptp.export.passes.hide_probes import HideProbes
from ptp.export.passes.quantize_weights import QuantizeWeights
from ptp.export.passes.share_weights import ShareWeights, shared_bytes
from ptp.export.passes.transpose_weights import TransposeWeights
from ptp.export.specs import GraphIO


def finish(model: ir.Model, io: GraphIO) -> None:
    """Bring a freshly traced model into its contract, in place."""
    ir.passes.Sequential(
        HideProbes(len(io.probes)),
        ApplyContract(io.inputs, io.outputs),
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
        common.ClearMetadataAndDocStringPass(),
    )(model)


__all__ = [
    "ApplyContract",
    "HideProbes",
    "QuantizeWeights",
    "ShareWeights",
    "TransposeWeights",
    "finish",
    "shared_bytes",
]

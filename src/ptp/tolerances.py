"""How far computed values may be from their oracle: the one table, with the reason for each number.

FEATURES bounds |found − oracle| / |oracle| of each row, in Euclidean length (`row_difference`); SCORES and LOGITS bound
max |found − oracle| / max |oracle| (`value_difference`); MOVED bounds the share of an image's kept tokens that may be
other ones. The export's gates read the column of the export's precision, `ptp verify` that of the backend's arithmetic.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Arithmetic = Literal["fp32", "tf32", "fp16", "bf16"]
"""How products are rounded. TF32, which GPUs take for float32 graphs unless told otherwise, has float16's 11 bits."""

Array = NDArray[Any]

EXACT_SESSION = {
    # products with quantised weights in float32: the default rounds their activations to 8 bits, 5e-3 per product
    "session.qdq_matmulnbits_accuracy_level": "1",
    # float32 products stay float32 on Arm processors that have bfloat16's instructions
    "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",
}
"""Settings of an ONNX Runtime session, without which the processor decides how products are rounded."""

FEATURES: dict[Arithmetic, float] = {
    # two libraries sum the same float32 products in another order: about 1e-6 per block, at most 24 blocks deep
    "fp32": 1e-4,
    # float16 has 11 bits: 5e-4 per rounding, and ONNX Runtime on the CPU rounds at other places than torch
    "tf32": 3e-2,
    "fp16": 3e-2,
    # 8 bits: 4e-3 per rounding. OpenVINO on the demo's 5 blocks: 1.3e-2
    "bf16": 1e-1,
}
SCORES: dict[Arithmetic, float] = {
    # computed in float32 from features that differ as above; softmax over 1e2..1e3 keys keeps relative errors small
    "fp32": 1e-4,
    # a softmax turns an absolute error of its float16 inputs into a relative error of its outputs
    "tf32": 6e-2,
    "fp16": 6e-2,
    # the same with the error of features in 8 bits
    "bf16": 2e-1,
}
LOGITS: dict[Arithmetic, float] = {
    # the decoder alone, fed with recorded rows: 1e-6 on the demo's 4 blocks, and errors of 32 blocks add up
    "fp32": 1e-4,
    # 2e-3 on the demo in FP16, by ONNX Runtime and by OpenVINO; three times that for eight times the blocks
    "tf32": 2e-2,
    "fp16": 2e-2,
    # 6e-3 on the demo by OpenVINO, and the same again
    "bf16": 5e-2,
}
MOVED: dict[Arithmetic, float] = {
    # vectors are recorded on images whose choice an error of SCORES does not change
    "fp32": 0.0,
    # tokens whose scores lie within the error of the score at the cut change places, and how many do is the model's: 39
    # of 278 on the demo, whose CLS looks past whatever is not vivid, so that most of a tile has nearly one score; none
    # on the demo before it, whose CLS looked at everything. Features and logits say whether the graph is right
    "tf32": 0.2,
    "fp16": 0.2,
    # the same with an error of three times the size; not measured on this demo
    "bf16": 0.4,
}


def ask_exact(options: Any) -> None:
    """Ask an `onnxruntime.SessionOptions` for the same arithmetic on every processor."""
    for setting in EXACT_SESSION.items():
        options.add_session_config_entry(*setting)


def value_difference(found: Array, expected: Array) -> float:
    """Return max |found − expected| / max |expected|; infinite if anything is not finite or shapes differ."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    largest = float(np.abs(found - expected).max(initial=0))
    return largest / max(float(np.abs(expected).max(initial=0)), 1e-30) if largest else 0.0


def row_difference(found: Array, expected: Array) -> float:
    """Return the largest |found − expected| / |expected| over rows (Euclidean), so that no row hides behind another."""
    if found.shape != expected.shape or not np.isfinite(found).all():
        return float("inf")
    lengths = np.linalg.norm(expected, axis=-1)
    lengths = np.maximum(lengths, 1e-3 * lengths.max(initial=1e-30))
    return float((np.linalg.norm(found - expected, axis=-1) / lengths).max(initial=0))

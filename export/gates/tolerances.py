"""How far a graph may be from its oracle: the one table, with the reason for each number.

FEATURES bounds |graph − oracle| / |oracle| of each row, in Euclidean length; SCORES bounds max |graph − oracle| divided
by max |oracle|.
"""

from ptp.bundle.manifest import Precision

FEATURES: dict[Precision, float] = {
    # two libraries sum the same float32 products in another order: about 1e-6 per block, at most 24 blocks deep
    "fp32": 1e-4,
    # float16 has 11 bits: 5e-4 per rounding, and ONNX Runtime on the CPU rounds at other places than torch
    "fp16": 3e-2,
}
SCORES: dict[Precision, float] = {
    # computed in float32 from features that differ as above; softmax over 1e2..1e3 keys keeps relative errors small
    "fp32": 1e-4,
    # a softmax turns an absolute error of its float16 inputs into a relative error of its outputs
    "fp16": 6e-2,
}

"""Weight-only quantisation of a matrix, in the one form that ONNX Runtime and every TensorRT from 10.3 on take.

Symmetric, in blocks along the input: weight[k, n] ≈ codes[k, n] · scales[k // block, n], zero point 0, scales positive.
It is ten lines of numpy here, for these reasons. ONNX Runtime's kernel behind `matmul_nbits_quantizer`
(`quantize_qdq_matmul_4bits`) gives scales of both signs, which not every parser of TensorRT takes, and there is none
for INT8. Its vendored `quant_tensor` gives this form, in float64, which is slow where each value of a large model is
quantised whenever it is read. nvidia-modelopt's ONNX side pins onnx 1.21 and edits whole models. torchao's import loads
libraries that fail with torch 2.13, and warns of it.

Scales are rounded to bfloat16's 8 bits. A code of 4 bits times a scale is then exact in float16 and in float32, so that
every runtime dequantises to the same bits; and what was dequantised is quantised to the same codes and scales again.
"""

import re
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray

from ptp.bundle.manifest import Quantization, WeightType
from ptp.export.weights import Weights

Array = NDArray[Any]

BITS: dict[WeightType, int] = {"int4": 4, "int8": 8}
HEAD = re.compile(r"(^|\.)lm_head\.weight(\.|$)")
BLOCKS = re.compile(r"(^|\.)(language_model\.layers|early_blocks)\..+_proj\.weight(\.|$)")


def weight_type(name: str, quantization: Quantization) -> WeightType | None:
    """Return what a parameter is stored as, None for as it is.

    Args:
        name: of the parameter in transformers' model, or in a graph that holds parts of it.
        quantization: what was asked for.
    """
    if HEAD.search(name):
        return quantization.lm_head
    return quantization.weights if BLOCKS.search(name) else None


def quantize(weight: Array, bits: int, block_size: int) -> tuple[Array, Array]:
    """Return the codes (K, N) int8 and scales (K / block_size, N), of the weight's type, of a matrix.

    Args:
        weight: (K, N) float32 or float16, K its input.
        bits: 4 or 8, of a code.
        block_size: a divisor of K.
    """
    low, high = -(1 << bits - 1), (1 << bits - 1) - 1
    blocks = weight.astype(np.float32).reshape(-1, block_size, weight.shape[1])  # (K / block, block, N)
    scales = np.maximum(blocks.min(axis=1) / low, blocks.max(axis=1) / high)  # nothing is clipped
    scales = scales.astype(ml_dtypes.bfloat16).astype(weight.dtype)
    scales[scales == 0] = 1  # of a block of zeros: TensorRT wants positive ones
    codes = np.rint(blocks / scales[:, None].astype(np.float32)).clip(low, high).astype(np.int8)
    return codes.reshape(weight.shape), scales


def dequantize(codes: Array, scales: Array) -> Array:
    """Return the matrix (K, N) that DequantizeLinear makes of codes (K, N) and scales (K / block, N)."""
    blocks = codes.reshape(len(scales), -1, codes.shape[1]).astype(np.float32) * scales[:, None].astype(np.float32)
    return blocks.reshape(codes.shape).astype(scales.dtype)


def rounded(weight: torch.Tensor, dtype: WeightType, block_size: int) -> torch.Tensor:
    """Return a parameter (N, K) with the values that it has once it was quantised."""
    turned = weight.detach().numpy().T  # (K, N), as the graphs have it
    values = dequantize(*quantize(turned, BITS[dtype], block_size)).T
    return torch.from_numpy(np.ascontiguousarray(values))  # (N, K)


class QuantizedWeights(Weights):
    """Weights with the values that they have once they were quantised; each is, whenever it is read.

    Args:
        weights: as they were.
        quantization: what is quantised, and how.
    """

    keep_ties = False  # a head that is tied to the token embedding is quantised, and the embedding is not

    def __init__(self, weights: Weights, quantization: Quantization) -> None:
        super().__init__(weights.places, weights.dtype, weights.untied)
        self.quantization = quantization

    def __getitem__(self, name: str) -> torch.Tensor:
        tensor, dtype = super().__getitem__(name), weight_type(name, self.quantization)
        return rounded(tensor, dtype, self.quantization.block_size) if dtype else tensor


def quantized_bytes(shape: tuple[int, int], dtype: WeightType, block_size: int, scale_bytes: int) -> int:
    """Return the bytes of a matrix's codes and scales.

    Args:
        shape: of the matrix, either way round.
        dtype: of its codes.
        block_size: how many of them share a scale.
        scale_bytes: of one scale.
    """
    count = shape[0] * shape[1]
    return count * BITS[dtype] // 8 + count // block_size * scale_bytes

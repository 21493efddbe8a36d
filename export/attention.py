"""How the decoder's graphs compute attention, in the form in which transformers' models call it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

GROUPED, FUSED = "ptp_grouped", "ptp_fused"
"""Names that transformers knows the two functions below by."""

HEAD_DIM_MULTIPLE = 8
"""What the size of a head is divisible by in GroupQueryAttention (ONNX Runtime, `group_query_attention_helper.h`)."""


@dataclass(frozen=True, kw_only=True)
class FusedCache:
    """Key/value cache of one trace with fused attention.

    Attributes:
        past: key and value of each layer, (1, kv heads, cache_length, d), of which the first rows are filled.
        last: (1,) int32, index of the last row once the new tokens are in.
        total: (1,) int32, rows once the new tokens are in.
        present: what the layers traced so far return, in the form of `past`.
    """

    past: tuple[Tensor, ...]
    last: Tensor
    total: Tensor
    present: list[Tensor] = field(default_factory=list)


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend in stock operators, without a copy of keys and values for each of the query heads that share them.

    Args:
        module: the attention layer.
        query: (B, heads, S, d).
        key: (B, kv heads, T, d).
        value: (B, kv heads, T, d).
        attention_mask: (B, 1, S, T), additive.
        scaling: what scores are multiplied with.

    Returns:
        (B, S, heads, d), and no weights.
    """
    batch, heads, new, dim = query.shape
    kv_heads, total = key.shape[1:3]
    group = heads // kv_heads
    query = query * scaling
    if group == 1:
        scores = torch.matmul(query, key.transpose(2, 3)) + attention_mask  # (B, heads, S, T)
        mixed = torch.matmul(scores.softmax(dim=-1), value)
        return mixed.transpose(1, 2), None
    rows = query.reshape(batch, kv_heads, group * new, dim)
    scores = torch.matmul(rows, key.transpose(2, 3)).reshape(batch, kv_heads, group, new, total)
    weights = (scores + attention_mask[:, :, None]).softmax(dim=-1)
    mixed = torch.matmul(weights.reshape(batch, kv_heads, group * new, total), value)  # (B, kv heads, group · S, d)
    return mixed.reshape(batch, heads, new, dim).transpose(1, 2), None


def fused_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    fused_cache: FusedCache,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attend in one operator of ONNX Runtime, which also writes the new keys and values into the cache.

    The rotary embedding is applied before, since positions may have gaps and the operator counts them up. Its contract:
    https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md#com.microsoft.GroupQueryAttention

    Args:
        module: the attention layer.
        query: (1, heads, S, d).
        key: (1, kv heads, S, d) of the new tokens.
        value: (1, kv heads, S, d) of the new tokens.
        attention_mask: none; the operator is causal.
        scaling: what scores are multiplied with.
        fused_cache: keys and values of the tokens before.
        sliding_window: tokens that a query looks back at, itself included.

    Returns:
        (1, S, heads · d), and no weights.
    """
    (batch, heads, new, dim), kv_heads = query.shape, key.shape[1]
    past = fused_cache.past[2 * module.layer_idx : 2 * module.layer_idx + 2]
    rows = [x.transpose(1, 2).reshape(batch, new, -1) for x in (query, key, value)]  # (1, S, heads · d)
    mixed, *present = torch.onnx.ops.symbolic_multi_out(
        "com.microsoft::GroupQueryAttention",
        [*rows, *past, fused_cache.last, fused_cache.total],
        {
            "num_heads": heads,
            "kv_num_heads": kv_heads,
            "scale": float(scaling),
            "local_window_size": sliding_window or -1,
        },
        dtypes=[query.dtype] * 3,
        shapes=[(batch, new, heads * dim), past[0].shape, past[1].shape],
        version=1,
    )
    fused_cache.present.extend(present)
    return mixed, None


AttentionInterface.register(GROUPED, grouped_attention)
AttentionInterface.register(FUSED, fused_attention)


@contextmanager
def attending(language_model: Any, name: str) -> Iterator[None]:
    """Let a language model compute attention by the function of a name, and as before afterwards."""
    before = language_model.config._attn_implementation
    language_model.set_attn_implementation(name)
    try:
        yield
    finally:
        language_model.set_attn_implementation(before)

"""Token saliency, the bottom-up signal inside a tile: which patch does CLS attend to?"""

import torch
from torch import Tensor

EPSILON = 1e-6
"""Smallest norm that is divided by: far below any trained embedding's, and representable with room in float32."""

MASKED = -1e30
"""Stands for −∞ in float32 scores: far below any score, and no NaN when everything is masked."""


def cls_attention(query: Tensor, keys: Tensor) -> Tensor:
    """Return the attention of CLS over the patches, mean over heads: token saliency b.

    Only the CLS row of the attention is computed, in float32. The softmax is over all keys, CLS among them; the CLS
    column is then dropped (arXiv 2509.15704, token saliency; CLS attention of a middle layer).

    Args:
        query: (…, heads, 1, d), scaled query of the CLS token.
        keys: (…, heads, 1 + N, d), CLS first.

    Returns:
        (…, N) float32, between 0 and 1.
    """
    scores = torch.matmul(query.float(), keys.float().transpose(-1, -2))  # (…, heads, 1, 1 + N)
    return torch.softmax(scores, dim=-1).squeeze(-2).mean(dim=-2)[..., 1:]  # (…, N)


def normalised(x: Tensor) -> Tensor:
    """Return vectors (…, C) scaled to length 1, in float32; shorter ones than EPSILON stay shorter than 1."""
    x = x.float()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > EPSILON, norm, EPSILON)

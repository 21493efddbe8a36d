"""Bottom-up signals: which patch of a tile is salient (CLS attention), which crop of an image is (CLS similarity)."""

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


def region_weights(cls: Tensor, crop_valid: Tensor, temperature: float) -> Tensor:
    """Return the share of the crops' budget that each crop deserves: region saliency w.

    w = softmax(cos(z_t, z_0) / τ) over the valid crops, z the CLS embedding of the feature layer.

    Args:
        cls: (B, T, C) CLS embeddings, tile 0 the thumbnail.
        crop_valid: (B, T − 1) bool, the crop has at least one real token.
        temperature: τ > 0.

    Returns:
        (B, T − 1) float32, 0 where not valid.
    """
    cls = normalised(cls)
    cosine = (cls[:, 1:] * cls[:, :1]).sum(dim=-1)  # (B, T − 1)
    weights = torch.softmax(torch.where(crop_valid, cosine / temperature, MASKED), dim=-1)
    return torch.where(crop_valid, weights, 0.0)

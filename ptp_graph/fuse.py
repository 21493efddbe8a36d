"""Fusion of the bottom-up and the top-down signal: s = (1 − α)·minmax_tile(b) + α·minmax_image(c)."""

import torch
from torch import Tensor

LARGEST = torch.finfo(torch.float32).max


def minmax(scores: Tensor, valid: Tensor) -> Tensor:
    """Scale scores to 0..1 over the valid entries of the last axis; 0 where all are equal or none is valid.

    Args:
        scores: (…, n) float32.
        valid: (…, n) bool.
    """
    low = torch.where(valid, scores, LARGEST).amin(dim=-1, keepdim=True)
    high = torch.where(valid, scores, -LARGEST).amax(dim=-1, keepdim=True)
    return torch.where(valid & (high > low), (scores - low) / torch.where(high > low, high - low, 1.0), 0.0)


def fuse(saliency: Tensor, relevance: Tensor, alpha: Tensor, valid: Tensor) -> Tensor:
    """Return the score that decides which tokens of a tile are kept (arXiv 2509.15704; the scaling is ours).

    Args:
        saliency: (B, T, N) float32.
        relevance: (B, T, N) float32.
        alpha: (1,) float32, weight of the relevance, 0 to 1.
        valid: (B, T, N) bool.

    Returns:
        (B, T, N) float32 in 0..1.
    """
    bottom_up = minmax(saliency, valid)
    top_down = minmax(relevance.flatten(1), valid.flatten(1)).reshape(valid.shape)  # over the image: (B, T·N)
    return (1.0 - alpha) * bottom_up + alpha * top_down

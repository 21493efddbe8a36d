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


def peakedness(scaled: Tensor, valid: Tensor) -> Tensor:
    """Return how few tokens hold a score: 1 − (Σx)² / (n·Σx²), 0 for equal scores, 1 − 1/n for a single peak.

    (Σx)² / Σx² is the participation ratio, the number of tokens that equal shares of the score would make.

    Args:
        scaled: (B, n) float32 from `minmax`, 0 where not valid.
        valid: (B, n) bool.

    Returns:
        (B,) float32 in 0..1; 0 where all scores are 0.
    """
    total, squares = scaled.sum(dim=-1), (scaled * scaled).sum(dim=-1)
    count = valid.to(torch.float32).sum(dim=-1)
    return torch.where(squares > 0, 1.0 - total * total / torch.where(squares > 0, count * squares, 1.0), 0.0)


def adaptive_alpha(bottom_up: Tensor, top_down: Tensor, valid: Tensor) -> Tensor:
    """Return the α of each image's question: the relevance's share of both signals' peakedness.

    A question that singles out few tokens decides; one that looks everywhere alike leaves the choice to the saliency.
    Ours: the paper names an adaptive α as future work.

    Args:
        bottom_up: (B, T, N) float32, scaled saliency.
        top_down: (B, T, N) float32, scaled relevance.
        valid: (B, T, N) bool.

    Returns:
        (B,) float32 in 0..1; 0.5 where neither signal has a peak.
    """
    salient, relevant = (peakedness(x.flatten(1), valid.flatten(1)) for x in (bottom_up, top_down))
    both = salient + relevant
    return torch.where(both > 0, relevant / torch.where(both > 0, both, 1.0), 0.5)


def fuse(saliency: Tensor, relevance: Tensor, alpha: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return the score that decides which tokens of a tile are kept (arXiv 2509.15704; the scaling is ours).

    Args:
        saliency: (B, T, N) float32.
        relevance: (B, T, N) float32.
        alpha: (B,) float32, weight of the relevance, 0 to 1; negative for `adaptive_alpha`.
        valid: (B, T, N) bool.

    Returns:
        score (B, T, N) float32 in 0..1, and the α (B,) that it was made with.
    """
    bottom_up = minmax(saliency, valid)
    top_down = minmax(relevance.flatten(1), valid.flatten(1)).reshape(valid.shape)  # over the image: (B, T·N)
    alpha = torch.where(alpha < 0, adaptive_alpha(bottom_up, top_down, valid), alpha)
    weight = alpha[:, None, None]
    return (1.0 - weight) * bottom_up + weight * top_down, alpha

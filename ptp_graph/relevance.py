"""Top-down signal: how much each visual token matters to the question."""

import torch
from torch import Tensor

from ptp.ptp_graph.saliency import EPSILON, MASKED


def cosine_relevance(visual: Tensor, text: Tensor, question_mask: Tensor) -> Tensor:
    """Return the largest cosine between a visual token and any token of the question: relevance c.

    The maximum, not the mean, over question tokens is the paper's choice (arXiv 2509.15704); taking the cosine with
    input embeddings instead of the language model's attention is ours (`--instruction similarity`).

    Args:
        visual: (B, P, H) projected visual tokens.
        text: (B, L, H) input embeddings of the prompt's tokens.
        question_mask: (B, L) bool, tokens of the user's question.

    Returns:
        (B, P) float32; 0 everywhere when no token is marked.
    """
    visual, text = visual.float(), text.float()
    visual = visual / (torch.linalg.vector_norm(visual, dim=-1, keepdim=True) + EPSILON)
    text = text / (torch.linalg.vector_norm(text, dim=-1, keepdim=True) + EPSILON)
    cosine = torch.matmul(visual, text.transpose(-1, -2))  # (B, P, L)
    best = torch.where(question_mask[:, None, :], cosine, MASKED).amax(dim=-1)
    return torch.where(best > MASKED, best, 0.0)

"""Top-down signal: how much each visual token matters to the question."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ptp.ptp_graph.packing import PackedSlots
from ptp.ptp_graph.saliency import MASKED, normalised


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
    cosine = torch.matmul(normalised(visual), normalised(text).transpose(-1, -2))  # (B, P, L)
    best = torch.where(question_mask[:, None, :], cosine, MASKED).amax(dim=-1)
    return torch.where(best > MASKED, best, 0.0)


@dataclass(frozen=True, kw_only=True)
class InstructionSequence:
    """The full sequence that the language model would see, in a fixed order: prompt tokens, then all slots.

    Attention does not depend on the order in which tokens are stored, only on their positions; so the visual tokens
    need not be packed, and the prompt need not be split around them.

    Attributes:
        embeds: (B, S, H).
        positions: (B, S) int64, those of the unpruned sequence.
        valid: (B, S) bool, the token exists.
    """

    embeds: Tensor
    positions: Tensor
    valid: Tensor

    def allowed(self, window: int | None) -> Tensor:
        """Return (B, S, S) bool: which keys (last axis) each query may look at, causally and inside the window."""
        query, key = self.positions[:, :, None], self.positions[:, None, :]
        allowed = (key <= query) & self.valid[:, None, :]
        return allowed if window is None else allowed & (key > query - window)


def instruction_sequence(
    prompt: Tensor, prompt_mask: Tensor, prefix_length: Tensor, visual: Tensor, slots: PackedSlots
) -> InstructionSequence:
    """Place prompt and visual tokens where the unpruned sequence has them.

    Args:
        prompt: (B, L, H) embeddings of the prompt's text tokens, prefix then suffix.
        prompt_mask: (B, L) bool, real tokens.
        prefix_length: (B,) int64, how many of them stand before the image.
        visual: (B, P, H) projected tokens of all slots.
        slots: where the slots stand in the packed sequence.
    """
    prefix = prefix_length[:, None]  # (B, 1)
    index = torch.arange(prompt.shape[1])[None]  # (1, L)
    text = torch.where(index < prefix, index, index + slots.length.to(torch.int64))
    image = torch.where(slots.valid, prefix + slots.positions.to(torch.int64), 0)
    return InstructionSequence(
        embeds=torch.cat([prompt, visual], dim=1),
        positions=torch.cat([text, image], dim=1),
        valid=torch.cat([prompt_mask, slots.valid], dim=1),
    )


def attention_relevance(query: Tensor, keys: Tensor, allowed: Tensor, question_mask: Tensor) -> Tensor:
    """Return the attention that the question pays each token: softmax over all keys, mean over heads, max over rows.

    The paper's relevance (arXiv 2509.15704): text-to-vision attention of an early language model layer, the maximum
    over instruction tokens.

    Args:
        query: (B, kv heads, group, L, d) scaled queries of the prompt's tokens.
        keys: (B, kv heads, 1, S, d).
        allowed: (B, L, S) bool.
        question_mask: (B, L) bool, tokens of the user's question.

    Returns:
        (B, S) float32; 0 everywhere when no token is marked.
    """
    scores = torch.matmul(query.float(), keys.float().transpose(-1, -2))  # (B, kv heads, group, L, S)
    scores = torch.where(allowed[:, None, None], scores, MASKED)
    attention = torch.softmax(scores, dim=-1).flatten(1, 2).mean(dim=1)  # (B, L, S)
    return torch.where(question_mask[:, :, None], attention, 0.0).amax(dim=1)

"""The language model's first blocks, as far as the instruction's attention needs them."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from ptp.ptp_graph.relevance import InstructionSequence


def additive_mask(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """Return 0 where attention is allowed and the type's lowest value elsewhere."""
    return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)


def attention_windows(config: Any) -> list[int | None]:
    """Return the sliding window of each layer, None where attention is full.

    Mistral slides in every layer when it has a window, Qwen2 in the layers that `layer_types` names; Llama never does,
    whatever its configuration holds.
    """
    layers: int = config.num_hidden_layers
    if config.model_type == "mistral":
        return [config.sliding_window] * layers
    if config.model_type == "qwen2":
        return [config.sliding_window if kind == "sliding_attention" else None for kind in config.layer_types]
    return [None] * layers


class EarlyBlocks(nn.Module):
    """First block of a Llama-shaped language model, and the query and key projections of the second.

    Llama, Mistral and Qwen2 share this shape, down to the rotary embedding's form.

    Args:
        language_model: transformers' decoder without its head.
    """

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.rotary = language_model.rotary_emb
        self.first = language_model.layers[0]
        self.norm = language_model.layers[1].input_layernorm
        self.attention = language_model.layers[1].self_attn
        self.windows = attention_windows(language_model.config)[:2]

    def forward(self, sequence: InstructionSequence, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what the second block's attention is computed from.

        Args:
            sequence: (B, S) tokens with embeddings, positions and validity.
            rows: L, how many of the first tokens may ask.

        Returns:
            scaled queries (B, kv heads, heads per kv head, L, d), keys (B, kv heads, 1, S, d), and which keys each
            query may look at (B, L, S).
        """
        hidden, positions = sequence.embeds, sequence.positions
        cos, sin = self.rotary(hidden, position_ids=positions)  # (B, S, d)
        hidden = self.first(
            hidden,
            attention_mask=additive_mask(sequence.allowed(self.windows[0]), hidden.dtype)[:, None],  # (B, 1, S, S)
            position_ids=positions,
            position_embeddings=(cos, sin),
        )
        hidden = self.norm(hidden)
        query = self._heads(self.attention.q_proj(hidden[:, :rows]))  # (B, heads, L, d)
        keys = self._heads(self.attention.k_proj(hidden))  # (B, kv heads, S, d)
        query, _ = apply_rotary_pos_emb(query, query, cos[:, :rows], sin[:, :rows])
        keys, _ = apply_rotary_pos_emb(keys, keys, cos, sin)
        query = query * self.attention.scaling
        grouped = query.reshape(query.shape[0], keys.shape[1], -1, *query.shape[2:])  # (B, kv heads, group, L, d)
        return grouped, keys[:, :, None], sequence.allowed(self.windows[1])[:, :rows]

    def _heads(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], -1, self.attention.head_dim).transpose(1, 2)  # (B, heads, s, d)

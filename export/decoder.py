"""The language model's graphs: token embedding, and one decoder for prefill and decode."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache, DynamicLayer

from ptp.export.attention import GROUPED, attending
from ptp.export.language import additive_mask, attention_windows


class EmbedGraph(nn.Module):
    """input_ids (B, S) → inputs_embeds (B, S, H)."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embed_tokens = model.get_input_embeddings()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Look the tokens' embeddings up."""
        embeds: Tensor = self.embed_tokens(input_ids)
        return embeds


class DecoderGraph(nn.Module):
    """Transformer decoder with a key/value cache, the logits of the last token, and all that the next step starts from.

    Whoever takes the likeliest token each time feeds outputs back as inputs, and needs nothing on the host but the
    token itself, to show it.

    Args:
        model: transformers' `LlavaNextForConditionalGeneration` or any model with the same two attributes.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.language_model = model.model.language_model
        self.lm_head = model.lm_head
        text = self.language_model.config
        self.num_layers: int = text.num_hidden_layers
        windows = attention_windows(text)
        self.window = next((window for window in windows if window is not None), None)
        self.masks_by_type: bool = text.model_type == "qwen2"

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past_key_values: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the decoder over new tokens.

        Args:
            inputs_embeds: (B, S, H).
            attention_mask: (B, past + S) int64, 1 for real tokens.
            position_ids: (B, S) int64; gaps are allowed, pruned tokens keep their original positions.
            past_key_values: key and value of each layer, (B, kv heads, past, head_dim).

        Returns:
            logits (B, 1, V) float32 of the last token; next_tokens (B, 1) int64, see `likeliest`; attention mask
            (B, past + S + 1) and position (B, 1) of a step that appends one token; then key and value of each layer,
            (B, kv heads, past + S, d).
        """
        cache = DynamicCache()
        cache.layers = [_filled(*past_key_values[2 * layer : 2 * layer + 2]) for layer in range(self.num_layers)]
        with attending(self.language_model, GROUPED):
            hidden = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=self._mask(inputs_embeds, attention_mask),
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        present = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        return self._returned(hidden, attention_mask, position_ids, present)

    def _returned(
        self, hidden: Tensor, attention_mask: Tensor, position_ids: Tensor, present: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the graph's outputs for the last layer's rows (B, S, H) and the cache with the new tokens."""
        logits = self.lm_head(hidden[:, -1:]).float()
        mask = torch.cat([attention_mask, torch.ones_like(attention_mask[:, :1])], dim=1)
        return (logits, likeliest(logits), mask, position_ids[:, -1:] + 1, *present)

    def _mask(self, inputs_embeds: Tensor, attention_mask: Tensor) -> Any:
        """Return the additive mask (B, 1, S, past + S), by the order of tokens and not by their positions."""
        total, new = attention_mask.shape[1], inputs_embeds.shape[1]
        key = torch.arange(total)[None, :]
        query = torch.arange(new)[:, None] + (total - new)
        causal = key <= query  # (S, total)
        full = self._additive(causal, attention_mask, inputs_embeds.dtype)
        if self.window is None:
            return {"full_attention": full} if self.masks_by_type else full
        sliding = self._additive(causal & (key > query - self.window), attention_mask, inputs_embeds.dtype)
        return {"full_attention": full, "sliding_attention": sliding} if self.masks_by_type else sliding

    @staticmethod
    def _additive(allowed: Tensor, attention_mask: Tensor, dtype: torch.dtype) -> Tensor:
        return additive_mask(allowed[None, None] & (attention_mask[:, None, None, :] != 0), dtype)  # (B, 1, S, total)


def likeliest(logits: Tensor) -> Tensor:
    """Return the likeliest token, the first of equals, as (B, 1) int64 for logits (B, 1, V).

    It is V, which is no token, where a logit is NaN or the largest is not finite. ArgMax would be shorter, but which of
    equals TensorRT's takes is not documented, and what each backend's makes of NaN differs.
    """
    size = logits.shape[-1]
    best = logits.amax(dim=-1, keepdim=True)  # (B, 1, 1)
    token = torch.where(logits == best, torch.arange(size, dtype=torch.int32), size).amin(dim=-1)  # (B, 1)
    numbers = torch.where(torch.isnan(logits), 0, 1).to(torch.int32).amin(dim=-1)  # (B, 1), 0 where one is NaN
    usable = (numbers > 0) & (best.abs() < float("inf")).squeeze(-1)
    return torch.where(usable, token, size).to(torch.int64)


def _filled(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values  # update() would concatenate them to an empty tensor, in the graph too
    return layer

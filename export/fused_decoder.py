"""The decoder for ONNX Runtime alone: attention and cache in one operator."""

import torch
from torch import Tensor

from ptp.export.attention import FUSED, FusedCache, attending
from ptp.export.decoder import DecoderGraph


class FusedDecoderGraph(DecoderGraph):
    """A decoder that writes new keys and values into the cache that it is given, where both are the same buffer.

    Args:
        model: see `DecoderGraph`.
    """

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past_key_values: Tensor
    ) -> tuple[Tensor, ...]:
        """Run the decoder over new tokens.

        Args:
            inputs_embeds: (1, S, H).
            attention_mask: (1, past + S) int64; its length alone is looked at, every token is real.
            position_ids: (1, S) int64; gaps are allowed.
            past_key_values: key and value of each layer, (1, kv heads, cache_length, d), of which past rows are filled
                and at least S more are there.

        Returns:
            see `DecoderGraph`; keys and values as (1, kv heads, cache_length, d), of which past + S rows are filled.
        """
        shape = torch.onnx.ops.symbolic("Shape", [attention_mask], {"start": 1}, dtype=torch.int64, shape=(1,))
        total = shape.to(torch.int32)
        cache = FusedCache(past=past_key_values, last=total - 1, total=total)
        with attending(self.language_model, FUSED):
            hidden = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask={"full_attention": None, "sliding_attention": None} if self.masks_by_type else None,
                position_ids=position_ids,
                use_cache=False,
                fused_cache=cache,
            ).last_hidden_state
        return self._returned(hidden, attention_mask, position_ids, cache.present)

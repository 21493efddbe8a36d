"""Greedy answers of a language model of transformers that sees a part of the visual tokens, several prompts at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import DynamicCache

from ptp.export.language import additive_mask, attention_windows


@dataclass(frozen=True, kw_only=True)
class Input:
    """The language model's input for one prompt.

    Attributes:
        embeds: (S, H) text and every visual token; a token's index is its position.
        kept: (S,) bool, false for visual tokens that are pruned. Prompts that are answered together prune equally many.
    """

    embeds: Tensor
    kept: Tensor


@torch.inference_mode()
def greedy(
    model: Any, inputs: Sequence[Input], *, prunes_after: int, max_new_tokens: int, end_tokens: Sequence[int]
) -> list[list[int]]:
    """Return the tokens of each answer, an end token left out.

    Args:
        model: loaded `LlavaNextForConditionalGeneration`.
        inputs: one per answer; they run as one batch, padded on the left.
        prunes_after: blocks that see every visual token; 0 prunes the input.
        max_new_tokens: most tokens of an answer.
        end_tokens: what ends an answer.
    """
    embed = model.get_input_embeddings()
    lengths = torch.tensor([len(x.embeds) for x in inputs])  # (B,)
    embeds = pad_sequence([x.embeds for x in inputs], batch_first=True, padding_side="left")  # (B, S, H)
    kept = pad_sequence([x.kept for x in inputs], batch_first=True, padding_value=True, padding_side="left")
    positions = torch.arange(embeds.shape[1]) - (embeds.shape[1] - lengths)[:, None]  # (B, S), negative for padding
    blocks = _Blocks(model.model.language_model, prunes_after, batch=len(inputs))
    answers: list[list[int]] = [[] for _ in inputs]
    for step in range(max_new_tokens):
        hidden = blocks.append(embeds, positions, kept)
        tokens = model.lm_head(hidden[:, -1]).argmax(dim=-1)  # (B,)
        for answer, token in zip(answers, tokens.tolist(), strict=True):
            answer.append(token)
        if all(set(answer) & set(end_tokens) for answer in answers):
            break
        embeds, positions = embed(tokens)[:, None], (lengths + step)[:, None]
        kept = torch.ones_like(positions, dtype=torch.bool)
    return [_until(answer, end_tokens) for answer in answers]


def _until(answer: list[int], end_tokens: Sequence[int]) -> list[int]:
    ends = [index for index, token in enumerate(answer) if token in end_tokens]
    return answer[: ends[0]] if ends else answer


class _Blocks:
    """The model's own blocks over a key/value cache; tokens that are not kept stop before one of them.

    Llama, Mistral and Qwen2 call their blocks alike.
    """

    def __init__(self, language_model: Any, prunes_after: int, *, batch: int) -> None:
        self._model = language_model
        self._windows = attention_windows(language_model.config)
        blocks = range(language_model.config.num_hidden_layers)
        self._stages = (blocks[:prunes_after], blocks[prunes_after:])
        self._cache = DynamicCache()
        nothing = torch.ones(batch, 0, dtype=torch.bool)
        self._real = [nothing, nothing]  # of each stage: (B, tokens so far), false for padding

    def append(self, embeds: Tensor, positions: Tensor, kept: Tensor) -> Tensor:
        """Return the last hidden states (B, S', H) of the new tokens that are kept."""
        hidden = self._run(0, embeds, positions)
        # each prompt keeps equally many, so that the rest is a rectangle again
        hidden, positions = (x[kept].view(len(kept), -1, *x.shape[2:]) for x in (hidden, positions))
        normed: Tensor = self._model.norm(self._run(1, hidden, positions))
        return normed

    def _run(self, stage: int, hidden: Tensor, positions: Tensor) -> Tensor:
        real = self._real[stage] = torch.cat([self._real[stage], positions >= 0], dim=1)
        key = torch.arange(real.shape[1])
        query = key[-hidden.shape[1] :, None]
        # padding looks at itself: a row of nothing would be a row of NaN
        causal = (real[:, None] & (key <= query)) | (key == query)  # (B, S, tokens so far)
        rotary = self._model.rotary_emb(hidden, position_ids=positions)
        for index in self._stages[stage]:
            window = self._windows[index]
            allowed = causal if window is None else causal & (key > query - window)
            hidden = self._model.layers[index](
                hidden,
                attention_mask=additive_mask(allowed, hidden.dtype)[:, None],  # (B, 1, S, tokens so far)
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                position_embeddings=rotary,
            )
        return hidden

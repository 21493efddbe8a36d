"""First half of the demo's training: the image encoder alone, told what each visual token shows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import CLIPVisionModel
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ptp.demo.optimise import Optimiser
from ptp.demo.pool import CLUTTER, FACTS, UNREADABLE, Sample
from ptp.ptp_graph.saliency import cls_attention

SALIENCY_BLOCK = 2
"""The block whose CLS attention PTP reads from an encoder of six: see `ptp.export.config`."""

LATE_BLOCK = 4
"""The last block that runs, whose CLS attention other methods read."""

_NOTHING_WEIGHT = 0.15  # of a token that has nothing to tell
_PRESENCE_WEIGHT = 1.5
_CLS_WEIGHT = 0.4
_TILES = 64  # per step
_PRACTICE_SHARE = 0.25  # of a step's tiles that stay crowded to the end
_RATE, _MATRIX_RATE, _MATRIX_DECAY = 1.5e-3, 8e-3, 0.05


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the encoder makes of tiles.

    Attributes:
        features: (tiles, 1 + N, H) states of the feature layer (−2), CLS first.
        saliency: (tiles, N) CLS attention of `SALIENCY_BLOCK`.
        late_saliency: (tiles, N) that of `LATE_BLOCK`.
    """

    features: Tensor
    saliency: Tensor
    late_saliency: Tensor


def see(tower: CLIPVisionModel, tiles: Tensor) -> Seen:
    """Run the encoder up to its feature layer.

    Args:
        tower: the encoder.
        tiles: (tiles, 3, S, S), normalised.
    """
    states = tower.pre_layrnorm(tower.embeddings(tiles))
    saliency: dict[int, Tensor] = {}
    for number, block in enumerate(tower.encoder.layers[:-1]):
        if number in (SALIENCY_BLOCK, LATE_BLOCK):
            attention, normed = block.self_attn, block.layer_norm1(states)
            query, keys = (
                projected.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
                for projected in (attention.q_proj(normed[:, :1]) * attention.scale, attention.k_proj(normed))
            )
            saliency[number] = cls_attention(query, keys)
        states = block(states, None)
    return Seen(features=states, saliency=saliency[SALIENCY_BLOCK], late_saliency=saliency[LATE_BLOCK])


def to_tensor(tiles: Tensor) -> Tensor:
    """Return uint8 tiles (tiles, S, S, 3) normalised as the processor does: (tiles, 3, S, S)."""
    pixels = tiles.float() / 255
    return ((pixels - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)).permute(0, 3, 1, 2)


class Heads(nn.Module):
    """What is read from the features while the encoder learns, and thrown away afterwards.

    Args:
        width: length of a feature.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.ModuleList(nn.Linear(width, 1 + len(values)) for values in FACTS.values())
        self.tile = nn.ModuleList(nn.Linear(width, len(values)) for values in FACTS.values())

    def losses(self, seen: Seen, facts: Tensor, attraction: Tensor) -> tuple[Tensor, list[float]]:
        """Return the loss; how often each fact is right where there is one to tell; how CLS follows its draw.

        Args:
            seen: the result of `see`.
            facts: (tiles, N, len(FACTS)) labels.
            attraction: (tiles, N) how much each token should draw CLS, 0 to 1.
        """
        loss, right = seen.features.new_zeros(()), []
        for number, values in enumerate(FACTS.values()):
            label = facts[..., number]
            logits = self.token[number](seen.features[:, 1:])
            weight = torch.ones(1 + len(values))
            weight[0] = _NOTHING_WEIGHT
            loss = loss + cross_entropy(logits.flatten(0, 1), label.flatten(), weight, ignore_index=UNREADABLE)
            there = torch.zeros(len(label), 1 + len(values)).scatter_(1, label.clamp(min=0), 1)[:, 1:]
            presence = binary_cross_entropy_with_logits(self.tile[number](seen.features[:, 0]), there)
            loss = loss + _PRESENCE_WEIGHT * presence
            told = label > 0
            right.append((logits.argmax(-1)[told] == label[told]).float().mean().item())
        drawn = attraction.sum(-1)  # (tiles,)
        wanted = attraction / drawn.clamp(min=1e-6)[:, None]  # (tiles, N), sums to 1
        for saliency in (seen.saliency, seen.late_saliency):
            looked = -(wanted * saliency.clamp(min=1e-6).log()).sum(-1)
            loss = loss + _CLS_WEIGHT * looked[drawn > 0].mean()
        vivid = attraction >= CLUTTER
        looks = [(saliency * vivid).sum(-1).mean().item() for saliency in (seen.saliency, seen.late_saliency)]
        return loss, [*right, *looks]


def train_encoder(
    tower: CLIPVisionModel, heads: Heads, practice: Sequence[Sample], scenes: Sequence[Sample], steps: int
) -> Iterator[tuple[float, list[float]]]:
    """Train the encoder, and yield the loss and the shares of right labels after each step.

    Args:
        tower: the encoder; altered.
        heads: what is read from its features; altered.
        practice: crowded scenes, of which most lessons consist at first.
        scenes: scenes of the task.
        steps: optimiser steps.
    """
    weights = dict(nn.ModuleList([tower, heads]).named_parameters())
    optimiser = Optimiser(weights, rate=_RATE, matrix_rate=_MATRIX_RATE, matrix_decay=_MATRIX_DECAY, steps=steps)
    decks = [_Deck(practice, first=1), _Deck(scenes, first=0)]
    for step in range(steps):
        crowded = round(_TILES * max(_PRACTICE_SHARE, 1 - 1.4 * step / steps))
        dealt = [deck.deal(count) for deck, count in zip(decks, (crowded, _TILES - crowded), strict=True)]
        tiles, facts, attraction = (torch.cat(parts) for parts in zip(*dealt, strict=True))
        # another light and another contrast on each tile
        light, contrast = 0.1 * torch.randn(_TILES, 3, 1, 1), 1 + 0.1 * torch.randn(_TILES, 1, 1, 1)
        loss, right = heads.losses(see(tower, to_tensor(tiles) * contrast + light), facts.long(), attraction)
        optimiser.step(loss)
        yield loss.item(), right


class _Deck:
    """Tiles with their labels, dealt in random order, over and over; `first` is 1 to leave the thumbnails out."""

    def __init__(self, samples: Sequence[Sample], *, first: int) -> None:
        self._tiles = torch.from_numpy(np.concatenate([sample.tiles[first:] for sample in samples]))
        self._facts, self._attraction = join_labels(samples, first=first)
        self._order = torch.empty(0, dtype=torch.int64)

    def deal(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return tiles (count, S, S, 3), facts (count, N, len(FACTS)) and attraction (count, N)."""
        if len(self._order) < count:
            self._order = torch.randperm(len(self._tiles))
        dealt, self._order = self._order[:count], self._order[count:]
        return self._tiles[dealt], self._facts[dealt], self._attraction[dealt]


def join_labels(samples: Sequence[Sample], *, first: int = 0) -> tuple[Tensor, Tensor]:
    """Return the facts (tiles, N, len(FACTS)), int8, of many scenes, and their attraction, (tiles, N).

    Args:
        samples: the scenes.
        first: 1 to leave the thumbnails out.
    """
    facts = torch.from_numpy(np.concatenate([sample.facts[first:] for sample in samples]))
    attraction = torch.from_numpy(np.concatenate([sample.attraction[first:] for sample in samples]))
    return facts.flatten(1, 2), attraction.flatten(1, 2)

"""The vision graph: encoder, pruning and packing as one static module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ptp.bundle.manifest import Instruction
from ptp.export.adapters.base import TileEncoder
from ptp.ptp_graph.allocate import allocate, quantise
from ptp.ptp_graph.fuse import fuse, minmax
from ptp.ptp_graph.packing import packed_slots
from ptp.ptp_graph.relevance import cosine_relevance
from ptp.ptp_graph.saliency import region_weights
from ptp.ptp_graph.schedule import Schedule
from ptp.ptp_graph.select import Selection, select, top_tokens


class VisionGraph(nn.Module):
    """Tiles in, K visual tokens out (docs/bundle.md, vision_encoder.onnx).

    Args:
        encoder: the family's vision side.
        schedule: the static sizes.
        instruction: how the question takes part.
        region_temperature: τ of the softmax over crops.
    """

    def __init__(
        self, encoder: TileEncoder, schedule: Schedule, instruction: Instruction, region_temperature: float
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.schedule = schedule
        self.instruction = instruction
        self.region_temperature = region_temperature

    def forward(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor,
        tile_grid: Tensor,
        alpha: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        prompt_mask: Tensor | None = None,
        question_mask: Tensor | None = None,
        prefix_length: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return image_features, image_positions, num_valid, tile_budgets, packed_length, then the probes.

        Inputs are those of `export/specs.py`; `prefix_length` is part of every instruction mode's contract and read
        by `attention` alone.

        The probes are the three scores that the choice depends on: token_saliency (B, T, N), region_weights
        (B, T − 1) and, with an instruction, relevance (B, T, N). They are outputs of the traced graph only; the
        exported one keeps them as named inner values.
        """
        schedule, tiles = self.schedule, (pixel_values.shape[0], self.schedule.num_tiles)
        features, saliency, cls = (
            x.reshape(*tiles, *x.shape[1:]) for x in self.encoder.encode(pixel_values.flatten(0, 1))
        )  # (B, T, N, C), (B, T, N), (B, T, C)
        slots = packed_slots(image_sizes, tile_grid, schedule)
        valid = slots.valid[:, : schedule.num_tokens].reshape(*tiles, -1)  # (B, T, N)
        capacity = valid.to(torch.int32).sum(dim=-1, dtype=torch.int32)[:, 1:]  # (B, T − 1)

        weights = region_weights(cls, capacity > 0, self.region_temperature)
        crop_budgets = allocate(quantise(weights, capacity), capacity, schedule.levels.crops)
        thumbnail_budget = torch.full((tiles[0], 1), schedule.levels.thumbnail, dtype=torch.int32)
        budgets = torch.cat([thumbnail_budget, crop_budgets], dim=1)  # (B, T)

        probes = [saliency, weights]
        if self.instruction == "none":
            scores = minmax(saliency, valid)
        else:
            assert alpha is not None
            assert prompt_embeds is not None
            assert prompt_mask is not None
            assert question_mask is not None
            # every token is scored against the question, so all are projected here and gathered after
            features = self.encoder.project(features)  # (B, T, N, H)
            relevance = cosine_relevance(features.flatten(1, 2), prompt_embeds, question_mask & prompt_mask)
            relevance = relevance.reshape(valid.shape)  # (B, T, N)
            scores = fuse(saliency, relevance, alpha, valid)
            probes.append(relevance)

        selection = select(top_tokens(scores, valid, budgets), slots, schedule)
        kept = self._gather(features, selection)
        length = slots.length.squeeze(-1).to(torch.int64)
        return (kept, selection.positions, selection.num_valid, budgets, length, *probes)

    def _gather(self, features: Tensor, selection: Selection) -> Tensor:
        """Return (B, K, H): the kept tokens, the newline embedding in newline rows, zeros in padding rows."""
        num_tokens, batch = self.schedule.num_tokens, features.shape[0]
        is_newline = selection.slots >= num_tokens
        rows = torch.where(is_newline, 0, selection.slots)
        rows = rows + num_tokens * torch.arange(batch)[:, None]  # (B, K) rows of the flattened batch
        kept = nn.functional.embedding(rows, features.flatten(0, 2))  # (B, K, C)
        if self.instruction == "none":
            kept = self.encoder.project(kept)  # (B, K, H)
        kept = torch.where(is_newline[..., None], self.encoder.newline, kept)
        return torch.where(selection.is_real[..., None], kept, torch.zeros((), dtype=kept.dtype))


def probe_names(instruction: Instruction) -> Sequence[str]:
    """Return the names of the inner values that decide the selection, in the order `VisionGraph` returns them."""
    names = ["token_saliency", "region_weights"]
    return names if instruction == "none" else [*names, "relevance"]

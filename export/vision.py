"""The vision graph: encoder, pruning and packing as one static module."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ptp.budgets import thumbnail_budget
from ptp.bundle.manifest import Instruction, RegionRule
from ptp.export.adapters.base import TileEncoder
from ptp.export.checkpoint import Checkpoint
from ptp.export.language import EarlyBlocks
from ptp.export.plan import Plan
from ptp.export.tile_by_tile import TileByTile
from ptp.ptp_graph.allocate import allocate, quantise
from ptp.ptp_graph.fuse import fuse, minmax
from ptp.ptp_graph.packing import PackedSlots, packed_slots
from ptp.ptp_graph.region import region_weights
from ptp.ptp_graph.relevance import attention_relevance, cosine_relevance, instruction_sequence
from ptp.ptp_graph.schedule import Schedule
from ptp.ptp_graph.select import Selection, select, top_tokens


@dataclass(frozen=True, kw_only=True)
class TracedLevels:
    """Budgets of the levels in a trace: numbers, or (1,) int32 tensors where K is an input of the graph.

    Attributes:
        thumbnail: the thumbnail's own tokens.
        crops: tokens that the regions divide.
        num_kept: K, newline tokens included.
    """

    thumbnail: int | Tensor
    crops: int | Tensor
    num_kept: int


class VisionGraph(nn.Module):
    """Tiles in, K visual tokens out (docs/bundle.md, vision_encoder.onnx).

    Args:
        encoder: the family's vision side.
        schedule: the static sizes.
        instruction: how the question takes part.
        region: what a crop's share of the budget follows.
        region_temperature: τ of `cls_cosine`'s softmax over crops.
        early_blocks: the language model's first blocks, for the instruction mode `attention` alone.
        may_branch: the question is left aside where it can change nothing, in an If, which ONNX Runtime takes and
            TensorRT does not.
    """

    def __init__(
        self,
        encoder: TileEncoder,
        schedule: Schedule,
        instruction: Instruction,
        region: RegionRule,
        region_temperature: float,
        early_blocks: EarlyBlocks | None = None,
        *,
        may_branch: bool = False,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.schedule = schedule
        self.instruction = instruction
        self.region = region
        self.region_temperature = region_temperature
        self.early_blocks = early_blocks
        self.may_branch = may_branch

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
        num_kept: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return image_features, image_positions, num_valid, tile_budgets, packed_length, then the probes.

        With an instruction, effective_alpha comes before the probes. Inputs are those of `export/specs.py`;
        `prefix_length` is part of every instruction mode's contract, though `similarity` does not read it.

        The probes are the three scores that the choice depends on: token_saliency (B, T, N), region_weights
        (B, T) and, with an instruction, relevance (B, T, N). They are outputs of the traced graph only; the
        exported one keeps them as named inner values.
        """
        schedule, tiles = self.schedule, (pixel_values.shape[0], self.schedule.num_tiles)
        features, saliency, cls = (
            x.reshape(*tiles, *x.shape[1:]) for x in self.encoder.encode(pixel_values.flatten(0, 1))
        )  # (B, T, N, C), (B, T, N), (B, T, C)
        slots = packed_slots(image_sizes, tile_grid, schedule)
        valid = slots.valid[:, : schedule.num_tokens].reshape(*tiles, -1)  # (B, T, N)
        levels = self._levels(num_kept)
        budgets, weights = self._budgets(saliency, cls, slots, valid, levels)

        outputs, probes = [], [saliency, weights]
        if self.instruction == "none":
            scores = minmax(saliency, valid)
        else:
            assert alpha is not None
            # every token is scored against the question, so all are projected here and gathered after
            features = self.encoder.project(features)  # (B, T, N, H)
            decides = self._decides(alpha, num_kept)
            relevance = self._relevance(
                features, slots, prompt_embeds, prompt_mask, question_mask, prefix_length, decides
            ).reshape(valid.shape)  # (B, T, N)
            scores, effective_alpha = fuse(saliency, relevance, alpha, valid)
            outputs.append(effective_alpha)
            probes.append(relevance)

        selection = select(top_tokens(scores, valid, budgets), slots, schedule, levels.num_kept)
        kept = self._gather(features, selection)
        length = slots.length.squeeze(-1).to(torch.int64)
        return (kept, selection.positions, selection.num_valid, budgets, length, *outputs, *probes)

    def _decides(self, alpha: Tensor, num_kept: Tensor | None) -> Tensor | None:
        """Return whether the relevance can change an output; None where it always can, or the graph may not branch.

        It can where a token is left out, where α follows it, and where α is out of range, so that a score is too.
        """
        most = self.schedule.num_slots
        if not self.may_branch or self.early_blocks is None or self.schedule.num_kept_range[1] < most:
            return None
        is_a_weight = ((alpha >= 0) & (alpha <= 1)).all()
        return ~is_a_weight if num_kept is None else ~is_a_weight | (num_kept < most).any()

    def _levels(self, num_kept: Tensor | None) -> TracedLevels:
        """Return the budgets of the levels, from the input K where the graph has one."""
        schedule, levels = self.schedule, self.schedule.levels
        if num_kept is None:
            return TracedLevels(thumbnail=levels.thumbnail, crops=levels.crops, num_kept=levels.total)
        tokens = (num_kept - levels.newline).to(torch.int32)  # (1,)
        thumbnail = thumbnail_budget(
            tokens, schedule.thumbnail, num_tiles=schedule.num_tiles, tokens_per_tile=schedule.tokens_per_tile
        )
        count: Any = num_kept.item()  # int() would make a constant of it
        low, high = schedule.num_kept_range
        torch._check(low <= count)  # type: ignore[no-untyped-call]  # the trace's bounds of K
        torch._check(count <= high)  # type: ignore[no-untyped-call]
        return TracedLevels(thumbnail=thumbnail, crops=tokens - thumbnail, num_kept=count)

    def _budgets(
        self, saliency: Tensor, cls: Tensor, slots: PackedSlots, valid: Tensor, levels: TracedLevels
    ) -> tuple[Tensor, Tensor]:
        """Return budgets (B, T) int32 and region weights (B, T) float32 of the tiles."""
        schedule = self.schedule
        tile = torch.arange(schedule.num_tiles, dtype=torch.int32)[None]  # (1, T)
        capacity = valid.to(torch.int32).sum(dim=-1, dtype=torch.int32)  # (B, T)
        if schedule.thumbnail != "as_region":
            capacity = torch.where(tile > 0, capacity, 0)  # the thumbnail has a level of its own
        weights = region_weights(
            self.region,
            cls=cls,
            saliency=saliency,
            slots=slots,
            region_valid=capacity > 0,
            temperature=self.region_temperature,
            schedule=schedule,
        )
        divided = allocate(quantise(weights, capacity), capacity, levels.crops)
        return divided + torch.where(tile > 0, 0, levels.thumbnail).to(torch.int32), weights

    def _relevance(
        self,
        features: Tensor,
        slots: PackedSlots,
        prompt_embeds: Tensor | None,
        prompt_mask: Tensor | None,
        question_mask: Tensor | None,
        prefix_length: Tensor | None,
        decides: Tensor | None,
    ) -> Tensor:
        """Return (B, T·N): what each visual token matters to the question; 0 where that does not decide."""
        assert prompt_embeds is not None
        assert prompt_mask is not None
        assert question_mask is not None
        assert prefix_length is not None
        question_mask = question_mask & prompt_mask
        visual = features.flatten(1, 2)  # (B, T·N, H)
        if self.early_blocks is None:
            return cosine_relevance(visual, prompt_embeds, question_mask)
        newlines = self.encoder.newline.expand(visual.shape[0], self.schedule.num_newlines, -1)
        visual = torch.cat([visual, newlines], dim=1)  # (B, P, H)
        sequence = instruction_sequence(prompt_embeds, prompt_mask, prefix_length, visual, slots)
        rows, blocks = prompt_embeds.shape[1], self.early_blocks

        def ask() -> Tensor:
            query, keys, allowed = blocks(sequence, rows)
            return attention_relevance(query, keys, allowed, question_mask)  # (B, L + P)

        valid = sequence.valid
        relevance = ask() if decides is None else torch.cond(decides, ask, lambda: torch.zeros(valid.shape))
        return relevance[:, rows : rows + self.schedule.num_tokens]

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


def build_vision_graph(plan: Plan, checkpoint: Checkpoint, model: Any, *, control_flow: bool = False) -> VisionGraph:
    """Return the vision graph of a loaded model, or of one on the meta device.

    Args:
        plan: the static sizes and options.
        checkpoint: for its adapter.
        model: transformers' model.
        control_flow: one tile after the other in a Scan, and with an If; for ONNX Runtime alone.
    """
    adapter, instruction = checkpoint.adapter, plan.config.instruction
    encoder = adapter.build_encoder(model, plan.saliency_layer)
    return VisionGraph(
        TileByTile(encoder) if control_flow else encoder,
        plan.schedule,
        instruction,
        plan.config.region,
        plan.region_temperature,
        adapter.build_early_blocks(model) if instruction == "attention" else None,
        # ONNX Runtime does not load quantised products inside of a branch
        may_branch=control_flow and plan.config.quantization is None,
    )

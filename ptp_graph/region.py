"""Region saliency, the bottom-up signal between tiles: what share of the budget does each crop deserve?"""

import torch
from torch import Tensor

from ptp.bundle.manifest import RegionRule
from ptp.ptp_graph.packing import PackedSlots
from ptp.ptp_graph.saliency import MASKED, normalised
from ptp.ptp_graph.schedule import Schedule


def region_weights(
    rule: RegionRule,
    *,
    cls: Tensor,
    saliency: Tensor,
    slots: PackedSlots,
    region_valid: Tensor,
    temperature: float,
    schedule: Schedule,
) -> Tensor:
    """Return the weight of each region by one of the rules.

    Args:
        rule: `cls_cosine`, `thumbnail_attention` or `uniform`.
        cls: (B, T, C) CLS embeddings of the feature layer, tile 0 the thumbnail.
        saliency: (B, T, N) token saliency.
        slots: where tokens stand.
        region_valid: (B, T) bool, tiles that compete for the budget and have a real token.
        temperature: τ > 0 of `cls_cosine`.
        schedule: the static sizes.

    Returns:
        (B, T) float32, 0 where not valid.
    """
    if rule == "cls_cosine":
        return cls_cosine(cls, region_valid, temperature)
    if rule == "thumbnail_attention":
        return thumbnail_attention(saliency[:, 0], slots, region_valid, schedule)
    return region_valid.to(torch.float32)


def cls_cosine(cls: Tensor, region_valid: Tensor, temperature: float) -> Tensor:
    """Return softmax(cos(z_t, z_0) / τ) over the valid regions: (B, T) float32."""
    cls = normalised(cls)
    cosine = (cls * cls[:, :1]).sum(dim=-1)  # (B, T)
    weights = torch.softmax(torch.where(region_valid, cosine / temperature, MASKED), dim=-1)
    return torch.where(region_valid, weights, 0.0)


def thumbnail_attention(saliency: Tensor, slots: PackedSlots, region_valid: Tensor, schedule: Schedule) -> Tensor:
    """Return the thumbnail's saliency summed over the cell that each crop covers; the thumbnail's own is the whole.

    The centre of a thumbnail token lies in exactly one crop: the thumbnail shows the image without its padding, so row
    i of s stands at row pad + ⌊(2i + 1)·rows / 2s⌋ of the padded grid, in integers, and columns likewise.

    Args:
        saliency: (B, N) token saliency of the thumbnail.
        slots: the grid's padding.
        region_valid: (B, T) bool.
        schedule: the static sizes.
    """
    side = schedule.side
    centre = 2 * torch.arange(side, dtype=torch.int32)[None] + 1  # (1, side)
    row = (centre * slots.kept_rows // (2 * side) + slots.pad_rows) // side  # (B, side) row of the crop
    column = (centre * slots.kept_columns // (2 * side) + slots.pad_columns) // side
    crop = (1 + row[:, :, None] * slots.grid_columns[:, :, None] + column[:, None, :]).flatten(1)  # (B, N)
    tile = torch.arange(schedule.num_tiles, dtype=torch.int32)[None, :, None]  # (1, T, 1)
    covers = (crop[:, None, :] == tile) | (tile == 0)  # (B, T, N)
    weights = torch.where(covers, saliency[:, None, :], 0.0).sum(dim=-1)
    return torch.where(region_valid, weights, 0.0)

"""How many tokens each level of the pyramid keeps: integers, from a fraction taken exactly as it is written."""

import re
from fractions import Fraction
from math import floor
from typing import Any

from ptp.bundle.manifest import MAX_DIMENSION, Levels, Manifest, NewlinePolicy, ThumbnailPolicy
from ptp.errors import ConfigError

Keep = Fraction | float | str
"""A fraction of visual tokens; a float or text counts as it is written (0.1 is 1/10)."""

NUMBER = re.compile(r"[+-]?[0-9.]{1,40}(/[0-9]{1,40}|e[+-]?[0-9]{1,3})?", re.IGNORECASE)
"""What a fraction may look like; without a bound, 1e999999999 would be computed."""


def level_budgets(
    keep: Fraction,
    *,
    num_tiles: int,
    tokens_per_tile: int,
    num_newlines: int,
    thumbnail: ThumbnailPolicy,
    newline: NewlinePolicy,
) -> Levels:
    """Return the budget of each level: the thumbnail's, ⌊keep·T·N⌋ less that for the regions, every newline or none.

    Args:
        keep: fraction of visual tokens kept, 0 < keep ≤ 1.
        num_tiles: T, thumbnail included.
        tokens_per_tile: N.
        num_newlines: token rows of the tallest grid.
        thumbnail: where the thumbnail's budget comes from.
        newline: keep every row separator, or drop them all.

    Raises:
        ConfigError: `keep` keeps no token, fewer than the policy gives the thumbnail, or more than any bundle can hold.
    """
    total = floor(keep * num_tiles * tokens_per_tile)
    if total == 0:
        raise ConfigError(
            "keep keeps no token at all",
            got=float(keep),
            expected=f"at least {1 / (num_tiles * tokens_per_tile):.6f} (1 of {num_tiles * tokens_per_tile} tokens)",
        )
    if total + num_newlines > MAX_DIMENSION:
        raise ConfigError("too many visual tokens", got=total + num_newlines, expected=f"at most {MAX_DIMENSION}")
    if thumbnail == "keep_all" and total < tokens_per_tile:
        raise ConfigError(
            "the whole thumbnail is more than keep allows",
            got=float(keep),
            expected=f"at least {1 / num_tiles:.4f}",
            do="raise --keep or choose another --thumbnail",
        )
    own = thumbnail_budget(total, thumbnail, num_tiles=num_tiles, tokens_per_tile=tokens_per_tile)
    return Levels(thumbnail=own, crops=total - own, newline=num_newlines if newline == "keep" else 0)


def thumbnail_budget(total: Any, policy: ThumbnailPolicy, *, num_tiles: int, tokens_per_tile: int) -> Any:
    """Return what the thumbnail gets of ⌊keep·T·N⌋ tokens; an integer tensor gives a tensor.

    ⌊keep·N⌋ is ⌊⌊keep·T·N⌋ / T⌋, so the total alone tells the levels apart.
    """
    return {"ratio": total // num_tiles, "keep_all": tokens_per_tile, "as_region": 0}[policy]


def parse_fraction(text: str, name: str) -> Fraction:
    """Return a number exactly as written, in decimal or as a fraction such as 1/3.

    Raises:
        ConfigError: it is not a number.
    """
    try:
        if NUMBER.fullmatch(text):
            return Fraction(text)
    except (ValueError, ZeroDivisionError):
        pass
    raise ConfigError(f"{name} is not a number", got=repr(text), expected="a fraction such as 0.25")


def num_kept_at(keep: Keep | None, manifest: Manifest) -> int:
    """Return K for a fraction that is asked for at run time; the bundle's own if None.

    Raises:
        ConfigError: the bundle has one fixed K, or K would be outside its range.
    """
    pruning, tiling, bounds = manifest.pruning, manifest.tiling, manifest.pruning.keep_range
    if keep is None:
        return pruning.num_kept
    fraction = keep if isinstance(keep, Fraction) else parse_fraction(str(keep), "keep")
    if not 0 < fraction <= 1:
        raise ConfigError("keep is a fraction of the visual tokens", got=str(keep)[:40], expected="0 < keep ≤ 1")
    # the manifest's own values are rounded: 1/3 is written 0.3333333333333333, of which the floor may be one less
    own = {pruning.keep: pruning.num_kept}
    if bounds:
        own |= {bounds.min: bounds.min_kept, bounds.max: bounds.max_kept}
    if float(fraction) in own:
        return own[float(fraction)]
    if bounds is None:
        raise ConfigError(
            "keep is fixed in this bundle",
            got=f"{float(fraction):g}",
            expected=f"{pruning.keep:g}",
            do="leave it out, or export with --keep MIN:OPT:MAX to choose at run time",
        )
    num_kept = level_budgets(
        fraction,
        num_tiles=tiling.max_tiles,
        tokens_per_tile=tiling.tokens_per_tile,
        num_newlines=tiling.tokens_per_side * max(rows for rows, _ in tiling.grids),
        thumbnail=pruning.thumbnail,
        newline=pruning.newline,
    ).total
    if not bounds.min_kept <= num_kept <= bounds.max_kept:
        raise ConfigError(
            "keep is outside the range that this bundle was exported for",
            got=f"{float(fraction):g} (K = {num_kept})",
            expected=f"{bounds.min:g} to {bounds.max:g} (K = {bounds.min_kept} to {bounds.max_kept})",
        )
    return num_kept

"""How many tokens each level of the pyramid keeps: plain integers, known before anything is exported."""

from dataclasses import dataclass
from fractions import Fraction
from math import floor

from ptp.anyres import Grid
from ptp.bundle.manifest import Levels, NewlinePolicy, ThumbnailPolicy
from ptp.errors import ConfigError

WEIGHT_LEVELS = 8192
"""Region weights are quantised to the integers 1..WEIGHT_LEVELS, so that budgets are exact integer arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The static sizes of a pruned vision graph (docs/algorithm.md, level budgets).

    Args:
        keep: fraction of visual tokens kept, 0 < keep ≤ 1.
        side: visual tokens on a side of a tile.
        grids: crop grids (rows, columns) an image may get.
        newline: keep every row separator, or drop them all.
        thumbnail: the thumbnail keeps its `ratio` of tokens; or `keep_all` of them, the crops getting less; or it is
            one region among the crops (`as_region`), its share decided by the region rule.

    Raises:
        ConfigError: `keep` is out of range or keeps no token, or the sizes overflow 32-bit integers.
    """

    keep: Fraction
    side: int
    grids: tuple[Grid, ...]
    newline: NewlinePolicy = "keep"
    thumbnail: ThumbnailPolicy = "ratio"

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError("keep is a fraction of the visual tokens", got=float(self.keep), expected="0 < keep ≤ 1")
        if self.thumbnail == "keep_all" and floor(self.keep * self.num_tokens) < self.tokens_per_tile:
            raise ConfigError(
                "the whole thumbnail is more than keep allows",
                got=float(self.keep),
                expected=f"at least {1 / self.num_tiles:.4f}",
                do="raise --keep or choose another --thumbnail",
            )
        if self.levels.thumbnail + self.levels.crops == 0:
            raise ConfigError(
                "keep keeps no token at all",
                got=float(self.keep),
                expected=f"at least {1 / self.num_tokens:.6f} (1 of {self.num_tokens} tokens)",
            )
        if self.num_tokens * WEIGHT_LEVELS >= 2**31:
            raise ConfigError(
                "too many visual tokens for 32-bit budgets",
                got=self.num_tokens,
                expected=f"fewer than {2**31 // WEIGHT_LEVELS}",
                do="choose a smaller --grid",
            )

    @property
    def num_tiles(self) -> int:
        """T: tiles of the largest grid, and the thumbnail."""
        return 1 + max(rows * columns for rows, columns in self.grids)

    @property
    def tokens_per_tile(self) -> int:
        """N: visual tokens of a tile."""
        return self.side**2

    @property
    def num_tokens(self) -> int:
        """T·N: visual tokens of all tiles, newline tokens not counted."""
        return self.num_tiles * self.tokens_per_tile

    @property
    def num_newlines(self) -> int:
        """Token rows of the tallest grid: newline tokens an image can have."""
        return self.side * max(rows for rows, _ in self.grids)

    @property
    def num_slots(self) -> int:
        """Candidates of the selection: thumbnail, crops, and the newline tokens unless they are dropped."""
        return self.num_tokens + self.levels.newline

    @property
    def max_packed_length(self) -> int:
        """An upper bound of the packed sequence's length M over all images."""
        return self.num_tokens + self.num_newlines

    @property
    def levels(self) -> Levels:
        """Budget of each level: the thumbnail's, ⌊keep·T·N⌋ less that for the regions, every newline or none."""
        thumbnail = {
            "ratio": floor(self.keep * self.tokens_per_tile),
            "keep_all": self.tokens_per_tile,
            "as_region": 0,
        }[self.thumbnail]
        return Levels(
            thumbnail=thumbnail,
            crops=floor(self.keep * self.num_tokens) - thumbnail,
            newline=self.num_newlines if self.newline == "keep" else 0,
        )

    @property
    def num_kept(self) -> int:
        """K: rows that the vision graph returns."""
        return self.levels.total

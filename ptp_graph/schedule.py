"""How many tokens each level of the pyramid keeps: plain integers, known before anything is exported."""

from dataclasses import dataclass
from fractions import Fraction

from ptp.anyres import Grid
from ptp.budgets import level_budgets
from ptp.bundle.manifest import Levels, NewlinePolicy, ThumbnailPolicy
from ptp.errors import ConfigError

WEIGHT_LEVELS = 8192
"""Region weights are quantised to the integers 1..WEIGHT_LEVELS, so that budgets are exact integer arithmetic."""

TOPK_LIMIT = 3840
"""Most elements that one TopK may return in any version of TensorRT."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The static sizes of a pruned vision graph (docs/algorithm.md, level budgets).

    Args:
        keep: fraction of visual tokens kept, 0 < keep ≤ 1.
        keep_range: smallest and largest fraction that may be asked for at run time; None fixes `keep` in the graph.
        side: visual tokens on a side of a tile.
        grids: crop grids (rows, columns) an image may get.
        newline: keep every row separator, or drop them all.
        thumbnail: the thumbnail keeps its `ratio` of tokens; or `keep_all` of them, the crops getting less; or it is
            one region among the crops (`as_region`), its share decided by the region rule.

    Raises:
        ConfigError: `keep` or its range is out of range or keeps no token, or the sizes overflow 32-bit integers.
    """

    keep: Fraction
    side: int
    grids: tuple[Grid, ...]
    newline: NewlinePolicy = "keep"
    thumbnail: ThumbnailPolicy = "ratio"
    keep_range: tuple[Fraction, Fraction] | None = None

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError("keep is a fraction of the visual tokens", got=float(self.keep), expected="0 < keep ≤ 1")
        if self.num_tokens * WEIGHT_LEVELS >= 2**31:
            raise ConfigError(
                "too many visual tokens for 32-bit budgets",
                got=self.num_tokens,
                expected=f"fewer than {2**31 // WEIGHT_LEVELS}",
                do="choose a smaller --grid",
            )
        low, high = self.keep_range or (self.keep, self.keep)
        if not 0 < low <= self.keep <= high <= 1:
            raise ConfigError(
                "keep's range is not one",
                got=":".join(f"{float(keep):g}" for keep in (low, self.keep, high)),
                expected="0 < min ≤ keep ≤ max ≤ 1",
            )
        if self.keep_range and self.levels_at(high).total > TOPK_LIMIT:
            raise ConfigError(
                "keep cannot be chosen at run time up to so many tokens: one TopK returns fewer",
                got=f"K = {self.levels_at(high).total} at keep {float(high):g}",
                expected=f"at most {TOPK_LIMIT}",
                do="lower the largest keep, choose a smaller --grid, or export with one fixed keep",
            )
        self.levels_at(low)  # refuses a keep that keeps nothing

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

    def levels_at(self, keep: Fraction) -> Levels:
        """Return the budget of each level at a fraction.

        Raises:
            ConfigError: it keeps no token, or fewer than the policy gives the thumbnail.
        """
        return level_budgets(
            keep,
            num_tiles=self.num_tiles,
            tokens_per_tile=self.tokens_per_tile,
            num_newlines=self.num_newlines,
            thumbnail=self.thumbnail,
            newline=self.newline,
        )

    @property
    def levels(self) -> Levels:
        """Budget of each level at `keep`."""
        return self.levels_at(self.keep)

    @property
    def num_kept(self) -> int:
        """K: rows that the vision graph returns, at `keep` if K is chosen at run time."""
        return self.levels.total

    @property
    def num_kept_range(self) -> tuple[int, int]:
        """Smallest and largest K of the graph; both `num_kept` if it is fixed."""
        low, high = self.keep_range or (self.keep, self.keep)
        return self.levels_at(low).total, self.levels_at(high).total

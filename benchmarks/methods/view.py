"""What a pruning method may look at, and what it answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ptp.anyres import Grid
from ptp.errors import ConfigError
from ptp.ptp_graph.reference import NEWLINE, packed_sequence

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class View:
    """transformers' view of one image and its prompt, unpruned. What no method asks for may be left out.

    A position is an index into the packed sequence, which has M rows: the thumbnail, the crops' rows without their
    padding, a newline token after each row. Newline tokens are no method's business: the caller keeps them all.

    Attributes:
        image_size: height and width in pixels.
        grid: rows and columns of the crop grid.
        side: visual tokens on a side of a tile; N = side².
        depth: blocks of the vision encoder.
        features: (M, H) projected features with newline rows, as the language model gets them.
        cls_attention: (tiles, N) for each 0-based vision block asked for: the attention of CLS to the patches, a
            softmax over all 1 + N keys, mean over the heads.
        cls_logits: (tiles, N) for each of these blocks the same before the softmax, q · k / √d, mean over the heads.
        keys: (tiles, N, d) keys of the last block but one, mean over the heads.
        hidden: (tiles, N, D) what the projector gets.
        project: the projector, (n, D) to (n, H).
        question_attention: (M,) the attention that the prompt's last token pays in the language model's second block,
            mean over the heads.
        text_embeds: (L, H) input embeddings of the prompt's text tokens in their order.
    """

    image_size: tuple[int, int]
    grid: Grid
    side: int
    depth: int
    features: Floats
    cls_attention: Mapping[int, Floats]
    cls_logits: Mapping[int, Floats] = field(default_factory=dict)
    keys: Floats | None = None
    hidden: Floats | None = None
    project: Callable[[Floats], Floats] | None = None
    question_attention: Floats | None = None
    text_embeds: Floats | None = None

    def __post_init__(self) -> None:
        length = len(self.sequence)
        rows = {"features": self.features, "question_attention": self.question_attention}
        scores = {f"cls_attention[{k}]": v for k, v in self.cls_attention.items()}
        scores |= {f"cls_logits[{k}]": v for k, v in self.cls_logits.items()}
        patches = {"keys": self.keys, "hidden": self.hidden}
        expected = dict.fromkeys(rows, (length,)) | dict.fromkeys((scores | patches), (self.num_tiles, self.side**2))
        for name, values in (rows | scores | patches).items():
            if values is not None and values.shape[: len(expected[name])] != expected[name]:
                raise ConfigError(f"{name} does not fit the image", got=values.shape, expected=expected[name])

    @property
    def num_tiles(self) -> int:
        """Tiles of this image, thumbnail included."""
        return 1 + self.grid[0] * self.grid[1]

    @cached_property
    def sequence(self) -> Ints:
        """(M,) tile · N + token of each row of the packed sequence, or NEWLINE."""
        return np.array(packed_sequence(*self.image_size, self.grid, self.side), dtype=np.int64)

    @cached_property
    def positions(self) -> Ints:
        """Positions of the real visual tokens, ascending: everything but newlines."""
        return np.flatnonzero(self.sequence != NEWLINE)

    @cached_property
    def tiles(self) -> list[Ints]:
        """Positions of each tile's real tokens, ascending, which is the tile's own raster order."""
        owner = self.sequence[self.positions] // self.side**2
        return [self.positions[owner == tile] for tile in range(self.num_tiles)]

    @cached_property
    def crop_area(self) -> tuple[int, int]:
        """Token rows and columns that unpadding leaves of the crop grid."""
        rows = int((self.sequence == NEWLINE).sum())
        return rows, (len(self.sequence) - self.side**2) // rows - 1 if rows else 0

    def cls(self, layer: int) -> Floats:
        """Return the CLS attention of a block, (tiles, N); a negative layer counts from the last block."""
        return _of_block("cls_attention", self.cls_attention, layer % self.depth)

    def logits(self, layer: int) -> Floats:
        """Return what stands before the softmax of `cls`."""
        return _of_block("cls_logits", self.cls_logits, layer % self.depth)

    def need(self, name: str) -> Any:
        """Return an attribute that may be left out.

        Raises:
            ConfigError: it was.
        """
        value = getattr(self, name)
        if value is None:
            raise ConfigError("the method needs something that this view does not have", expected=name)
        return value

    def at(self, positions: Ints, values: Floats) -> Floats:
        """Return the rows of (tiles, N, …) values that belong to positions of visual tokens."""
        taken: Floats = values.reshape(-1, *values.shape[2:])[self.sequence[positions]]
        return taken


def _of_block(name: str, values: Mapping[int, Floats], layer: int) -> Floats:
    if layer not in values:
        raise ConfigError(f"{name} of a block is missing", got=sorted(values), expected=layer)
    return values[layer]


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What a method keeps of one image.

    Attributes:
        positions: kept visual tokens, ascending.
        features: (kept, H) what stands there now, for a method that merges; None leaves the view's own rows.
    """

    positions: Ints
    features: Floats | None = None


class Method(Protocol):
    """A pruning method.

    Attributes:
        name: its key in `METHODS`.
        sees_question: whether the prompt takes part in the choice.
        prunes_after: blocks of the language model that still see every visual token; 0 prunes the input.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def sees_question(self) -> bool: ...  # noqa: D102

    @property
    def prunes_after(self) -> int: ...  # noqa: D102

    def choose(self, view: View, budget: int, seed: int = 0) -> Choice:
        """Return exactly min(budget, real tokens) of the visual tokens; only a random method uses the seed."""
        ...


def with_newlines(view: View, choice: Choice) -> tuple[Ints, Floats]:
    """Return positions and features of a choice and of all newline tokens, in packed order."""
    features = view.features.copy()
    if choice.features is not None:
        features[choice.positions] = choice.features
    kept = np.union1d(choice.positions, np.flatnonzero(view.sequence == NEWLINE))
    return kept, features[kept]

"""Scenes drawn in advance for training: tiles as the model sees them, with what each visual token shows."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.random import MT19937, RandomState, SeedSequence
from numpy.typing import NDArray

from ptp.anyres import Grid
from ptp.demo.labels import model_view, token_labels
from ptp.demo.layout import TILE, draw_practice
from ptp.demo.materials import COLOURS, DIGITS, LETTERS, PICTURES, SHAPES
from ptp.demo.questions import Question
from ptp.demo.scenes import Box, Object, Pair, paint
from ptp.demo.task import Scene, make_scene

FACTS = {
    "colour": tuple(COLOURS),
    "shape": tuple(SHAPES),
    "glyph": tuple(DIGITS + LETTERS),
    "picture": tuple(PICTURES),
    "number": ("1", "2", "3"),
    "neighbour": tuple(PICTURES),
}
"""What can be known about a token, with the possible values; as labels they count from 1, 0 is none.

A picture's number is how many of its kind the scene has; they stand together in one tile."""

UNREADABLE = -100
"""Label of a glyph in the thumbnail, which nobody has to read; `torch.nn.functional.cross_entropy` skips it."""

GLYPH = list(FACTS).index("glyph")
"""Which of the facts is what is written on a sign."""

CLUTTER, DULL = 0.6, 0.001
"""How much vivid clutter draws CLS, and any thing that is not vivid; a vivid object: 1.

Attention sums to 1 in a tile, so that what is not vivid is looked at only where nothing else is."""

_PRACTICE = 20_261  # seeds the practice scenes
_CHUNK = 64  # scenes per piece of work


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A scene as the model sees it.

    Attributes:
        tiles: (T, S, S, 3) uint8, the thumbnail first, then the crops in raster order.
        facts: (T, side, side, len(FACTS)) int8 labels of the tokens.
        shown: (T, side, side) int8, 0 or 1 + the object that a token shows.
        attraction: (T, side, side) float32, how much each token should draw CLS.
        image_size: height and width in pixels.
        grid: rows and columns of the crops.
        objects: what is on it.
        questions: what is asked.
    """

    tiles: NDArray[np.uint8]
    facts: NDArray[np.int8]
    shown: NDArray[np.int8]
    attraction: NDArray[np.float32]
    image_size: tuple[int, int]
    grid: Grid
    objects: tuple[Object, ...]
    questions: tuple[Question, ...]


def draw_sample(split: str, index: int) -> Sample:
    """Return a scene of the task.

    Args:
        split: one of `task.SPLITS`.
        index: its number.
    """
    return _look(make_scene(split, index))


def draw_practice_sample(index: int) -> Sample:
    """Return a crowded scene without questions.

    Args:
        index: its number.
    """
    rng = RandomState(MT19937(SeedSequence([_PRACTICE, index])))
    layout = draw_practice(rng)
    scene = Scene(
        image=paint(layout, rng),
        objects=layout.objects,
        questions=(),
        clutter=layout.clutter,
        pairs=layout.pairs,
        grid=layout.grid,
    )
    return _look(scene)


def draw_many(draw: Callable[[int], Sample], indices: Sequence[int]) -> Iterator[Sample]:
    """Yield samples in the order of their indices, drawn by all cores.

    Args:
        draw: draws one; a function of a module, or a `functools.partial` of one.
        indices: the numbers.
    """
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(draw, indices, chunksize=_CHUNK)


def _look(scene: Scene) -> Sample:
    image_size = (scene.image.height, scene.image.width)
    thumbnail, canvas = model_view(scene.image, scene.grid, TILE)
    rows, columns = scene.grid
    crops = np.asarray(canvas).reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    shown = token_labels([o.box for o in scene.objects], image_size, scene.grid, tile_size=TILE).astype(np.int8)
    facts = _facts(scene.objects, scene.pairs)[shown]
    # a glyph is read where it stands: in the one token of the crops with its middle
    points = [Box(left=x, top=y, right=x, bottom=y) for x, y in (o.glyph_centre for o in scene.objects)]
    middle = token_labels(points, image_size, scene.grid, tile_size=TILE) == shown
    middle[0] = False
    facts[..., GLYPH] *= middle
    facts[0, shown[0] > 0, GLYPH] = UNREADABLE
    around = token_labels([one.box for one in scene.clutter], image_size, scene.grid, tile_size=TILE)
    objects = np.array([0.0, *(1.0 if one.vivid else DULL for one in scene.objects)], np.float32)
    clutter = np.array([0.0, *(CLUTTER if one.vivid else DULL for one in scene.clutter)], np.float32)
    return Sample(
        tiles=np.concatenate([np.asarray(thumbnail)[None], crops]),
        facts=facts,
        shown=shown,
        attraction=np.where(shown > 0, objects[shown], clutter[around]),
        image_size=image_size,
        grid=scene.grid,
        objects=scene.objects,
        questions=scene.questions,
    )


def _facts(objects: Sequence[Object], pairs: Sequence[Pair]) -> NDArray[np.int8]:
    """Return what is known about nothing and about each object: (1 + objects, len(FACTS))."""
    neighbours = {pair.first: objects[pair.second].name for pair in pairs}
    neighbours |= {pair.second: objects[pair.first].name for pair in pairs}
    numbers = Counter(one.name for one in objects if one.kind == "picture")
    table = np.zeros((1 + len(objects), len(FACTS)), np.int8)
    for i, one in enumerate(objects):
        number = str(numbers[one.name]) if one.kind == "picture" else ""
        values = (one.colour, one.shape, one.glyph, one.name, number, neighbours.get(i, ""))
        for column, (value, possible) in enumerate(zip(values, FACTS.values(), strict=True)):
            table[1 + i, column] = 1 + possible.index(value) if value else 0
    return table

"""Lay out scenes: which objects there are, how large they are, and where they stand without overlapping.

Lengths called *grid pixels* are pixels of the crop grid that the model tiles a scene into: they, not the pixels of
the image, decide what can be read.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

from ptp.anyres import Grid, choose_grid, resized_inside
from ptp.demo.items import Item, draw_clutter, draw_picture, draw_signs
from ptp.demo.materials import PICTURES
from ptp.demo.scenes import Box, Clutter, Layout, Object, Pair, Stamp

TILE = 112
"""Side in pixels of a tile of the demo model."""

GRIDS: tuple[Grid, ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
"""Tile grids of the demo model, in the order of its checkpoint."""

LONG_SIDES = (450, 1400)
"""Smallest and largest longer side of an image, in its own pixels."""

# How often a grid is drawn, and the range of width / height (below 1: the other way up). Only 2:1 exactly is tiled as
# (1, 2): a little less is (2, 2), a little more (1, 3). Beyond 1.5, (2, 2) leaves the thumbnail nearly as sharp as
# the crops in one direction, so that such scenes are few.
_WIDE: dict[Grid, tuple[float, float, float]] = {
    (2, 2): (0.58, 1.0, 1.5),
    (1, 2): (0.14, 2.0, 2.0),
    (1, 3): (0.28, 2.2, 4.0),
}
_STRETCHED_SHARE, _STRETCHED = 0.08, (1.5, 1.9)  # of (2, 2)

_AREA_PER_OBJECT = 4400.0  # grid pixels: 12 objects fill a square 2×2 grid, 7 one of (1, 2)
_AREA_PER_CLUTTER = 2400.0
_GAP = 3.0  # between any two objects, grid pixels
_ROW_GAP = (2.0, 4.0)  # between pictures that stand together
_ROW_HALO = 16.0  # around them: nothing else is as near

# A small encoder learns to read glyphs in minutes where each lies inside one token, and hardly where tokens cut them.
_TOKEN = 14  # side in grid pixels
_PRACTICE_ROWS = (3, 2)  # pictures of one kind that stand together in a crowded scene, if they fit
_PRACTICE_PAIRS, _PRACTICE_SINGLES, _PRACTICE_SIGNS = 3, 2, 20
_PRACTICE_HALO = 8.0  # around pictures there, so that it is clear which belong together
_OFF_CENTRE = 1.0  # largest distance of a glyph's centre from its token's, in x and in y, grid pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class _Plan:
    """What a scene is to contain.

    Attributes:
        pair: two pictures that stand together; empty if there is no pair.
        counted: one to three pictures of one kind that stand together; empty if nothing is counted.
        signs: what is written on.
        singles: other pictures, which may be left out.
    """

    pair: list[Item]
    counted: list[Item]
    signs: list[Item]
    singles: list[Item]


def draw_layout(rng: RandomState) -> Layout:
    """Return a random scene, not yet drawn.

    Args:
        rng: where chance comes from. `RandomState`, because numpy keeps its stream the same in all versions.
    """
    room = _Room(*_draw_size(rng))
    plan = _draw_plan(rng, room.width * room.height)
    attempts = 0
    while True:
        horizontal = bool(rng.uniform() < 0.6)
        placed = _place(rng, room, plan, horizontal)
        if placed is not None:
            pairs = (Pair(first=0, second=1, horizontal=horizontal),) if plan.pair else ()
            return _finish(rng, room, placed, pairs, plan.counted[0].name if plan.counted else "")
        attempts += 1
        room = _Room(room.image_size[0], room.image_size[1], room.grid)
        if attempts % 10 == 0:
            plan = _draw_plan(rng, room.width * room.height)


def draw_practice(rng: RandomState) -> Layout:
    """Return a crowded scene that fills a 2×2 grid pixel by pixel, for an encoder's first lessons; nothing is asked.

    Args:
        rng: where chance comes from.
    """
    room = _Room(2 * TILE, 2 * TILE, (2, 2))
    names = iter([list(PICTURES)[i] for i in rng.permutation(len(PICTURES)).tolist()])
    rows = [[next(names)] * count for count in _PRACTICE_ROWS]
    rows += [[next(names), next(names)] for _ in range(_PRACTICE_PAIRS)]
    placed: list[_Placed] = []
    pairs = []
    for row in rows:
        horizontal = bool(rng.uniform() < 0.5)
        found = _place_row(rng, room, [draw_picture(rng, name) for name in row], horizontal, _PRACTICE_HALO)
        if found is not None:
            if row[0] != row[-1]:
                pairs.append(Pair(first=len(placed), second=len(placed) + 1, horizontal=horizontal))
            placed += found
    alone = [(draw_picture(rng, next(names)), _PRACTICE_HALO) for _ in range(_PRACTICE_SINGLES)]
    alone += [(sign, 0.5) for _ in range(_PRACTICE_SIGNS // 4) for sign in draw_signs(rng, 4)]
    for item, gap in alone:
        place = room.find(rng, [(0, 0, item)], gap)
        if place is not None:
            placed.append(_Placed(item=item, x=place[0], y=place[1]))
    return _finish(rng, room, placed, tuple(pairs), "")


def _draw_size(rng: RandomState) -> tuple[int, int, Grid]:
    wanted = list(_WIDE)[int(rng.choice(len(_WIDE), p=[share for share, _, _ in _WIDE.values()]))]
    low, high = _WIDE[wanted][1:]
    if wanted == (2, 2) and rng.uniform() < _STRETCHED_SHARE:
        low, high = _STRETCHED
    upright = rng.uniform() < 0.5
    while True:
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        long = 2 * round(math.exp(rng.uniform(*np.log(LONG_SIDES))) / 2)
        short = round(long / aspect)
        width, height, grid = (short, long, wanted[::-1]) if upright else (long, short, wanted)
        if choose_grid(height, width, GRIDS, TILE) == grid:
            return width, height, grid


class _Room:
    """Places already taken, in grid pixels from the image's own corner.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        grid: its grid.
    """

    def __init__(self, width: int, height: int, grid: Grid) -> None:
        self.image_size = (width, height)
        self.grid = grid
        rows, columns = grid[0] * TILE, grid[1] * TILE
        self.height, self.width = resized_inside(height, width, rows, columns)
        self.scale = self.width / width  # grid pixels per pixel of the image
        left, top = (columns - self.width) // 2, (rows - self.height) // 2
        self._corner = (left, top)
        self._seams = (
            [TILE * i - left for i in range(1, grid[1])],
            [TILE * i - top for i in range(1, grid[0])],
        )
        self._taken: list[tuple[float, float, float, float, float]] = []

    def find(
        self, rng: RandomState, group: Sequence[tuple[float, float, Item]], gap: float, tries: int = 60
    ) -> tuple[float, float] | None:
        """Return where the first of a group of items can be centred, and take the place; None if nowhere.

        Args:
            rng: where chance comes from.
            group: offset in x and y from the first, and the item.
            gap: what stays free around the group.
            tries: how many random places are looked at.
        """
        boxes = [_moved(item.extent, x, y) for x, y, item in group]
        # what stands together lies in one tile, so that one tile shows how it stands
        cores = [_around(boxes)] if len(group) > 1 else [group[0][2].core]
        low_x, low_y = 1 - min(box[0] for box in boxes), 1 - min(box[1] for box in boxes)
        high_x, high_y = self.width - 1 - max(box[2] for box in boxes), self.height - 1 - max(box[3] for box in boxes)
        if high_x < low_x or high_y < low_y:
            return None
        for _ in range(tries):
            x, y = float(rng.uniform(low_x, high_x)), float(rng.uniform(low_y, high_y))
            if group[0][2].glyph:
                x, y = self._on_a_token(rng, cores[0], x, y)
            if not (low_x <= x <= high_x and low_y <= y <= high_y) or self._is_cut(cores, x, y):
                continue
            moved = [_moved(box, x, y) for box in boxes]
            if not any(self._is_taken(box, gap) for box in moved):
                self._taken += [(*box, gap) for box in moved]
                return x, y
        return None

    def _on_a_token(
        self, rng: RandomState, core: tuple[float, float, float, float], x: float, y: float
    ) -> tuple[float, float]:
        """Return the nearest place at which the middle of the core is about the middle of a token."""
        moved = []
        for place, low, high, corner in (
            (x, core[0], core[2], self._corner[0]),
            (y, core[1], core[3], self._corner[1]),
        ):
            middle = (low + high) / 2
            token = math.floor((place + middle + corner) / _TOKEN)
            wanted = (token + 0.5) * _TOKEN + rng.uniform(-_OFF_CENTRE, _OFF_CENTRE)
            moved.append(float(wanted - corner - middle))
        return moved[0], moved[1]

    def _is_cut(self, cores: Sequence[tuple[float, float, float, float]], x: float, y: float) -> bool:
        across, down = self._seams
        return any(
            any(core[0] + x < seam < core[2] + x for seam in across)
            or any(core[1] + y < seam < core[3] + y for seam in down)
            for core in cores
        )

    def _is_taken(self, box: tuple[float, float, float, float], gap: float) -> bool:
        left, top, right, bottom = box
        for other in self._taken:
            free = gap if gap > other[4] else other[4]
            if (
                left < other[2] + free
                and other[0] < right + free
                and top < other[3] + free
                and other[1] < bottom + free
            ):
                return True
        return False


def _around(boxes: Sequence[tuple[float, float, float, float]]) -> tuple[float, float, float, float]:
    left, top, right, bottom = zip(*boxes, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _moved(box: tuple[float, float, float, float], x: float, y: float) -> tuple[float, float, float, float]:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _draw_plan(rng: RandomState, area: float) -> _Plan:
    count = int(np.clip(round(area / _AREA_PER_OBJECT + rng.uniform(-1, 1)), 7, 14))
    signs = round(0.45 * count)
    # seven or eight objects have no room for a pair and three of a kind
    has_pair, has_counted = (True, True) if count > 8 else ((True, False) if rng.uniform() < 0.5 else (False, True))
    names = [list(PICTURES)[i] for i in rng.permutation(len(PICTURES)).tolist()]
    pair = names[:2] if has_pair else []
    counted = [names[2]] * int(rng.randint(1, 4)) if has_counted else []
    singles = names[3 : 3 + max(0, count - signs - len(pair) - len(counted))]
    return _Plan(
        pair=[draw_picture(rng, name) for name in pair],
        counted=[draw_picture(rng, name) for name in counted],
        signs=draw_signs(rng, signs),
        singles=[draw_picture(rng, name) for name in singles],
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Placed:
    item: Item
    x: float
    y: float


def _place(rng: RandomState, room: _Room, plan: _Plan, horizontal: bool) -> list[_Placed] | None:
    """Return the items with their places; None if one that may not be left out does not fit."""
    placed: list[_Placed] = []
    for row, across in ((plan.pair, horizontal), (plan.counted, bool(rng.uniform() < 0.5))):
        found = _place_row(rng, room, row, across, _ROW_HALO) if row else []
        if found is None:
            return None
        placed += found
    for item in [*plan.signs, *plan.singles]:
        place = room.find(rng, [(0, 0, item)], _GAP)
        if place is not None:
            placed.append(_Placed(item=item, x=place[0], y=place[1]))
        elif item.glyph:
            return None
    return placed


def _place_row(
    rng: RandomState, room: _Room, items: Sequence[Item], horizontal: bool, halo: float
) -> list[_Placed] | None:
    """Return items side by side, or one below the other; None if there is no room for them."""
    row = [(0.0, 0.0, items[0])]
    for item in items[1:]:
        x, y, last = row[-1]
        gap, slip = float(rng.uniform(*_ROW_GAP)), float(rng.uniform(-3, 3))
        if horizontal:
            row.append((x + last.extent[2] + gap - item.extent[0], slip, item))
        else:
            row.append((slip, y + last.extent[3] + gap - item.extent[1], item))
    place = room.find(rng, row, halo)
    return None if place is None else [_Placed(item=item, x=place[0] + x, y=place[1] + y) for x, y, item in row]


def _finish(rng: RandomState, room: _Room, items: list[_Placed], pairs: tuple[Pair, ...], counted: str) -> Layout:
    scale = 1 / room.scale
    objects = []
    for one in items:
        core = one.item.core
        objects.append(
            Object(
                kind="picture" if one.item.name else "sign",
                box=_box(one, scale),
                name=one.item.name,
                colour=one.item.colour,
                shape=one.item.shape,
                glyph=one.item.glyph,
                glyph_height=one.item.glyph_height * scale,
                vivid=one.item.sprite.vivid,
                glyph_centre=((one.x + (core[0] + core[2]) / 2) * scale, (one.y + (core[1] + core[3]) / 2) * scale),
            )
        )
    clutter = _draw_clutter(rng, room, {(o.colour, o.shape) for o in objects})
    return Layout(
        width=room.image_size[0],
        height=room.image_size[1],
        grid=room.grid,
        objects=tuple(objects),
        pairs=pairs,
        counted=counted,
        clutter=tuple(Clutter(box=_box(one, scale), vivid=one.item.sprite.vivid) for one in clutter),
        stamps=tuple(
            Stamp(
                sprite=one.item.sprite,
                x=one.x * scale,
                y=one.y * scale,
                half=one.item.half * scale,
                angle=one.item.angle,
                mirrored=one.item.mirrored,
            )
            for one in [*clutter, *items]
        ),
    )


def _box(one: _Placed, scale: float) -> Box:
    left, top, right, bottom = (side * scale for side in _moved(one.item.extent, one.x, one.y))
    return Box(left=left, top=top, right=right, bottom=bottom)


def _draw_clutter(rng: RandomState, room: _Room, taken: set[tuple[str, str]]) -> list[_Placed]:
    clutter = []
    for _ in range(int(room.width * room.height / _AREA_PER_CLUTTER)):
        item = draw_clutter(rng, taken)
        place = item and room.find(rng, [(0, 0, item)], 1.5, tries=8)
        if item and place:
            clutter.append(_Placed(item=item, x=place[0], y=place[1]))
    return clutter

"""The single things of a scene, with size, angle and looks, before they have a place.

Lengths are pixels of the crop grid, as in `layout`.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import RandomState

from ptp.demo.materials import (
    COLOURS,
    DIGITS,
    LETTERS,
    LIGHT_COLOURS,
    SHAPES,
    Colour,
    Sprite,
    draw_glyph,
    draw_sign,
    is_vivid,
    load_picture,
    write_glyph,
)
from ptp.demo.scenes import extent, pick

OBJECT_SIZES = (22.0, 30.0)
"""Smallest and largest longer side of an object's box, in grid pixels: about two tokens of 14 pixels."""

GLYPH_HEIGHTS = (9.5, 11.0)
"""Smallest and largest height of a sign's glyph, in grid pixels; in the thumbnail it is at most half of that."""

_CORE_MARGIN = 1.5  # between a glyph and the seam of two tiles


@dataclass(frozen=True, kw_only=True, eq=False)
class Item:
    """Something to be placed; all lengths in grid pixels.

    Attributes:
        extent: left, top, right and bottom of its box around the centre.
        core: what must lie inside one tile, around the centre.
    """

    sprite: Sprite
    half: float
    angle: float
    extent: tuple[float, float, float, float]
    core: tuple[float, float, float, float]
    mirrored: bool = False
    name: str = ""
    colour: str = ""
    shape: str = ""
    glyph: str = ""
    glyph_height: float = 0.0


def draw_signs(rng: RandomState, count: int) -> list[Item]:
    """Return signs of which no two have the same look or the same glyph.

    Args:
        rng: where chance comes from.
        count: how many.
    """
    # few colours and few shapes, so that neither alone says which sign is meant
    colours = [list(COLOURS)[i] for i in rng.permutation(len(COLOURS))[: 2 + count // 3]]
    shapes = [list(SHAPES)[i] for i in rng.permutation(len(SHAPES))[: 2 + count // 3]]
    looks = [(colour, shape) for colour in colours for shape in shapes]
    digits, letters = ([glyphs[i] for i in rng.permutation(len(glyphs))] for glyphs in (DIGITS, LETTERS))
    items = []
    for i in rng.permutation(len(looks))[:count]:
        glyph = (digits if rng.uniform() < 0.5 else letters).pop()
        colour, shape = looks[i]
        items.append(_draw_sign_with(rng, colour, shape, glyph))
    return items


def _draw_sign_with(rng: RandomState, colour: str, shape: str, glyph: str) -> Item:
    tone = _jittered(rng, COLOURS[colour])
    glyph_height = float(rng.uniform(*GLYPH_HEIGHTS))
    angle = math.radians(rng.uniform(-12, 12))
    side = float(rng.uniform(SHAPES[shape].smallest, OBJECT_SIZES[1]))
    box = extent(SHAPES[shape].corners, 1.0, angle)
    longest = max(box[2] - box[0], box[3] - box[1])
    unturned = float(np.ptp(SHAPES[shape].corners, axis=0).max())
    half = min(side / unturned, (OBJECT_SIZES[1] - 0.3) / longest)
    half = max(half, (OBJECT_SIZES[0] + 0.3) / longest)
    dark = colour in LIGHT_COLOURS
    image = draw_sign(shape, tone, _jittered(rng, (20, 20, 20) if dark else (236, 236, 236)))
    ink: Colour = (16, 16, 16) if dark else (245, 245, 245)
    write_glyph(image, glyph, ink, share=glyph_height / (half * unturned), drop=SHAPES[shape].drop)
    sprite = Sprite(image=image, outline=SHAPES[shape].corners, vivid=is_vivid(COLOURS[colour]))
    drop = SHAPES[shape].drop * half
    x, y = -math.sin(angle) * drop, math.cos(angle) * drop
    reach = glyph_height / 2 + _CORE_MARGIN
    return Item(
        sprite=sprite,
        half=half,
        angle=angle,
        extent=extent(sprite.outline, half, angle),
        core=(x - reach, y - reach, x + reach, y + reach),
        colour=colour,
        shape=shape,
        glyph=glyph,
        glyph_height=glyph_height,
    )


def draw_picture(rng: RandomState, name: str) -> Item:
    """Return a picture.

    Args:
        rng: where chance comes from.
        name: one of `PICTURES`.
    """
    sprite = load_picture(name)
    angle = math.radians(rng.uniform(-12, 12))
    mirrored = bool(rng.uniform() < 0.5)
    box = extent(sprite.outline, 1.0, angle, mirrored)
    longest = max(box[2] - box[0], box[3] - box[1])
    half = float(rng.uniform(OBJECT_SIZES[0] + 1, OBJECT_SIZES[1] - 0.3)) / longest
    around = extent(sprite.outline, half, angle, mirrored)
    left, top, right, bottom = around
    return Item(
        sprite=sprite,
        half=half,
        angle=angle,
        mirrored=mirrored,
        extent=around,
        core=(left / 2, top / 2, right / 2, bottom / 2),
        name=name,
    )


def _jittered(rng: RandomState, colour: Colour, amount: float = 10) -> Colour:
    red, green, blue = np.clip(np.array(colour) + rng.uniform(-amount, amount, 3), 0, 255).astype(int).tolist()
    return red, green, blue


def draw_clutter(rng: RandomState, taken: set[tuple[str, str]]) -> Item | None:
    """Return a small plain shape or a small bare glyph, at any angle; None if it would look like a sign's.

    Args:
        rng: where chance comes from.
        taken: colour and shape of the scene's signs.
    """
    angle = math.radians(rng.uniform(-180, 180))
    colour = pick(rng, list(COLOURS))
    if rng.uniform() < 0.5:
        shape = pick(rng, list(SHAPES))
        if (colour, shape) in taken:
            return None
        face = draw_sign(shape, COLOURS[colour], COLOURS[colour])
        sprite = Sprite(image=face, outline=SHAPES[shape].corners, vivid=is_vivid(COLOURS[colour]))
        half = float(rng.uniform(3.5, 6.5))
    else:
        sprite, half = draw_glyph(pick(rng, DIGITS + LETTERS), COLOURS[colour]), float(rng.uniform(5, 7))
    return Item(
        sprite=sprite, half=half, angle=angle, extent=extent(sprite.outline, half, angle), core=(0.0, 0.0, 0.0, 0.0)
    )

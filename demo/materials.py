"""What scenes are made of: pictures of named things, signs with a glyph, photographic backgrounds.

The files under `materials/` were made by `fetch_materials.py`; `materials/README.md` lists sources and licences.
"""

import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

# Resolved, because an editable install may link this file from elsewhere without the folder next to it.
MATERIALS = Path(__file__).resolve().parent / "materials"
"""Folder of the shipped pictures and backgrounds."""

Colour = tuple[int, int, int]

PICTURES = {
    **{"dog": "1f436", "rabbit": "1f430", "frog": "1f438", "penguin": "1f427", "fox": "1f98a", "turtle": "1f422"},
    **{"bee": "1f41d", "butterfly": "1f98b", "crab": "1f980", "cow": "1f42e", "snail": "1f40c", "apple": "1f34e"},
    **{"banana": "1f34c", "strawberry": "1f353", "donut": "1f369", "mushroom": "1f344", "cactus": "1f335"},
    **{"tree": "1f333", "car": "1f697", "bus": "1f68c", "boat": "26f5", "plane": "2708-fe0f", "key": "1f511"},
    **{"clock": "23f0", "book": "1f4d5", "guitar": "1f3b8", "umbrella": "2602-fe0f", "hat": "1f3a9"},
    **{"gift": "1f381", "house": "1f3e0", "anchor": "2693", "robot": "1f916"},
}
"""One-word names of the pictures, with the code points of their emoji. None of them is seen on a background."""

PLURALS = {
    **{"butterfly": "butterflies", "strawberry": "strawberries"},
    **{"cactus": "cactuses", "bus": "buses", "fox": "foxes"},
}
"""Plurals that do not merely add an s; `plural` knows the others."""

BACKGROUNDS = (
    *("astronaut", "brick", "camera", "cell", "coffee"),
    *("grass", "gravel", "hubble_deep_field", "retina", "rocket"),
)
"""File names, without suffix, of the backgrounds; those of scikit-image's data folder."""

COLOURS: dict[str, Colour] = {
    "red": (205, 62, 62),
    "orange": (232, 138, 48),
    "yellow": (222, 204, 60),
    "green": (62, 156, 84),
    "blue": (66, 106, 212),
    "purple": (148, 80, 184),
    "black": (58, 58, 60),
    "white": (208, 208, 206),
}
"""Colours of signs; none at its extreme, so that a glyph on it can be brighter or darker."""

LIGHT_COLOURS = ("orange", "yellow", "white")
"""Colours on which glyphs are darker than the face; on the others they are brighter."""

VIVID = 0.42
"""Chroma, largest less smallest of red, green and blue on a scale of 1, from which on a thing draws the eye: half of
the colours and of the pictures have it."""

DIGITS = "23456789"
LETTERS = "ACEFHJKLMNPRTUXY"
"""Glyphs, without those that look like another: 0, O, D, Q; 1, I; Z like 2; S like 5; G like 6; B like 8; V like U."""

SPRITE = 96
"""Side in pixels of the squares that objects are drawn on before they are turned and scaled into the scene."""

STROKE = 2
"""What is added to the strokes of glyphs, in pixels of a 96-pixel font."""

_MARGIN = 0.95
"""Half the longest side of a shape, where 1 is half the side of its square."""

_BORDER = 0.87
"""Size of a shape inside its border."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A sign's shape.

    Attributes:
        corners: (n, 2) x and y, where the square that it is drawn on spans −1 … 1.
        drop: how far below the middle the glyph's centre lies, in the same unit.
        smallest: smallest side in pixels of the crop grid on which a glyph of `layout.GLYPH_HEIGHTS` fits.
    """

    corners: NDArray[np.float64]
    drop: float = 0.0
    smallest: float


def _ring(count: int, start: float, radii: tuple[float, ...] = (1.0,)) -> NDArray[np.float64]:
    angles = np.deg2rad(start) + np.arange(count) * 2 * math.pi / count
    radius = np.resize(np.array(radii), count)
    corners = np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
    low, high = corners.min(0), corners.max(0)
    scaled: NDArray[np.float64] = (corners - (low + high) / 2) * (2 * _MARGIN / (high - low).max())
    return scaled


SHAPES = {
    "circle": Shape(corners=_ring(48, 0), smallest=22.5),
    "square": Shape(corners=_ring(4, 45), smallest=22.5),
    "triangle": Shape(corners=_ring(3, -90), drop=0.3, smallest=28),
    "diamond": Shape(corners=_ring(4, 0), smallest=26),
    "star": Shape(corners=_ring(10, -90, (1.0, 0.58)), drop=0.06, smallest=28),
    "hexagon": Shape(corners=_ring(6, 0), smallest=23),
}
"""Shapes of signs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sprite:
    """Something to draw.

    Attributes:
        image: RGBA, `SPRITE` × `SPRITE`.
        outline: (n, 2) points x, y around what is visible; the square spans −1 … 1.
        vivid: whether its colours draw the eye.
    """

    image: Image.Image
    outline: NDArray[np.float64]
    vivid: bool


def is_vivid(colours: ArrayLike) -> bool:
    """Return whether the mean chroma of RGB colours (…, 3), 0 to 255, reaches `VIVID`."""
    return bool(np.ptp(np.asarray(colours, float), axis=-1).mean() >= VIVID * 255)


def plural(name: str) -> str:
    """Return the plural of a picture's name."""
    return PLURALS.get(name, f"{name}s")


@cache
def load_picture(name: str) -> Sprite:
    """Return a picture.

    Args:
        name: one of `PICTURES`.
    """
    with Image.open(MATERIALS / "pictures" / f"{name}.webp") as file:
        image = file.convert("RGBA")
    opaque = np.asarray(image.getchannel("A")) > 127
    rows = np.flatnonzero(opaque.any(1))
    first, last = opaque.argmax(1)[rows], opaque.shape[1] - opaque[:, ::-1].argmax(1)[rows]
    edges = [np.stack([x, y], axis=1) for x in (first, last) for y in (rows, rows + 1)]
    outline = np.concatenate(edges) * (2 / opaque.shape[0]) - 1
    vivid = is_vivid(np.asarray(image)[opaque][:, :3])
    return Sprite(image=image.resize((SPRITE, SPRITE), Image.Resampling.BICUBIC), outline=outline, vivid=vivid)


@cache
def load_background(name: str) -> Image.Image:
    """Return a background, RGB or, where it has no colours of its own, L.

    Args:
        name: one of `BACKGROUNDS`.
    """
    with Image.open(MATERIALS / "backgrounds" / f"{name}.jpg") as file:
        file.load()
        return file.copy()


@cache
def glyph_mask(glyph: str) -> Image.Image:
    """Return a glyph, mode L, cut close.

    Args:
        glyph: one character.
    """
    # Pillow carries this font inside (Aileron, CC0), so that it is the same everywhere
    canvas = Image.new("L", (192, 192))
    ImageDraw.Draw(canvas).text((48, 32), glyph, fill=255, font=ImageFont.load_default(96), stroke_width=STROKE)
    return canvas.crop(canvas.getbbox())


@cache
def _shape_masks(name: str) -> tuple[Image.Image, Image.Image]:
    fine = 4 * SPRITE
    masks = []
    for factor in (1.0, _BORDER):
        canvas = Image.new("L", (fine, fine))
        points = (SHAPES[name].corners * factor + 1) * (fine / 2)
        ImageDraw.Draw(canvas).polygon([(x, y) for x, y in points.tolist()], fill=255)
        masks.append(canvas.resize((SPRITE, SPRITE), Image.Resampling.BOX))
    return masks[0], masks[1]


def draw_sign(shape: str, colour: Colour, border: Colour) -> Image.Image:
    """Return a sign without a glyph: RGBA, `SPRITE` × `SPRITE`.

    Args:
        shape: one of `SHAPES`.
        colour: of its face.
        border: colour of its border.
    """
    outer, inner = _shape_masks(shape)
    image = Image.new("RGBA", (SPRITE, SPRITE), (*border, 0))
    image.paste(border, mask=outer)
    image.paste(colour, mask=inner)
    return image


def write_glyph(sign: Image.Image, glyph: str, ink: Colour, *, share: float, drop: float) -> None:
    """Write a glyph on a sign.

    Args:
        sign: what to write on.
        glyph: one character.
        ink: its colour.
        share: the glyph's height as a share of the shape's longest side.
        drop: how far below the middle its centre lies; half a side of the square is 1.
    """
    mask = glyph_mask(glyph)
    height = round(share * SPRITE * _MARGIN)
    width = min(round(mask.width * height / mask.height), height)  # a wide letter is squeezed a little
    left, top = (SPRITE - width) // 2, round((1 + drop) * SPRITE / 2 - height / 2)
    sign.paste(ink, (left, top), mask.resize((width, height), Image.Resampling.BILINEAR))


def draw_glyph(glyph: str, ink: Colour) -> Sprite:
    """Return a glyph without a sign.

    Args:
        glyph: one character.
        ink: its colour.
    """
    mask = glyph_mask(glyph)
    height = 64
    mask = mask.resize((round(mask.width * height / mask.height), height), Image.Resampling.BILINEAR)
    image = Image.new("RGBA", (SPRITE, SPRITE), (*ink, 0))
    image.paste(ink, ((SPRITE - mask.width) // 2, (SPRITE - height) // 2), mask)
    x, y = mask.width / SPRITE, height / SPRITE
    outline = np.array([(-x, -y), (x, -y), (x, y), (-x, y)])
    return Sprite(image=image, outline=outline, vivid=is_vivid(ink))

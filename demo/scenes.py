"""What a scene consists of, and how it is drawn: signs and pictures on a photographic background."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from PIL import Image

from ptp.anyres import Grid
from ptp.demo.materials import (
    BACKGROUNDS,
    SPRITE,
    Sprite,
    load_background,
)

Kind = Literal["sign", "picture"]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in pixels of the image; x grows to the right, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        """Its width."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """Its height."""
        return self.bottom - self.top

    @property
    def centre(self) -> tuple[float, float]:
        """Its centre, x and y."""
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2


@dataclass(frozen=True, kw_only=True)
class Object:
    """Something that questions ask about.

    Attributes:
        kind: a sign (colour, shape, glyph) or a picture (name).
        box: what it covers.
        glyph_height: height of a sign's glyph in pixels of the image, before it was turned; 0 for a picture.
        glyph_centre: x and y of its middle.
        vivid: whether its colours draw the eye.
    """

    kind: Kind
    box: Box
    name: str = ""
    colour: str = ""
    shape: str = ""
    glyph: str = ""
    glyph_height: float = 0.0
    glyph_centre: tuple[float, float] = (0.0, 0.0)
    vivid: bool = False


@dataclass(frozen=True, kw_only=True)
class Clutter:
    """Something that nobody asks about: what it covers, and whether its colours draw the eye."""

    box: Box
    vivid: bool


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two pictures placed side by side, or one above the other: indices of the left or upper one, and of the other."""

    first: int
    second: int
    horizontal: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A scene before it is drawn.

    Attributes:
        width: of the image, in pixels.
        height: of the image, in pixels.
        grid: rows and columns of tiles that the model cuts it into.
        objects: what questions ask about.
        pairs: pairs of pictures; at most one in a scene that is asked about.
        counted: name of the picture that occurs one to three times, in a row; empty if there is none.
        clutter: what lies around besides, and nobody asks about.
        stamps: how the objects, and the clutter before them, are drawn.
    """

    width: int
    height: int
    grid: Grid
    objects: tuple[Object, ...]
    pairs: tuple[Pair, ...]
    counted: str
    clutter: tuple[Clutter, ...]
    stamps: tuple["Stamp", ...] = field(repr=False)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stamp:
    """A sprite at a place of the image: centre and half a side of its square in pixels, angle in radians."""

    sprite: Sprite
    x: float
    y: float
    half: float
    angle: float
    mirrored: bool = False

    def paint(self, canvas: Image.Image) -> None:
        """Draw it."""
        left, top, right, bottom = extent(self.sprite.outline, self.half, self.angle, self.mirrored)
        x0, y0 = math.floor(self.x + left) - 1, math.floor(self.y + top) - 1
        x1, y1 = math.ceil(self.x + right) + 1, math.ceil(self.y + bottom) + 1
        scale = SPRITE / 2 / self.half
        cos, sin = math.cos(self.angle) * scale, math.sin(self.angle) * scale
        dx, dy = x0 - self.x, y0 - self.y
        across = (cos, sin, cos * dx + sin * dy)
        down = (-sin, cos, -sin * dx + cos * dy)
        if self.mirrored:
            across = (-across[0], -across[1], -across[2])
        data = (across[0], across[1], across[2] + SPRITE / 2, down[0], down[1], down[2] + SPRITE / 2)
        patch = self.sprite.image.transform((x1 - x0, y1 - y0), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        canvas.paste(patch, (x0, y0), patch)


def extent(
    outline: NDArray[np.float64], half: float, angle: float, mirrored: bool = False
) -> tuple[float, float, float, float]:
    """Return left, top, right and bottom of a turned outline around its centre, in the unit of `half`.

    Args:
        outline: (n, 2) points x, y on a square that spans −1 … 1.
        half: half a side of that square.
        angle: clockwise, in radians.
        mirrored: whether left and right are swapped before it is turned.
    """
    x, y = outline[:, 0] * (-half if mirrored else half), outline[:, 1] * half
    cos, sin = math.cos(angle), math.sin(angle)
    across, down = cos * x - sin * y, sin * x + cos * y
    return float(across.min()), float(down.min()), float(across.max()), float(down.max())


def pick(rng: RandomState, items: Sequence[str]) -> str:
    """Return one of the items."""
    return items[int(rng.randint(len(items)))]


def draw_background(rng: RandomState, width: int, height: int) -> Image.Image:
    """Return a piece of a background, RGB: cropped, mirrored, tinted, brighter or darker.

    Args:
        rng: where chance comes from.
        width: in pixels.
        height: in pixels.
    """
    image = load_background(pick(rng, BACKGROUNDS))
    if rng.uniform() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.uniform() < 0.25:
        image = image.transpose(Image.Transpose.ROTATE_90)
    factor = min(image.width / width, image.height / height) * rng.uniform(0.45, 1)
    left = rng.uniform(0, image.width - width * factor)
    top = rng.uniform(0, image.height - height * factor)
    levels = np.arange(256) * rng.uniform(0.5, 1.0) + rng.uniform(0, 70)
    tint = rng.uniform(0.65, 1.1, 3) if image.mode == "L" else rng.uniform(0.9, 1.1, 3)
    curves = np.clip(np.outer(tint, levels), 0, 255).astype(np.uint8)
    image = image.convert("RGB").point(curves.ravel().tolist())
    box = (left, top, min(left + width * factor, image.width), min(top + height * factor, image.height))
    return image.resize((width, height), Image.Resampling.BILINEAR, box=box)


def paint(layout: Layout, rng: RandomState) -> Image.Image:
    """Return the picture of a scene, RGB.

    Args:
        layout: the scene.
        rng: where the background's chance comes from.
    """
    image = draw_background(rng, layout.width, layout.height)
    for stamp in layout.stamps:
        stamp.paint(image)
    return image

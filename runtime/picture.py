"""Draw which tokens of an image were kept: the thumbnail and the crops side by side, dropped tokens dimmed."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from ptp.anyres import Grid, PackedLayout, resized_inside
from ptp.bundle.manifest import Manifest
from ptp.bundle.summary import budget_line
from ptp.runtime.vision import VisualTokens

MAX_MOSAIC = 960
"""Longest side of the crops' panel, in pixels; the whole picture stays below 1600."""
MAX_THUMBNAIL = 480
MAX_CELL = 48
MARGIN, HEADER, CAPTION = 28, 78, 30
NEWLINE_GUTTER = 14

BACKGROUND, PANEL = (22, 24, 29), (46, 49, 56)
TEXT, MUTED, ACCENT = (236, 238, 241), (150, 156, 166), (255, 201, 71)
HATCH, BORDER = (72, 76, 85), (255, 255, 255)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class _Panel:
    """A grid of tiles on the picture.

    Attributes:
        image: the pixels, one `cell`×`cell` square for each token.
        kept: (rows, columns) bool, tokens that were kept.
        real: (rows, columns) bool, tokens that are not padding.
        newline: (rows,) bool, token rows whose newline token was kept; None where there are none.
        grid: rows and columns of tiles.
        budgets: tokens given to each of these tiles, in raster order.
        cell: side of a token in pixels.
        caption: what stands above.
    """

    image: Image.Image
    kept: Mask
    real: Mask
    newline: Mask | None
    grid: Grid
    budgets: tuple[int, ...]
    cell: int
    caption: str

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels, caption and newline gutter included."""
        gutter = 0 if self.newline is None else NEWLINE_GUTTER
        return self.image.width + gutter, self.image.height + CAPTION


def draw_kept(image: Image.Image, visual: VisualTokens, manifest: Manifest) -> Image.Image:
    """Return a picture of the tokens that were kept, at most about 1600 pixels wide.

    Args:
        image: the image that `visual` was made of, upright and RGB (`load_image`).
        visual: its tokens.
        manifest: the bundle's.
    """
    layout = visual.layout(manifest.tiling)
    panels = (_thumbnail_panel(image, visual, layout), _crops_panel(image, visual, layout))
    lines = _header(visual, manifest)
    fonts = (ImageFont.load_default(22), ImageFont.load_default(15))
    text_width = max(int(font.getlength(line)) for font, line in zip(fonts, lines, strict=True))
    width = max(sum(panel.size[0] for panel in panels) + MARGIN, text_width)
    height = HEADER + max(panel.size[1] for panel in panels) + CAPTION
    picture = Image.new("RGB", (width + 2 * MARGIN, height + MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 18), lines[0], TEXT, fonts[0])
    draw.text((MARGIN, 50), lines[1], MUTED, fonts[1])
    x = MARGIN
    for panel in panels:
        _draw_panel(picture, panel, (x, HEADER + 8))
        x += panel.size[0] + MARGIN
    _draw_legend(draw, (MARGIN, height), newline=panels[1].newline is not None)
    return picture


def draw_levels(
    image: Image.Image, visual: VisualTokens, manifest: Manifest, *, longest: int = MAX_MOSAIC
) -> tuple[Image.Image, Image.Image]:
    """Return the thumbnail and the crops, without padding and without text: for a page that has words of its own.

    Args:
        image: the image that `visual` was made of, upright and RGB (`load_image`).
        visual: its tokens.
        manifest: the bundle's.
        longest: bound on the longest side of the crops, in pixels.
    """
    layout = visual.layout(manifest.tiling)
    thumbnail = _thumbnail_panel(image, visual, layout, longest // 2)
    crops = _crops_panel(image, visual, layout, longest)
    top, left = (tokens * crops.cell for tokens in layout.padding)
    return _shade(thumbnail), _shade(crops).crop((left, top, crops.image.width - left, crops.image.height - top))


def _header(visual: VisualTokens, manifest: Manifest) -> tuple[str, str]:
    used = "" if visual.count == manifest.pruning.num_kept else f", {visual.count} used by this image"
    height, width = visual.tiles.image_size
    title = f"{visual.count} of {visual.packed_length} tokens kept   {width} x {height} pixels   {manifest.model.id}"
    return title, budget_line(manifest.pruning, manifest.tiling) + used


def _thumbnail_panel(
    image: Image.Image, visual: VisualTokens, layout: PackedLayout, longest: int = MAX_THUMBNAIL
) -> _Panel:
    side = layout.side
    cell = max(1, min(MAX_CELL, longest // side))
    kept = np.zeros((side, side), np.bool_)
    for position in visual.positions[visual.positions < side * side]:
        kept[divmod(int(position), side)] = True
    return _Panel(
        image=image.resize((side * cell, side * cell), Image.Resampling.LANCZOS),
        kept=kept,
        real=np.ones_like(kept),
        newline=None,
        grid=(1, 1),
        budgets=(int(visual.tile_budgets[0]),),
        cell=cell,
        caption="thumbnail: the whole image",
    )


def _crops_panel(image: Image.Image, visual: VisualTokens, layout: PackedLayout, longest: int = MAX_MOSAIC) -> _Panel:
    rows, columns = layout.grid[0] * layout.side, layout.grid[1] * layout.side
    cell = max(1, min(MAX_CELL, longest // max(rows, columns)))
    kept, newline = np.zeros((rows, columns), np.bool_), np.zeros(rows, np.bool_)
    for position in visual.positions[visual.positions >= layout.side**2]:
        token = layout.cell(int(position))
        tile_row, tile_column = divmod(token.tile - 1, layout.grid[1])
        row = tile_row * layout.side + token.row
        if token.is_newline:
            newline[row] = True
        else:
            kept[row, tile_column * layout.side + token.column] = True
    real = np.zeros_like(kept)
    top, left = layout.padding
    real[top : rows - top, left : columns - left] = True
    return _Panel(
        image=_padded(image, rows * cell, columns * cell),
        kept=kept,
        real=real,
        newline=newline if newline.any() else None,
        grid=layout.grid,
        budgets=tuple(int(x) for x in visual.tile_budgets[1 : visual.tiles.count]),
        cell=cell,
        caption=f"crops: grid of {layout.grid[0]} x {layout.grid[1]} tiles",
    )


def _padded(image: Image.Image, height: int, width: int) -> Image.Image:
    new_height, new_width = resized_inside(image.height, image.width, height, width)
    canvas = Image.new("RGB", (width, height))
    resized = image.resize((new_width, new_height), Image.Resampling.LANCZOS)
    canvas.paste(resized, ((width - new_width) // 2, (height - new_height) // 2))
    return canvas


def _draw_panel(picture: Image.Image, panel: _Panel, origin: tuple[int, int]) -> None:
    x, y = origin[0], origin[1] + CAPTION
    draw = ImageDraw.Draw(picture)
    draw.text(origin, panel.caption, TEXT, ImageFont.load_default(17))
    picture.paste(_shade(panel), (x, y))
    _draw_tiles(draw, panel, (x, y))
    if panel.newline is not None:
        left = x + panel.image.width + 5
        for row in np.flatnonzero(panel.newline):
            top = y + int(row) * panel.cell
            draw.rectangle((left, top + 1, left + 4, top + max(2, panel.cell - 2)), ACCENT)


def _shade(panel: _Panel) -> Image.Image:
    """Return the panel's pixels: dropped tokens dimmed, kept ones outlined, padding hatched."""
    dimmed = ImageEnhance.Brightness(ImageEnhance.Color(panel.image).enhance(0.15)).enhance(0.4)
    shown = Image.composite(panel.image, dimmed, _scaled(panel.kept, panel.cell))
    shown = Image.composite(shown, _hatched(shown.size), _scaled(panel.real, panel.cell))
    draw, (right, bottom) = ImageDraw.Draw(shown), (shown.width - 1, shown.height - 1)
    for start, end in _outline(panel.kept):
        draw.line([(min(panel.cell * c, right), min(panel.cell * r, bottom)) for r, c in (start, end)], ACCENT, 1)
    return shown


def _draw_tiles(draw: ImageDraw.ImageDraw, panel: _Panel, origin: tuple[int, int]) -> None:
    rows, columns = panel.kept.shape[0] // panel.grid[0], panel.kept.shape[1] // panel.grid[1]
    font = ImageFont.load_default(14)
    for tile, budget in enumerate(panel.budgets):
        row, column = divmod(tile, panel.grid[1])
        real = panel.real[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]
        x, y = origin[0] + column * columns * panel.cell, origin[1] + row * rows * panel.cell
        draw.rectangle((x, y, x + columns * panel.cell, y + rows * panel.cell), outline=BORDER, width=1)
        label = f"{budget} of {int(real.sum())}"
        width = int(font.getlength(label)) + 12
        draw.rectangle((x, y, x + width, y + 21), fill=BACKGROUND, outline=BORDER)
        draw.text((x + 6, y + 3), label, TEXT, font)


def _draw_legend(draw: ImageDraw.ImageDraw, origin: tuple[int, int], *, newline: bool) -> None:
    x, y = origin
    font = ImageFont.load_default(14)
    entries = [("kept", (214, 140, 90), ACCENT), ("dropped", PANEL, MUTED), ("padding, no token", BACKGROUND, HATCH)]
    if newline:
        entries.append(("newline token kept", ACCENT, ACCENT))
    for label, fill, outline in entries:
        draw.rectangle((x, y, x + 14, y + 14), fill, outline)
        draw.text((x + 22, y - 2), label, MUTED, font)
        x += 22 + int(font.getlength(label)) + 26


def _scaled(mask: Mask, cell: int) -> Image.Image:
    return Image.fromarray(np.kron(mask, np.full((cell, cell), 255, np.uint8)))


def _hatched(size: tuple[int, int]) -> Image.Image:
    image = Image.new("RGB", size, BACKGROUND)
    draw = ImageDraw.Draw(image)
    for offset in range(-size[1], size[0], 9):
        draw.line((offset, size[1], offset + size[1], 0), HATCH, 1)
    return image


def _outline(mask: Mask) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Yield the edges between kept tokens and others, as pairs of corners (row, column) in tokens."""
    edged = np.pad(mask, 1)
    for row, column in np.argwhere(edged[1:, 1:-1] != edged[:-1, 1:-1]).tolist():
        yield (row, column), (row, column + 1)
    for row, column in np.argwhere(edged[1:-1, 1:] != edged[1:-1, :-1]).tolist():
        yield (row, column), (row + 1, column)

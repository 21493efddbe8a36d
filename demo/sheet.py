"""Contact sheets of scenes: what a person sees, what the model sees, and the questions."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from ptp.demo.labels import model_view

if TYPE_CHECKING:
    from ptp.demo.task import Scene

_SIZE = 340
_TEXT = 15
_GAP = 12


def draw_sheet(scenes: Sequence["Scene"], columns: int = 2) -> Image.Image:
    """Return all scenes in one picture, RGB.

    Args:
        scenes: the scenes.
        columns: how many stand side by side.
    """
    panels = [_panel(scene) for scene in scenes]
    lines = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    width = columns * (max(panel.width for panel in panels) + _GAP)
    sheet = Image.new("RGB", (width, sum(max(p.height for p in line) + _GAP for line in lines)), "white")
    y = 0
    for line in lines:
        for column, panel in enumerate(line):
            sheet.paste(panel, (column * (width // columns), y))
        y += max(panel.height for panel in line) + _GAP
    return sheet


def _panel(scene: "Scene") -> Image.Image:
    whole = scene.image.copy()
    whole.thumbnail((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    thumbnail, crops = model_view(scene.image, scene.grid)
    views = [
        (f"{scene.image.width} x {scene.image.height}, grid {scene.grid[0]} x {scene.grid[1]}", whole),
        ("thumbnail, 3 x", thumbnail.resize((336, 336), Image.Resampling.BICUBIC)),
        ("crops, 2 x", crops.resize((2 * crops.width, 2 * crops.height), Image.Resampling.BICUBIC)),
    ]
    font = ImageFont.load_default(_TEXT)
    text = [f"{q.kind}: {q.text} {q.answer}" for q in scene.questions]
    height = 24 + max(view.height for _, view in views) + (_TEXT + 5) * ((len(text) + 2) // 3) + 8
    panel = Image.new("RGB", (_SIZE + 336 + 672 + 2 * _GAP, height), "white")
    draw = ImageDraw.Draw(panel)
    x = 0
    for title, view in views:
        draw.text((x, 2), title, fill="black", font=font)
        panel.paste(view, (x, 24))
        x += max(_SIZE, view.width) + _GAP
    top = 24 + max(view.height for _, view in views) + 6
    for i, line in enumerate(text):
        draw.text(((i % 3) * (panel.width // 3), top + (i // 3) * (_TEXT + 5)), line, fill="black", font=font)
    return panel

"""Draw `pyramid.svg`: which tokens the readable reference keeps of one image with made-up scores.

python docs/figures/pyramid.py
"""

from fractions import Fraction
from pathlib import Path

import numpy as np

from ptp.ptp_graph.reference import NEWLINE, keep_tokens, packed_sequence
from ptp.ptp_graph.schedule import Schedule

SIDE, GRID, SIZE = 8, (2, 2), (300, 440)
CELL, GAP = 15, 3
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2328; }
  .head { font-weight: 600; font-size: 15px; } .note { fill: #59636e; font-size: 13px; }
  .kept { fill: #0969da; } .real { fill: #d1d9e0; } .gone { fill: none; stroke: #d1d9e0; stroke-dasharray: 2 2; }
  .row { fill: #bc4c00; } .line { stroke: #59636e; fill: none; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; } .note { fill: #9198a1; } .kept { fill: #4493f8; } .real { fill: #3d444d; }
    .gone { stroke: #3d444d; } .row { fill: #f0883e; } .line { stroke: #9198a1; }
  }
"""


def blob(row: float, column: float, radius: float, rows: int, columns: int) -> np.ndarray:
    """Return a soft spot on a grid of tokens, its place given as fractions."""
    y, x = np.mgrid[0:rows, 0:columns]
    distance = ((y + 0.5) / rows - row) ** 2 + ((x + 0.5) / columns - column) ** 2
    return np.exp(-distance / radius**2)


def scores(spots: list[tuple[float, float, float]]) -> np.ndarray:
    """Return (T, N): spots of the whole image as thumbnail and crops see them."""
    thumbnail = sum(blob(*spot, SIDE, SIDE) for spot in spots)
    whole = sum(blob(*spot, GRID[0] * SIDE, GRID[1] * SIDE) for spot in spots)
    crops = whole.reshape(GRID[0], SIDE, GRID[1], SIDE).transpose(0, 2, 1, 3).reshape(-1, SIDE * SIDE)
    return np.concatenate([thumbnail.reshape(1, -1), crops]).astype(np.float32)


def main() -> None:
    """Choose with the reference and draw."""
    schedule = Schedule(keep=Fraction(1, 4), side=SIDE, grids=(GRID,))
    saliency = scores([(0.4, 0.3, 0.16), (0.62, 0.72, 0.12)])
    relevance = scores([(0.33, 0.78, 0.1)])
    weights = np.array([0, 0.36, 0.24, 0.16, 0.24], np.float32)
    kept = keep_tokens(schedule, SIZE, GRID, saliency, weights, relevance, 0.5)
    real, levels = set(packed_sequence(*SIZE, GRID, SIDE)), schedule.levels
    rows = len([source for source in kept.sources if source == NEWLINE])

    parts: list[str] = []

    def text(x: float, y: float, words: str, kind: str = "") -> None:
        parts.append(f'<text x="{x}" y="{y}" class="{kind}">{words}</text>')

    def tile(number: int, x: float, y: float) -> None:
        for token in range(SIDE * SIDE):
            source = number * SIDE * SIDE + token
            kind = "kept" if source in kept.sources else "real" if source in real else "gone"
            row, column = divmod(token, SIDE)
            parts.append(
                f'<rect x="{x + column * CELL}" y="{y + row * CELL}" width="{CELL - 3}" height="{CELL - 3}" '
                f'rx="2" class="{kind}"/>'
            )

    span = SIDE * CELL
    left, top, base = 30, 30, 210
    tile(0, left + (span + GAP) / 2, top)
    for crop in range(GRID[0] * GRID[1]):
        row, column = divmod(crop, GRID[1])
        tile(1 + crop, left + column * (span + GAP), base + row * (span + GAP))
    first = (2 * SIDE - rows) // 2
    for row in range(first, first + rows):
        y = base + row * CELL + (GAP if row >= SIDE else 0)
        parts.append(f'<rect x="{left + 2 * span + GAP + 8}" y="{y}" width="5" height="{CELL - 3}" class="row"/>')

    x, total = 330, levels.thumbnail + levels.crops
    text(x, 50, "Level thumbnail: the whole image, downsampled", "head")
    text(x, 74, f"⌊keep · N⌋ = {levels.thumbnail} of {SIDE * SIDE} tokens, the best by s")
    text(x, 96, "s = (1 − α) · b + α · c: CLS attention b inside the tile, relevance c to the question", "note")
    text(x, 232, "Level crops: the high-resolution grid", "head")
    text(x, 256, f"{levels.crops} tokens, divided by region weight w, no crop above its real tokens:")
    budgets = " + ".join(str(budget) for budget in kept.tile_budgets[1:])
    text(x, 280, f"{budgets} = {levels.crops}; inside each crop again the best by s")
    text(x, 302, "dashed: padding that anyres added and unpadding removes; it never takes part", "note")
    text(x, 352, "Level newline: one separator after each row", "head")
    text(x, 376, f"all that are real ({rows} here) of at most {levels.newline}; no score, not counted in keep")
    text(x, 426, f"K = {levels.thumbnail} + {levels.crops} + {levels.newline} = {levels.total} rows, always", "head")
    text(x, 450, f"{len(kept.positions)} tokens in packed order with their positions, then padding up to K;")
    text(x, 472, f"keep {float(schedule.keep):g}: {total} of {schedule.num_tokens} visual tokens", "note")
    body = "\n".join(parts)
    label = "Kept tokens of a thumbnail, of four crops and of the row separators, with the budget of each level"
    path = Path(__file__).with_suffix(".svg")
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 940 490" role="img" aria-label="{label}">\n'
        f"<style>{STYLE}</style>\n{body}\n</svg>\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()

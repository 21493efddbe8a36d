"""Scenes with questions that show the demo at work: in a report, in `scripts/demo`, in the README."""

import json
from pathlib import Path

from ptp.demo.task import make_scene

SPLIT = "test"
EXAMPLES: dict[int, tuple[str, ...]] = {
    0: ("Which digit is on the blue hexagon?", "What is next to the butterfly?"),
    1: ("Which letter is on the blue hexagon?",),
    2: ("How many crabs are there?",),
    3: ("Which letter is on the yellow diamond?",),
}
"""Questions by the number of their scene, which the shipped model answers right.

Two about one image show what the question does to the choice.
"""

_JPEG_QUALITY = 90


def write_examples(folder: Path) -> None:
    """Write the scenes as JPEG, and `examples.json` with the names of the images and the questions.

    Args:
        folder: where to; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, questions in EXAMPLES.items():
        name = f"scene-{index}.jpg"
        make_scene(SPLIT, index).image.save(folder / name, quality=_JPEG_QUALITY)
        entries += [{"image": name, "question": question} for question in questions]
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

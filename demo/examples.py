"""Scenes with questions that show the demo at work: in a report, in `scripts/demo`, in the README."""

import json
from pathlib import Path

from ptp.demo.task import make_scene

SPLIT = "test"
EXAMPLES = ((0, (0, 1)), (1, (0,)), (2, (0,)), (3, (0,)))
"""Number of a scene, and of its questions; two questions about one image show what the question does to the choice."""

_JPEG_QUALITY = 90


def write_examples(folder: Path) -> None:
    """Write the scenes as JPEG and `examples.json`, which names image, question and answer.

    Args:
        folder: where to; made if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for index, numbers in EXAMPLES:
        scene = make_scene(SPLIT, index)
        name = f"scene-{index}.jpg"
        scene.image.save(folder / name, quality=_JPEG_QUALITY)
        asked = [scene.questions[number] for number in numbers]
        entries += [{"image": name, "question": question.text} for question in asked]
    (folder / "examples.json").write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")

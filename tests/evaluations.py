"""A made-up evaluation, written beside a checkpoint."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from ptp.results import Difference, Family, Results, Row, weights_sha256

HOSTILE = "<script>alert(1)</script> & \"quoted\" 'too'?"
EXAMPLES = [
    ("wide.png", "What is in the picture?"),
    ("tall.png", "Where is it?"),
    ("tall.png", HOSTILE),
    ("square.png", "Who is this?"),
    ("small.png", "What colour is it?"),
]
SIZES = {"wide.png": (60, 190), "tall.png": (150, 70), "square.png": (112, 112), "small.png": (20, 30)}
KEEPS = (0.5, 0.25, 0.125)


def row(method: str, family: Family, keep: float, accuracy: float) -> Row:
    return Row(
        method=method,
        family=family,
        keep=keep,
        num_kept=int(100 * keep),
        accuracy=accuracy,
        low=accuracy - 0.05,
        high=accuracy + 0.05,
        cases=120,
        images=40,
    )


def results(weights: str = "0" * 64, task: str = "made-up/test") -> Results:
    falls = {"ptp": 0.05, "ptp-none": 0.1, "fastv": 0.12, "fastervlm": 0.14}
    families: dict[str, Family] = {"ptp": "ptp", "ptp-none": "ptp", "fastv": "question", "fastervlm": "blind"}
    rows = [row(name, families[name], keep, 0.8 - fall * (1 + i)) for name, fall in falls.items()
            for i, keep in enumerate(KEEPS)]  # fmt: skip
    differences = [
        Difference(method="ptp", against=name, keep=0.25, mean=0.1, low=-0.02, high=0.22) for name in families
    ]
    return Results(
        task=task,
        model="tiny",
        weights=weights,
        tools={"onnxruntime": "1.2.3"},
        rows=(row("unpruned", "unpruned", 1, 0.8), *rows),
        differences=tuple(differences[1:]),
    )


def write_evaluation(checkpoint: Path) -> None:
    """Write results, four images and five questions into a checkpoint's folder."""
    folder = checkpoint / "evaluation"
    folder.mkdir()
    (folder / "results.json").write_text(results(weights_sha256(checkpoint)).model_dump_json())
    entries = [{"image": image, "question": question} for image, question in EXAMPLES]
    (folder / "examples.json").write_text(json.dumps(entries))
    for name, size in SIZES.items():
        ramp = np.linspace(0, 255, size[0] * size[1] * 3).reshape(*size, 3)
        Image.fromarray(ramp.astype(np.uint8)).save(folder / name)

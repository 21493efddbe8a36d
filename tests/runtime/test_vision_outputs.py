"""A vision graph may return anything: what no image gives is one line, before anything is made of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_bundle import KEPT, FakeBundle
from PIL import Image

from ptp.errors import BackendError
from ptp.runtime.pipeline import Pipeline

IMAGE = Image.new("RGB", (20, 10))
LIES: dict[str, dict[str, Any]] = {
    "impossible num_valid; got 0; expected 1 to 7": {"num_valid": [0]},
    "impossible num_valid; got 8; expected 1 to 7": {"num_valid": [KEPT + 1]},
    "impossible num_valid; got -1": {"num_valid": [-1]},
    "impossible packed_length; got 57; expected 1 to 56": {"packed_length": [57]},
    "impossible packed_length; got -9223372036854775808": {"packed_length": [-(1 << 63)]},
    "impossible image_positions; expected ascending ones below 30": {"image_positions": [[0, 3, 3, 9, 21, 0, 0]]},
    "impossible image_positions; expected": {"image_positions": [[0, 3, 4, 9, 30, 0, 0]]},
    "impossible image_positions": {"image_positions": [[-1, 3, 4, 9, 21, 0, 0]]},
    "impossible image_features; expected finite numbers": {"image_features": np.full((1, KEPT, 6), np.nan)},
    "impossible image_feature": {"image_features": np.full((1, KEPT, 6), np.inf)},
    "impossible tile_budgets; expected 0 to 16 each, 7 at most together": {"tile_budgets": [[3, 3, 2]]},
    "impossible tile_budgets; expected": {"tile_budgets": [[-1, 2, 2]]},
    "impossible tile_budgets": {"tile_budgets": [[17, -17, 2]]},
    "impossible effective_alpha; got nan; expected 0 to 1": {"effective_alpha": [np.nan]},
    "impossible effective_alpha; got 1.5": {"effective_alpha": [1.5]},
    "an unexpected num_valid; got int64 []; expected int64 [1]": {"num_valid": 5},
    "an unexpected image_positions; got int64 [1, 3]; expected int64 [1, 7]": {"image_positions": [[0, 3, 4]]},
    "an unexpected image_features; got float32 [1, 7, 2]": {"image_features": np.zeros((1, KEPT, 2))},
    "an unexpected tile_budgets; got int32 [0, 3]": {"tile_budgets": np.zeros((0, 3))},
}


@pytest.mark.parametrize("words", LIES)
def test_what_no_image_gives_is_refused(tmp_path: Path, words: str) -> None:
    bundle = FakeBundle(tmp_path, script=[2])
    honest = bundle.compute["vision.onnx"]
    bundle.compute["vision.onnx"] = lambda feeds: honest(feeds) | {k: np.array(v) for k, v in LIES[words].items()}
    with pytest.raises(BackendError) as error:
        Pipeline(bundle.bundle, bundle.load_graph).encode(IMAGE, "hi")
    assert str(error.value).startswith(f"the vision graph returned {words}")


def test_padding_rows_may_hold_anything(tmp_path: Path) -> None:
    bundle = FakeBundle(tmp_path, script=[2])
    honest = bundle.compute["vision.onnx"]

    def padded(feeds: dict[str, Any]) -> dict[str, Any]:
        outputs = honest(feeds)
        outputs["image_positions"][:, 5:] = -9
        outputs["image_features"][:, 5:] = np.nan
        return outputs

    bundle.compute["vision.onnx"] = padded
    assert Pipeline(bundle.bundle, bundle.load_graph).encode(IMAGE, "hi").count == 5

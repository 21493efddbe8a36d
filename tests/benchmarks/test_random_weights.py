"""A bundle that leaves its weights behind and gets random ones runs, and has everything else that it had."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from ptp import Pipeline
from ptp.benchmarks import random_weights
from ptp.bundle import open_bundle
from ptp.bundle.writer import file_entry, write_manifest
from ptp.demo import CHECKPOINT

LARGE = 4096


def weights(bundle: Path, file: str) -> dict[str, np.ndarray]:
    return {x.name: numpy_helper.to_array(x, bundle / "onnx") for x in onnx.load(bundle / file).graph.initializer}


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path) -> tuple[Path, str]:
    """The demo's bundle, all weights of its decoder in a file beside it; and the decoder's name."""
    folder = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    manifest = open_bundle(folder).manifest
    file = manifest.graphs.decoder_model_merged.file
    data = f"{file}_data"
    onnx.save(
        onnx.load(folder / file),
        folder / file,
        save_as_external_data=True,
        location=Path(data).name,
        size_threshold=256,
    )
    files = manifest.files | {name: file_entry(folder / name) for name in (file, data)}
    write_manifest(folder, manifest.model_copy(update={"files": files}))
    return folder, file


def test_large_weights_are_drawn_and_small_ones_travel(
    bundle: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, file = bundle
    small = tmp_path / "small"
    monkeypatch.setattr(random_weights, "LARGE", LARGE)
    monkeypatch.setattr(random_weights, "DRAWN", 5000)  # less than a matrix has
    random_weights.strip(folder, small)
    assert not list(small.rglob("*.onnx_data"))
    random_weights.fill(small)
    assert {x.relative_to(small) for x in small.rglob("*")} == {x.relative_to(folder) for x in folder.rglob("*")}
    before, after = weights(folder, file), weights(small, file)
    drawn = 0
    for name, old in before.items():
        new = after[name]
        assert (new.shape, new.dtype) == (old.shape, old.dtype)
        if old.dtype != np.float32 or old.nbytes < LARGE:
            np.testing.assert_array_equal(new, old)
        else:
            drawn += 1
            assert new.std() == pytest.approx(len(old) ** -0.5, rel=0.1)
    assert drawn > 20
    answer = Pipeline.load(small).generate(CHECKPOINT / "evaluation/scene-0.jpg", "What is it?", max_new_tokens=2)
    assert answer.token_ids

"""Bundles and checkpoints that several tests share; each is made once per run."""

import hashlib
import os
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import skimage
from checkpoints import Geometry, write_checkpoint
from hypothesis import HealthCheck, settings

from ptp.demo import CHECKPOINT
from ptp.export import to_onnx
from ptp.export.config import ExportConfig
from ptp.export.graph_writer import GraphWriter, graph_file
from ptp.export.pipeline import export

# no test may depend on how fast the machine is, or how busy
settings.register_profile("ptp", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ptp")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("PTP_TRACEBACK", "1")  # what nobody expected is no line on stderr
        yield


UNCHANGING = {"demo": "demo", str(CHECKPOINT): "demo"}
"""Checkpoints that no test changes, and what they are called by every process of a run."""


@pytest.fixture(scope="session", autouse=True)
def _a_language_model_is_traced_once(tmp_path_factory: pytest.TempPathFactory):
    """Exports of a checkpoint differ in their vision graph; tracing the others again is half of the time they take.

    A test that changes how these others are made exports a checkpoint of its own.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "graphs"
    shared.mkdir(exist_ok=True)
    write, limit = GraphWriter.write, to_onnx.INLINE_LIMIT

    def write_once(self, module, io, name, **options):
        config = self.plan.config
        if name.startswith("vision_encoder") or config.model not in UNCHANGING or limit != to_onnx.INLINE_LIMIT:
            return write(self, module, io, name, **options)
        key = repr((UNCHANGING[config.model], name, io, config.opset, config.precision, config.quantization))
        kept = shared / hashlib.sha256(key.encode()).hexdigest()
        if kept.exists():
            file = self.stage / graph_file(name, config)
            file.parent.mkdir(exist_ok=True)
            shutil.copy(kept, file)
        spec = write(self, module, io, name, **options)  # leaves a file alone that is there
        if not kept.exists():
            shutil.copy(self.stage / spec.file, unfinished := base / kept.name)
            unfinished.replace(kept)
        return spec

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GraphWriter, "write", write_once)
        yield


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint at keep 0.25 with the similarity instruction; do not change it."""
    out = tmp_path_factory.mktemp("bundles") / "demo"
    export(ExportConfig(model="demo", out=out, keep=Fraction("0.25"), instruction="similarity", max_prompt=64))
    return out


@pytest.fixture(scope="session")
def full_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo checkpoint at keep 1 without an instruction, with a decoder for ONNX Runtime alone; do not change it."""
    out = tmp_path_factory.mktemp("bundles") / "full"
    export(
        ExportConfig(
            model=str(CHECKPOINT),
            out=out,
            keep=Fraction(1),
            instruction="none",
            max_prompt=64,
            optimize="onnxruntime",
        )
    )
    return out


@pytest.fixture(scope="session")
def branching_bundle(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of a tiny checkpoint, K as an input, up to all tokens, and graphs for ONNX Runtime alone."""
    out = tmp_path_factory.mktemp("bundles") / "branching"
    export(
        ExportConfig(
            model=str(tiny_checkpoint("llama")),
            out=out,
            keep=Fraction("0.5"),
            keep_range=(Fraction("0.25"), Fraction(1)),
            max_prompt=24,
            batch=2,
            optimize="onnxruntime",
        )
    )
    return out


@pytest.fixture
def copied_bundle(demo_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the demo bundle that a test may spoil."""
    return Path(shutil.copytree(demo_bundle, tmp_path / "copy"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random checkpoint whose language model is of the given type; do not change it."""
    made: dict[str, Path] = {}

    def get(language_model: str) -> Path:
        if language_model not in made:
            folder = tmp_path_factory.mktemp(language_model)
            made[language_model] = write_checkpoint(folder, Geometry(language_model=language_model))
            UNCHANGING[str(made[language_model])] = language_model
        return made[language_model]

    return get


@pytest.fixture(scope="session")
def photos() -> dict[str, Path]:
    """Real photographs from scikit-image's package (licences: its `skimage/data/_fetchers.py`)."""
    folder = Path(skimage.__file__).parent / "data"
    names = {"cat": "chelsea.png", "astronaut": "astronaut.png", "rocket": "rocket.jpg", "coffee": "coffee.png"}
    return {name: folder / file for name, file in names.items()}

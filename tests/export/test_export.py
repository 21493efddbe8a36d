"""Whole exports of tiny random checkpoints, and what stops one."""

import json
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from checkpoints import Geometry, write_checkpoint
from PIL import Image

from ptp import Pipeline
from ptp.bundle import open_bundle
from ptp.engines import tensorrt
from ptp.errors import BuildError, ConfigError, LintError, ParityError
from ptp.export import graph_writer, pipeline, to_onnx
from ptp.export.config import ExportConfig
from ptp.export.gates.images import gate_image


@pytest.mark.parametrize(
    ("language_model", "options"),
    [
        ("llama", {"keep": Fraction(1), "instruction": "none"}),
        ("mistral", {"keep": Fraction("0.25"), "precision": "fp16"}),
        ("qwen2", {"keep": Fraction("0.1"), "newline": "drop", "positions": "compact", "opset": 18}),
        ("llama", {"keep": Fraction("0.5"), "grid": (1, 2), "instruction": "similarity"}),
        ("qwen2", {"keep": Fraction("0.4"), "region": "thumbnail_attention", "thumbnail": "as_region"}),
        ("mistral", {"keep": Fraction("0.3"), "region": "uniform", "thumbnail": "keep_all", "instruction": "none"}),
        ("mistral", {"keep": Fraction("0.2"), "batch": 3, "alpha": "auto"}),
        ("llama", {"keep": Fraction("0.2"), "keep_range": (Fraction("0.05"), Fraction(1)), "instruction": "none"}),
        (
            "qwen2",
            {
                "keep": Fraction("0.5"),
                "keep_range": (Fraction("0.3"), Fraction("0.6")),
                "batch": 2,
                "precision": "fp16",
                "thumbnail": "keep_all",
                "opset": 19,
            },
        ),
    ],
)
def test_a_tiny_checkpoint_of_other_sizes_passes_the_gates(tiny_checkpoint, tmp_path, language_model, options):
    config = ExportConfig(model=str(tiny_checkpoint(language_model)), out=tmp_path / "out", max_prompt=32, **options)
    steps = []
    pipeline.export(config, lambda what, done, total: steps.append(what))
    manifest = open_bundle(config.out).manifest
    assert manifest.parity.kept_indices_equal
    assert len(manifest.parity.images) >= 8
    assert manifest.parity.tensorrt_rtx is not None  # scripts/install brings the builder: its gate never goes untested
    assert manifest.pruning.positions == config.positions
    assert manifest.opset == config.opset
    suffix = "_fp16" if config.precision == "fp16" else ""
    assert manifest.graphs.vision_encoder.file == f"onnx/vision_encoder{suffix}.onnx"
    assert {path.name for path in (config.out / "onnx").iterdir()} == {
        f"{name}{suffix}.onnx" for name in ("vision_encoder", "embed_tokens", "decoder_model_merged")
    }
    assert json.loads((config.out / "report.json").read_text())["images"][0]["feature_difference"] < 0.01
    assert "tracing vision_encoder" in steps
    assert not (config.out / "report.html").exists()  # there is no evaluation to report
    assert list(tmp_path.iterdir()) == [config.out]
    for graph in manifest.graphs.all:  # the manifest says what is in the files
        model = ir.load(config.out / graph.file)
        assert [value.name for value in model.graph.inputs] == [spec.name for spec in graph.inputs]
        assert [value.name for value in model.graph.outputs] == [spec.name for spec in graph.outputs]


def test_weights_of_the_first_blocks_are_written_once(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "INLINE_LIMIT", 1000)
    config = ExportConfig(
        model=str(tiny_checkpoint("llama")), out=tmp_path / "out", keep=Fraction("0.25"), max_prompt=16
    )
    manifest = pipeline.export(config).manifest
    assert manifest.parity.tensorrt_rtx is not None
    hidden, kv, mlp = 64, 16, 128
    first = 2 * hidden * hidden + 2 * kv * hidden + 3 * hidden * mlp
    second = hidden * hidden + kv * hidden  # queries and keys
    report = json.loads((config.out / "report.json").read_text())
    assert report["shared_weight_bytes"] == 4 * (first + second)
    names = [f"onnx/vision_encoder.onnx{end}" for end in ("", "_data")]
    assert all(name in manifest.files for name in names)
    open_bundle(config.out)


def test_a_k_at_run_time_chooses_as_each_fixed_export_does(tiny_checkpoint, tmp_path):
    """Two graphs, of which only one takes K: at the same K they return the same, and to the last bit."""
    options = {"model": str(tiny_checkpoint("llama")), "max_prompt": 16, "instruction": "similarity"}
    ranged = ExportConfig(
        out=tmp_path / "range", keep=Fraction("0.3"), keep_range=(Fraction("0.05"), Fraction(1)), **options
    )
    pipeline.export(ranged)
    image = Image.fromarray(gate_image((150, 120), 3))
    for keep in ("1/3", "1"):
        fixed = ExportConfig(out=tmp_path / "fixed", keep=Fraction(keep), force=True, **options)
        pipeline.export(fixed)
        expected = Pipeline.load(fixed.out).encode(image, "Where is it?")
        found = Pipeline.load(ranged.out).encode(image, "Where is it?", keep=keep)
        assert found.positions.tolist() == expected.positions.tolist()
        assert found.tile_budgets.tolist() == expected.tile_budgets.tolist()
        np.testing.assert_array_equal(found.features, expected.features)
    with pytest.raises(
        ConfigError, match=r"outside the range.*got 0.04 \(K = 15\); expected 0.05 to 1 \(K = 16 to 92\)"
    ):
        Pipeline.load(ranged.out).encode(image, "Where is it?", keep="0.04")


def test_an_image_in_a_batch_is_seen_as_alone(tiny_checkpoint, tmp_path):
    """Each with its own size, grid and question; the last call has rows to spare."""
    options = {
        "model": str(tiny_checkpoint("qwen2")),
        "max_prompt": 32,
        "instruction": "similarity",
        "keep": Fraction("0.25"),
    }
    for name, batch in (("one", 1), ("three", 3)):
        pipeline.export(ExportConfig(out=tmp_path / name, batch=batch, **options))
    one, three = (Pipeline.load(tmp_path / name) for name in ("one", "three"))
    sizes = [(150, 120), (60, 190), (1, 300), (400, 90)]
    questions = [
        (Image.fromarray(gate_image(size, number)), "who? " * (1 + number)) for number, size in enumerate(sizes)
    ]
    together = [x.visual for x in three.stream_batch(questions, alpha="auto")]
    assert len(together) == 4
    assert len({x.tiles.grid for x in together}) > 1
    for (image, question), found in zip(questions, together, strict=True):
        expected = one.encode(image, question, alpha="auto")
        assert found.positions.tolist() == expected.positions.tolist()
        np.testing.assert_allclose(found.features, expected.features, atol=1e-5)
        assert found.alpha == pytest.approx(expected.alpha, abs=1e-5)


def test_a_language_model_of_one_block_cannot_be_asked(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", Geometry(layers=1))
    config = ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction("0.25"))
    with pytest.raises(ConfigError, match="needs the language model's second block; got 1 block"):
        pipeline.export(config)


def test_attention_that_onnxruntime_cannot_fuse_is_refused(tmp_path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", Geometry(heads=16))
    config = ExportConfig(model=str(checkpoint), out=tmp_path / "out", keep=Fraction(1), optimize="onnxruntime")
    with pytest.raises(ConfigError, match=r"got heads of 4; expected a multiple of 8; leave --optimize out"):
        pipeline.export(config)
    assert not config.out.exists()


def test_a_range_beyond_one_topk_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", Geometry(patch=2, vision_layers=2, grids=((2, 2),)))
    config = ExportConfig(
        model=str(folder), out=tmp_path / "out", keep=Fraction("0.25"), keep_range=(Fraction("0.1"), Fraction(1))
    )
    with pytest.raises(ConfigError, match=r"got K = 3976 at keep 1; expected at most 3840"):
        pipeline.export(config)


def test_more_kept_tokens_than_one_topk_takes_export_too(tmp_path):
    geometry = Geometry(patch=2, vision_layers=2, grids=((2, 2),))  # 784 tokens a tile
    folder = write_checkpoint(tmp_path / "checkpoint", geometry)
    config = ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1), instruction="none", max_prompt=8)
    manifest = pipeline.export(config).manifest
    assert manifest.pruning.num_kept == 5 * 784 + 56
    nodes = list(ir.load(tmp_path / "out" / manifest.graphs.vision_encoder.file).graph)
    assert sum(node.op_type == "TopK" for node in nodes) == 2


@pytest.mark.parametrize(
    ("owner", "gate_name", "error"),
    [
        (graph_writer, "lint", LintError),
        (pipeline, "check_parity", ParityError),
        (tensorrt, "try_build", BuildError),
    ],
)
def test_a_gate_that_fails_stops_the_export_and_nothing_is_written(
    tiny_checkpoint, tmp_path, monkeypatch, owner, gate_name, error
):
    def refuse(*arguments, **options):
        raise error("no")

    monkeypatch.setattr(tensorrt, "is_installed", lambda backend: gate_name == "try_build")
    monkeypatch.setattr(owner, gate_name, refuse)
    config = ExportConfig(model=str(tiny_checkpoint("llama")), out=tmp_path / "out", keep=Fraction(1, 2), max_prompt=8)
    if gate_name != "check_parity":
        monkeypatch.setattr(pipeline, "check_parity", lambda *a, **k: [])
    with pytest.raises(error, match="no"):
        pipeline.export(config)
    assert list(tmp_path.iterdir()) == []


def test_tensorrt_rtx_refuses_what_it_cannot_build_with_its_own_words(tmp_path):
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("TopK", ["x", "k"], ["y", "i"])],
        "topk",
        [tensor("x", onnx.TensorProto.INT32, [1, 9000])],
        [tensor("i", onnx.TensorProto.INT64, [1, 3841])],
        [onnx.numpy_helper.from_array(np.array([3841]), "k")],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)]), tmp_path / "topk.onnx")
    with pytest.raises(BuildError, match=r"TensorRT-RTX refused topk.onnx; got .*3840"):
        tensorrt.try_build(tmp_path / "topk.onnx")
    (tmp_path / "noise.onnx").write_bytes(b"noise")
    with pytest.raises(BuildError, match=r"noise\.onnx"):
        tensorrt.try_build(tmp_path / "noise.onnx")

"""Whole exports of tiny random checkpoints, and gates that see what is wrong."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from checkpoints import Geometry, write_checkpoint
from PIL import Image

from ptp import Pipeline
from ptp.anyres import PackedLayout, choose_grid
from ptp.benchmarks.random_feeds import random_feeds
from ptp.bundle import open_bundle
from ptp.engines import tensorrt
from ptp.errors import BuildError, ConfigError, LintError, ParityError
from ptp.export import graph_writer, pipeline, to_onnx
from ptp.export.checkpoint import find_weights, load_model, make_skeleton, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.gates import parity
from ptp.export.gates.images import gate_image, gate_sizes
from ptp.export.gates.oracle import ask_transformers
from ptp.export.gates.parity import check_parity
from ptp.export.plan import make_plan
from ptp.export.tile_by_tile import TileByTile
from ptp.export.to_onnx import save, trace
from ptp.export.vision import VisionGraph, build_vision_graph
from ptp.ptp_graph.region import region_weights
from ptp.ptp_graph.schedule import WEIGHT_LEVELS


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


def test_a_batch_that_is_filled_up_checks_each_image_once_at_each_k(parts, tmp_path, monkeypatch):
    checkpoint, plan, model, _ = parts
    wide = replace(plan, config=replace(plan.config, batch=8, instruction="none"),
                   schedule=replace(plan.schedule, keep_range=(Fraction("0.1"), Fraction("0.5"))))  # fmt: skip
    asked = []
    monkeypatch.setattr(
        "ptp.export.gates.parity.ask_transformers",
        lambda *arguments, **options: (asked.append(1), ask_transformers(*arguments, **options))[1],
    )
    results = gate((checkpoint, wide, model, build_vision_graph(wide, checkpoint, model)), tmp_path)
    images = {(result.height, result.width) for result in results}
    assert len(images) == len(asked)
    assert len(images) < len(results) <= 3 * len(images)


def test_a_range_beyond_one_topk_is_refused(tmp_path):
    folder = write_checkpoint(tmp_path / "checkpoint", Geometry(patch=2, vision_layers=2, grids=((2, 2),)))
    config = ExportConfig(
        model=str(folder), out=tmp_path / "out", keep=Fraction("0.25"), keep_range=(Fraction("0.1"), Fraction(1))
    )
    with pytest.raises(ConfigError, match=r"got K = 3976 at keep 1; expected at most 3840"):
        pipeline.export(config)


@pytest.mark.parametrize("side", [4, 24])
@pytest.mark.parametrize(
    "grids", [((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)), ((2, 2),), ((1, 1),), ((1, 6), (6, 1), (2, 3), (3, 2))]
)
def test_gate_images_cover_every_grid_and_padding_on_each_side(grids, side):
    tile = 14 * side
    sizes = gate_sizes(grids, tile, side)
    assert len(sizes) >= 8
    assert len(set(sizes)) == len(sizes)
    seen = {grid: set() for grid in grids}
    for height, width in sizes:
        grid = choose_grid(height, width, grids, tile)
        padding = PackedLayout(height=height, width=width, grid=grid, side=side).padding
        seen[grid].add((padding[0] > 0, padding[1] > 0))
    assert all(seen.values()), "a grid without an image"
    assert set.union(*seen.values()) >= {(False, False), (True, False), (False, True)}


@pytest.fixture(scope="module")
def parts(tiny_checkpoint, tmp_path_factory):
    """A tiny checkpoint, its plan, its model and its traced vision graph."""
    folder = tiny_checkpoint("llama")
    config = ExportConfig(model=str(folder), out=tmp_path_factory.mktemp("x"), keep=Fraction("0.25"), max_prompt=24)
    checkpoint = open_checkpoint(str(folder), None, weights=True)
    plan = make_plan(config, checkpoint)
    model = load_model(checkpoint, find_weights(checkpoint, "fp32"))
    return checkpoint, plan, model, build_vision_graph(plan, checkpoint, model)


def gate(parts, tmp_path, spoil=lambda traced: None):
    checkpoint, plan, model, graph = parts
    traced = trace(graph, plan.vision_io, opset=20)
    spoil(traced)
    save(traced, tmp_path / "vision.onnx")
    return check_parity([tmp_path / "vision.onnx"], plan, checkpoint, model)


def test_more_kept_tokens_than_one_topk_takes_export_too(tmp_path):
    geometry = Geometry(patch=2, vision_layers=2, grids=((2, 2),))  # 784 tokens a tile
    folder = write_checkpoint(tmp_path / "checkpoint", geometry)
    config = ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1), instruction="none", max_prompt=8)
    manifest = pipeline.export(config).manifest
    assert manifest.pruning.num_kept == 5 * 784 + 56
    nodes = list(ir.load(tmp_path / "out" / manifest.graphs.vision_encoder.file).graph)
    assert sum(node.op_type == "TopK" for node in nodes) == 2


def test_the_parity_gate_passes_an_honest_graph_and_leaves_no_file(parts, tmp_path):
    results = gate(parts, tmp_path)
    assert max(result.feature_difference for result in results) < 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["vision.onnx"]


def change_constant(traced, value_to, matches):
    for value in traced.graph.initializers.values():
        array = value.const_value.numpy()
        if matches(array):
            value.const_value = ir.tensor(value_to(array), name=value.name)
            return
    raise AssertionError("no such constant")


def test_a_graph_with_one_wrong_weight_fails(parts, tmp_path):
    def spoil(traced):
        change_constant(traced, lambda a: a * 1.01, lambda a: a.dtype == np.float32 and a.shape == (64, 64))

    with pytest.raises(ParityError, match=r"differs from transformers .* expected at most 1e-04"):
        gate(parts, tmp_path, spoil)


def test_a_graph_that_rounds_budgets_otherwise_fails(parts, tmp_path):
    def spoil(traced):
        change_constant(traced, lambda a: np.full_like(a, 8), lambda a: a.size == 1 and a == WEIGHT_LEVELS)

    with pytest.raises(ParityError, match="tile_budgets differs from the reference"):
        gate(parts, tmp_path, spoil)


def test_a_graph_that_weighs_the_question_otherwise_fails(parts, tmp_path, monkeypatch):
    monkeypatch.setattr("ptp.ptp_graph.fuse.adaptive_alpha", lambda bottom_up, *_: bottom_up.amax(dim=(1, 2)) * 0.4)
    with pytest.raises(ParityError, match="effective_alpha differs"):
        gate(parts, tmp_path)


def test_a_graph_without_its_scores_fails(parts, tmp_path):
    def rename(traced):
        for node in traced.graph:
            for value in node.outputs:
                if value.name == "token_saliency":
                    value.name = "renamed"

    with pytest.raises(ParityError, match="token_saliency"):
        gate(parts, tmp_path, rename)


def test_a_graph_that_starves_a_crop_fails(parts, tmp_path, monkeypatch):
    """The crops that count are the reference's, not those that the graph gives a weight."""

    def starve(rule, **signals):
        weights = region_weights(rule, **signals)
        return torch.where(torch.arange(weights.shape[1]) == 2, 0.0, weights)

    monkeypatch.setattr("ptp.export.vision.region_weights", starve)
    with pytest.raises(ParityError, match="region_weights differs from transformers"):
        gate(parts, tmp_path)


@pytest.mark.parametrize("instruction", ["similarity", "attention"])
def test_embeddings_near_zero_do_not_fail_an_honest_graph(tiny_checkpoint, tmp_path, instruction):
    """Untrained rows of real checkpoints are tiny: both sides must divide by the same smallest norm."""
    folder = tiny_checkpoint("llama")
    config = ExportConfig(
        model=str(folder), out=tmp_path, keep=Fraction("0.25"), max_prompt=24, instruction=instruction
    )
    checkpoint = open_checkpoint(str(folder), None, weights=True)
    plan = make_plan(config, checkpoint)
    model = load_model(checkpoint, find_weights(checkpoint, "fp32"))
    with torch.no_grad():
        model.get_input_embeddings().weight[::2] *= 1e-7
        model.get_input_embeddings().weight[1::4] *= 1e-3
    assert gate((checkpoint, plan, model, build_vision_graph(plan, checkpoint, model)), tmp_path)


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


def test_the_parity_gate_looks_at_every_form_of_the_graph(parts, tmp_path, monkeypatch):
    """A form that sees the tiles in another order is refused; that an honest one passes is seen by every export."""
    checkpoint, plan, model, graph = parts
    paths = [tmp_path / "vision.onnx", tmp_path / "by_tile.onnx"]
    save(trace(graph, plan.vision_io, opset=20), paths[0])
    honest = TileByTile.encode
    monkeypatch.setattr(TileByTile, "encode", lambda self, tiles: honest(self, tiles.flip(0)))
    skeleton = make_skeleton(checkpoint, find_weights(checkpoint, "fp32"))
    mirrored = build_vision_graph(plan, checkpoint, skeleton.model, control_flow=True)
    save(trace(mirrored, plan.vision_io, opset=20, initializers=skeleton.initializers(mirrored)), paths[1])
    assert [node.op_type for node in ir.load(paths[1]).graph].count("Scan") == 1
    with pytest.raises(ParityError, match="differs from transformers"):
        check_parity(paths, plan, checkpoint, model)


def test_the_question_is_left_aside_only_where_it_changes_nothing(branching_bundle, tmp_path):
    bundle = open_bundle(branching_bundle)
    pruning, tiling = bundle.manifest.pruning, bundle.manifest.tiling
    spec = bundle.manifest.graphs.vision_encoder_onnxruntime
    model = ir.load(bundle.path(spec.file))
    asked = next(node.outputs[0] for node in model.graph if node.op_type == "If")
    model.graph.outputs.append(asked)
    ir.save(model, tmp_path / "probed.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "probed.onnx", providers=["CPUExecutionProvider"])
    side = tiling.tile_size * 2
    fixed = {"image_sizes": [[side, side]] * 2, "tile_grid": [[2, 2]] * 2, "prefix_length": [3, 3]}

    def is_asked(num_kept, *alpha):
        feeds = random_feeds(spec.inputs, fixed | {"num_kept": [num_kept], "alpha": alpha})
        return bool(session.run([asked.name], feeds)[0].any())

    most = pruning.keep_range.max_kept
    assert not is_asked(most, 0.0, 1.0)
    assert is_asked(most, 0.5, -1.0)
    assert is_asked(most, 2.5, 0.5), "out of range, such a weight would let absent tokens outrank others"
    assert is_asked(most - 1, 0.5, 0.5)


def test_the_parity_gate_refuses_a_graph_that_never_looks_at_the_question(parts, tmp_path, monkeypatch):
    checkpoint, plan, model, _ = parts
    plan = replace(plan, schedule=replace(plan.schedule, keep=Fraction(1)))
    monkeypatch.setattr(VisionGraph, "_decides", lambda self, alpha, num_kept: (alpha > 1).any())
    skeleton = make_skeleton(checkpoint, find_weights(checkpoint, "fp32"))
    graph = build_vision_graph(plan, checkpoint, skeleton.model, control_flow=True)
    path = tmp_path / "vision.onnx"
    save(trace(graph, plan.vision_io, opset=20, initializers=skeleton.initializers(graph)), path)
    with pytest.raises(ParityError, match="relevance differs from transformers"):
        check_parity([path], plan, checkpoint, model)


def test_the_parity_gate_does_not_widen_all_float16_weights_at_the_start(tmp_path, monkeypatch):
    tensor, half = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT16
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "product",
        [tensor("x", half, [2, 8])],
        [tensor("y", half, [2, 8])],
        [onnx.numpy_helper.from_array(np.ones((8, 8), np.float16), "w")],
    )
    opsets = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "product.onnx")
    make = onnxruntime.SessionOptions

    def make_and_keep():
        options = make()
        options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
        return options

    def types_of_weights():
        return [x.data_type for x in onnx.load(tmp_path / "optimised.onnx").graph.initializer]

    onnxruntime.InferenceSession(tmp_path / "product.onnx", make_and_keep(), providers=["CPUExecutionProvider"])
    assert types_of_weights() == [onnx.TensorProto.FLOAT], "what ONNX Runtime does by itself"
    monkeypatch.setattr(onnxruntime, "SessionOptions", make_and_keep)
    parity._session(tmp_path / "product.onnx")
    assert types_of_weights() == [half]


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

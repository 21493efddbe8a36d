"""The parity gate passes an honest graph of tiny random weights and sees what is wrong with another."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from ptp.anyres import PackedLayout, choose_grid
from ptp.benchmarks.random_feeds import random_feeds
from ptp.bundle import open_bundle
from ptp.errors import ParityError
from ptp.export.checkpoint import find_weights, load_model, make_skeleton, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.gates import parity
from ptp.export.gates.images import gate_sizes
from ptp.export.gates.oracle import ask_transformers
from ptp.export.gates.parity import check_parity
from ptp.export.plan import make_plan
from ptp.export.tile_by_tile import TileByTile
from ptp.export.to_onnx import save, trace
from ptp.export.vision import VisionGraph, build_vision_graph
from ptp.ptp_graph.region import region_weights
from ptp.ptp_graph.schedule import WEIGHT_LEVELS


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

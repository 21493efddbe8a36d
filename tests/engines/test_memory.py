"""Estimates of memory against what the graphs hold and what builds take."""

import json
from dataclasses import replace
from fractions import Fraction
from types import SimpleNamespace

import onnx_ir as ir
import pytest
from checkpoints import Geometry, write_checkpoint
from fake_bundle import LAYERS, FakeBundle

from ptp.bundle import Bundle, open_bundle
from ptp.bundle.engine import KINDS, graph_of
from ptp.engines import memory
from ptp.engines.memory import Block, estimate, run_total, usable_bytes
from ptp.engines.profiles import default_max_context, profiles_of
from ptp.engines.targets import TARGETS
from ptp.engines.tensorrt import is_installed, run_builder
from ptp.errors import BundleError, SchemaError
from ptp.export import pipeline, to_onnx
from ptp.export.config import ExportConfig

CARD, BOARD = TARGETS["sm86"], TARGETS["orin-nano"]
CONFIG = {"vision_config": {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 16}, "text_config": {}}
SHARED = 700


@pytest.fixture
def fake(tmp_path):
    """Return a function that makes a bundle of files that are only listed, but for the two that are read."""

    def make(precision="fp32", batch=1, **changes) -> Bundle:
        (tmp_path / "config.json").write_text(json.dumps(CONFIG))
        (tmp_path / "report.json").write_text(json.dumps({"shared_weight_bytes": SHARED}))
        made = FakeBundle(folder=tmp_path, script=[5], batch=batch, changes=changes)
        sizes = {"vision.onnx": 1000, "vision.onnx_data": 5000, "embed.onnx": 300, "decoder.onnx": 2000}
        one = next(iter(made.manifest.files.values()))
        files = {f"onnx/{name}": one.model_copy(update={"bytes": size}) for name, size in sizes.items()}
        files |= {"config.json": one, "report.json": one}
        model = made.manifest.model.model_copy(update={"precision": precision})
        update = {"files": made.manifest.files | files, "model": model}
        return Bundle(folder=tmp_path, manifest=made.manifest.model_copy(update=update))

    return make


def test_weights_are_those_that_the_graph_refers_to(fake):
    bundle = fake()
    assert estimate(bundle, CARD, "visual", 100).weights == 1000 + 5000 + SHARED
    assert estimate(bundle, CARD, "llm", 100).weights == 2000
    assert estimate(bundle, CARD, "embed", 100).weights == 300


def test_the_cache_is_there_twice_and_grows_with_the_context(fake):
    one = LAYERS * 2 * 1 * 2 * 4  # layers, key and value, heads, width of a head, bytes
    assert estimate(fake(), CARD, "llm", 100).cache == 2 * 100 * one
    assert estimate(fake("fp16"), CARD, "llm", 100).cache == 2 * 100 * one // 2
    assert estimate(fake(), CARD, "visual", 100).cache == 0


def test_activations_are_those_of_the_largest_block(fake):
    tower = Block(width=8, heads=2, mlp=16)
    assert tower.values(5, scores=False) == 5 * (4 * 8 + 2 * 16)
    assert tower.values(5, scores=True) - tower.values(5, scores=False) == 2 * 2 * 5 * 5
    tiles = 3 * tower.values(1 + 16, scores=True)
    assert estimate(fake(), CARD, "visual", 100).activations == 4 * tiles
    assert estimate(fake(batch=2), CARD, "visual", 100).activations == 2 * 4 * tiles
    assert estimate(fake("fp16"), CARD, "visual", 100).activations == 4 * 3 * tower.values(1 + 16, scores=False)
    text = Block(width=6, heads=3, mlp=4 * 6)  # config.json leaves the MLP out
    assert estimate(fake(), CARD, "llm", 100).activations == 4 * text.values(24 + 7, scores=True)
    # the question is asked about all tokens: 3 tiles of 16, and 2 rows of tiles of 4 rows each
    asked = max(tiles, text.values(24 + 3 * 16 + 2 * 4, scores=True))
    assert asked > tiles
    assert estimate(fake(pruning={"instruction": "attention"}), CARD, "visual", 100).activations == 4 * asked


def test_a_card_holds_the_decoder_once_for_each_profile_and_a_board_builds_in_the_memory_it_runs_in(fake):
    bundle = fake()
    card, board = (estimate(bundle, target, "llm", 100) for target in (CARD, BOARD))
    assert card.run_bytes - board.run_bytes == card.weights
    assert card.build_bytes == memory.builder_bytes(card.weights, 2)
    assert board.build_bytes == memory.builder_bytes(board.weights) + board.activations
    visual = [estimate(bundle, target, "visual", 100) for target in (CARD, BOARD)]
    assert visual[0].run_bytes == visual[1].run_bytes == visual[0].weights + visual[0].activations
    assert run_total(visual) == memory.HOST_BYTES + 2 * visual[0].run_bytes
    table = estimate(bundle, CARD, "embed", 100)
    assert table.run_bytes == 300 + 4 * 24 * 6  # and the embeddings of the longest prompt


def test_a_board_shares_its_memory_with_its_system():
    assert usable_bytes(CARD) is None
    assert usable_bytes(BOARD) == (8 << 30) - memory.SYSTEM_BYTES
    assert usable_bytes(replace(BOARD, memory_bytes=4 << 30)) == (4 << 30) - memory.SYSTEM_BYTES


@pytest.mark.parametrize("text", ["{}", "[", '{"vision_config": {"hidden_size": -1}, "text_config": {}}', "\x00"])
def test_a_config_without_sizes_is_refused_in_one_line(fake, text):
    bundle = fake()
    (bundle.folder / "config.json").write_text(text)
    with pytest.raises(SchemaError, match=r"config\.json does not have the sizes that memory is estimated from; got "):
        estimate(bundle, CARD, "visual", 100)


def test_a_bundle_without_its_report_is_refused(fake):
    bundle = fake()
    files = {name: entry for name, entry in bundle.manifest.files.items() if name != "report.json"}
    stripped = replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))
    with pytest.raises(BundleError, match=r"no file 'report\.json'"):
        estimate(stripped, CARD, "visual", 100)


def held_bytes(path) -> int:
    """Return the bytes of the tensors that a graph refers to, each place in a file once."""
    tensors = [value.const_value for value in ir.load(path).graph.initializers.values()]
    places = {(x.location, x.offset): x.nbytes for x in tensors if isinstance(x, ir.ExternalTensor)}
    return sum(places.values()) + sum(x.nbytes for x in tensors if not isinstance(x, ir.ExternalTensor))


def test_the_weights_of_an_export_are_counted_where_they_are(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "INLINE_LIMIT", 1000)
    folder, keep = str(tiny_checkpoint("llama")), Fraction("0.25")
    bundle = pipeline.export(ExportConfig(model=folder, out=tmp_path / "out", keep=keep, max_prompt=16))
    graphs = bundle.manifest.graphs
    for kind in KINDS:
        spec = graph_of(kind, graphs)
        text = (bundle.folder / spec.file).stat().st_size
        held, estimated = held_bytes(bundle.folder / spec.file), estimate(bundle, CARD, kind, 100).weights
        assert held <= estimated <= held + text, kind


def built_peak(bundle: Bundle, kind) -> int:
    """Build an engine with TensorRT-RTX, throw it away, and return what the process took."""
    manifest = bundle.manifest
    profiles = profiles_of(kind, manifest, default_max_context(manifest))
    shapes = [profile.bounds() for profile in profiles]
    return run_builder("tensorrt-rtx", bundle.folder / graph_of(kind, manifest.graphs).file, profiles=shapes).peak_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_the_demos_builds_take_about_what_was_estimated(demo_bundle, kind):
    assert is_installed("tensorrt-rtx")
    bundle = open_bundle(demo_bundle)
    expected = estimate(bundle, CARD, kind, default_max_context(bundle.manifest)).build_bytes
    assert 0.6 * expected < built_peak(bundle, kind) < 1.1 * expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_builds_of_the_real_geometry_take_what_was_estimated(tmp_path, monkeypatch, precision):
    """CLIP-L/336 with five tiles, without the export's gates: `tests/export/test_clip_l.py` has these."""
    difference = SimpleNamespace(height=336, width=336, feature_difference=0.0, score_difference=0.0, to_dict=dict)
    monkeypatch.setattr(pipeline, "check_parity", lambda *arguments, **options: [difference])
    geometry = Geometry(
        tile=336,
        vision_layers=24,
        vision_hidden=1024,
        vision_heads=16,
        vision_intermediate=4096,
        hidden=1024,
        heads=16,
        kv_heads=4,
    )
    checkpoint = write_checkpoint(tmp_path / "checkpoint", geometry)
    bundle = pipeline.export(
        ExportConfig(model=str(checkpoint), out=tmp_path / "out", keep=Fraction("0.25"), precision=precision)
    )
    for kind, most in (("visual", 1.05), ("llm", 1.3)):
        sizes = estimate(bundle, CARD, kind, default_max_context(bundle.manifest))
        measured = built_peak(bundle, kind)
        print(json.dumps({"kind": kind, "precision": precision, "measured": measured} | vars(sizes)))
        assert measured < 1.05 * sizes.build_bytes
        assert sizes.build_bytes < most * measured

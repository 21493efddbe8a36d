"""Quantised weights: the numbers, the edit of the graph, and whole exports on every backend that runs here."""

import json
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from checkpoints import Geometry, write_checkpoint
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor

from ptp.bundle import open_bundle
from ptp.bundle.manifest import Quantization
from ptp.engines.build import build_engines
from ptp.engines.targets import TARGETS
from ptp.errors import ConfigError, ExportError
from ptp.export import pipeline, to_onnx
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.lint import lint
from ptp.export.memory import estimate
from ptp.export.passes import QuantizeWeights
from ptp.export.plan import make_plan
from ptp.export.quantization import QuantizedWeights, dequantize, quantize, weight_type
from ptp.export.to_onnx import save
from ptp.runtime.backends.registry import graph_loader
from ptp.runtime.verify import verify_bundle
from ptp.tolerances import ask_exact

INT4 = Quantization(weights="int4", block_size=32)
UP = "language_model.layers.0.mlp.up_proj.weight"


def matrix(size=256, width=40, dtype=np.float32, seed=0):
    """Return a matrix whose columns and blocks differ in size, one block of zeros and one nearly so among them."""
    random = np.random.default_rng(seed)
    weight = random.normal(0, 0.02, (size, width)) * np.exp(random.normal(0, 2, (size // 32, width))).repeat(32, axis=0)
    weight[:32, 0] = 0
    weight[:32, 1] = 1e-7
    return weight.astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [32, 128])
def test_what_was_dequantised_is_quantised_to_the_same(dtype, bits, block):
    codes, scales = quantize(matrix(dtype=dtype), bits, block)
    again = quantize(dequantize(codes, scales), bits, block)
    np.testing.assert_array_equal(again[0], codes)
    nonzero = codes.reshape(len(scales), block, -1).any(axis=1)
    np.testing.assert_array_equal(again[1][nonzero], scales[nonzero])
    assert (scales > 0).all()  # TensorRT refuses others
    assert scales.dtype == dtype
    assert codes.min() >= -(2 ** (bits - 1))
    assert codes.max() == 2 ** (bits - 1) - 1


def test_no_value_is_further_than_half_a_step():
    weight = matrix()
    codes, scales = quantize(weight, 4, 32)
    for k, n in np.ndindex(weight.shape):
        step = float(scales[k // 32, n])
        # a scale is rounded to 8 bits: the outermost value is that much beyond its code
        assert abs(float(weight[k, n]) - int(codes[k, n]) * step) <= step * (0.5 + 8 / 256)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_error_is_no_larger_than_that_of_onnxruntimes_own(bits):
    weight = matrix()
    codes, scales, _ = quant_tensor(weight.T, bits, 32, "sym", "int")
    theirs = (codes * scales).reshape(weight.T.shape).T
    ours = dequantize(*quantize(weight, bits, 32))
    assert np.linalg.norm(ours - weight) < 1.02 * np.linalg.norm(theirs - weight)


def test_only_the_language_models_matrices_are_quantised():
    expected = {
        "model.language_model.layers.3.self_attn.o_proj.weight": "int4",
        f"{UP}.transposed": "int4",
        "early_blocks.attention.k_proj.weight.transposed": "int4",
        "lm_head.weight": "int8",
        "model.language_model.embed_tokens.weight": None,
        "language_model.layers.0.input_layernorm.weight": None,
        "language_model.layers.0.self_attn.q_proj.bias": None,
        "model.vision_tower.encoder.layers.0.self_attn.q_proj.weight": None,
        "encoder.blocks.0.self_attn.q_proj.weight.transposed": None,
        "model.multi_modal_projector.linear_1.weight": None,
    }
    assert {name: weight_type(name, INT4) for name in expected} == expected


def products(weights, op="MatMul", reads=None):
    """Return a model that multiplies its input (1, K) with each of some matrices (K, N)."""
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=(1, 256))
    nodes, initializers = [], []
    for name, weight in weights.items():

        def read(name=name, weight=weight):
            if reads is not None:
                reads.append(name)
            return ir.Tensor(weight)

        tensor = ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(weight.shape))
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(ir.DataType.FLOAT))
        initializers.append(value)
        node = ir.Node("", op, [x, value])
        out = node.outputs[0]
        out.name, out.shape, out.type = f"y{len(nodes)}", ir.Shape((1, weight.shape[1])), x.type
        nodes.append(node)
    body = ir.Graph(
        [x], [node.outputs[0] for node in nodes], nodes=nodes, initializers=initializers, opset_imports={"": 21}
    )
    return ir.Model(body, ir_version=10)


@pytest.mark.parametrize("outside", [True, False])
def test_a_quantised_matrix_multiplies_as_its_dequantised_values_do(tmp_path, monkeypatch, outside):
    monkeypatch.setattr(to_onnx, "INLINE_LIMIT", 0 if outside else 1 << 20)
    weights, reads = {UP: matrix(width=41), "lm_head.weight": matrix(seed=1), "other": matrix(seed=2)}, []
    model = products(weights, reads=reads)
    assert QuantizeWeights(INT4)(model).modified
    lint(model, "products", static=True)
    assert not reads  # nothing is computed before it is written
    save(model, tmp_path / "products.onnx")
    assert {tensor.dtype.name for tensor in (v.const_value for v in model.graph.initializers.values())} == {
        "INT4", "INT8", "FLOAT",
    }  # fmt: skip
    options = onnxruntime.SessionOptions()
    ask_exact(options)
    session = onnxruntime.InferenceSession(tmp_path / "products.onnx", options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(3).normal(size=(1, 256)).astype(np.float32)
    found = session.run(None, {"x": x})
    for (name, weight), y in zip(weights.items(), found, strict=True):
        bits = {UP: 4, "lm_head.weight": 8}.get(name)
        values = dequantize(*quantize(weight, bits, 32)) if bits else weight
        np.testing.assert_allclose(y, x @ values, rtol=1e-4, atol=1e-4)


def test_without_such_a_matrix_nothing_changes():
    assert not QuantizeWeights(INT4)(products({"other": matrix()})).modified


def test_a_matrix_that_is_used_otherwise_is_refused():
    with pytest.raises(ExportError, match=r"up_proj.weight cannot be quantised; got used by Gather 1"):
        QuantizeWeights(INT4)(products({UP: matrix()}, op="Gather"))


def config(model, out, **options):
    return ExportConfig(model=str(model), out=out, keep=Fraction("0.25"), max_prompt=16, opset=21, **options)


@pytest.fixture(scope="module")
def quantized(tiny_checkpoint, tmp_path_factory):
    """A tiny checkpoint in INT4, with graphs for ONNX Runtime alone, its weights in files beside them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(to_onnx, "INLINE_LIMIT", 1000)
        out = tmp_path_factory.mktemp("int4") / "out"
        more = {"keep_range": (Fraction("0.25"), Fraction(1)), "optimize": "onnxruntime"}
        return pipeline.export(config(tiny_checkpoint("qwen2"), out, quantize="int4", **more))


def test_an_export_says_what_was_quantised_and_what_that_changed(quantized):
    manifest = open_bundle(quantized.folder).manifest
    assert manifest.model.quantization == INT4
    assert manifest.graphs.decoder_model_merged.file == "onnx/decoder_model_merged_q4.onnx"
    assert manifest.graphs.vision_encoder.file == "onnx/vision_encoder.onnx"
    assert manifest.parity.tensorrt_rtx is not None
    report = json.loads((quantized.folder / "report.json").read_text())
    assert report["drift"] == manifest.parity.drift.model_dump()
    assert 0 < manifest.parity.drift.kl_divergence < 1
    assert manifest.parity.drift.positions >= 3


def test_packed_weights_are_written_once(quantized):
    shared = json.loads((quantized.folder / "report.json").read_text())["shared_weight_bytes"]
    assert shared == 3 * 64 * 128 // 2  # codes of the first block's MLP; the others are not worth a reference
    types = {}
    for graph in (quantized.manifest.graphs.vision_encoder, quantized.manifest.graphs.decoder_model_merged):
        for name, value in ir.load(quantized.folder / graph.file).graph.initializers.items():
            types.setdefault(value.dtype.name, []).append(name)
    assert len(types["INT4"]) == 2 * 7 + 9
    assert types["INT8"] == ["lm_head.weight.transposed.codes"]


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_every_backend_returns_what_the_dequantised_model_does(quantized, backend):
    verify_bundle(open_bundle(quantized.folder), graph_loader(backend), "fp32").require()


def test_engines_of_all_graphs_are_built(quantized):
    engines = build_engines(open_bundle(quantized.folder), "tensorrt-rtx", [TARGETS["sm86"]])
    assert [engine.config.kind for engine in engines] == ["visual", "embed", "llm"]


def test_sizes_are_known_before(quantized, tiny_checkpoint):
    checkpoint = open_checkpoint(str(tiny_checkpoint("qwen2")), None, weights=False)
    sizes = {
        how: estimate(make_plan(ExportConfig(
            model="", out=quantized.folder, keep=Fraction("0.25"), quantize=how, opset=21 if how else 20
        ), checkpoint), checkpoint)
        for how in (None, "int8", "int4")
    }  # fmt: skip
    blocks = 2 * (2 * 64 * 64 + 2 * 16 * 64 + 3 * 64 * 128)
    head = 64 * 400
    assert sizes[None].decoder - sizes["int4"].decoder == 4 * (blocks + head) - (
        blocks // 2 + head + (blocks + head) // 32 * 4
    )
    assert sizes["int8"].embed == sizes[None].embed
    assert sizes["int4"].vision < sizes["int8"].vision < sizes[None].vision


def test_a_tied_heads_embedding_stays_as_it_is(tmp_path):
    folder = write_checkpoint(tmp_path / "tied", Geometry())
    checkpoint = open_checkpoint(str(folder), None, weights=True)
    plain = find_weights(checkpoint, "fp32")
    places = dict(plain.places) | {"lm_head.weight": plain.places["model.language_model.embed_tokens.weight"]}
    plain.places = places
    checkpoint.config.tie_word_embeddings = checkpoint.config.text_config.tie_word_embeddings = True
    model = load_model(checkpoint, QuantizedWeights(plain, INT4))
    table = plain["model.language_model.embed_tokens.weight"]
    assert torch.equal(model.get_input_embeddings().weight, table)
    expected = dequantize(*quantize(table.numpy().T, 8, 32)).T
    np.testing.assert_array_equal(model.lm_head.weight.detach().numpy(), expected)


def test_a_size_that_blocks_do_not_divide_is_refused(tmp_path, tiny_checkpoint):
    with pytest.raises(ConfigError, match=r"hidden size 64, heads 64; expected multiples of --block-size 128"):
        pipeline.export(config(tiny_checkpoint("llama"), tmp_path / "out", quantize="int8", block_size=128))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"quantize": "int4"}, "expected 21 with --quantize"),
        ({"opset": 21}, "expected 18, 19 or 20"),
        ({"block_size": 32}, "add --quantize"),
        ({"quantize": "int4", "opset": 21, "block_size": 48}, "expected 32 or 128"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        ExportConfig(model="demo", out=tmp_path, keep=Fraction(1, 2), **options)

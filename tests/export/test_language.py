"""The decoder and the instruction's attention against transformers, sliding windows and padded prompts included."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import LlamaConfig, MistralConfig, Qwen2Config
from transformers.models.llama import LlamaForCausalLM
from transformers.models.mistral import MistralForCausalLM
from transformers.models.qwen2 import Qwen2ForCausalLM

from ptp.bundle.manifest import LanguageModel, TensorSpec
from ptp.export.decoder import DecoderGraph, likeliest
from ptp.export.fused_decoder import FusedDecoderGraph
from ptp.export.language import EarlyBlocks
from ptp.export.specs import GraphIO, decoder_io, fused_decoder_io
from ptp.export.to_onnx import save, trace
from ptp.ptp_graph.packing import packed_slots
from ptp.ptp_graph.reference import NEWLINE, packed_sequence
from ptp.ptp_graph.relevance import attention_relevance, instruction_sequence
from ptp.ptp_graph.schedule import Schedule

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WINDOWED = {
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=8)),
    "qwen2, some layers": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SIZES,
            use_sliding_window=True,
            sliding_window=8,
            layer_types=["full_attention", "sliding_attention", "sliding_attention"],
        )
    ),
    "llama, where transformers ignores it": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, sliding_window=8)),
    "mistral without a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
}


class AsLlava(torch.nn.Module):
    """A bare language model in the place where LLaVA-NeXT has its own."""

    def __init__(self, causal):
        super().__init__()
        self.model = torch.nn.Module()
        self.model.language_model = causal.model
        self.lm_head = causal.lm_head


def make(name):
    torch.manual_seed(0)
    causal = WINDOWED[name]().eval()
    with torch.no_grad():
        for parameter in causal.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    return causal


@pytest.mark.parametrize("name", WINDOWED)
def test_prefill_and_decode_equal_transformers_beyond_a_sliding_window(name, tmp_path):
    causal = make(name)
    sizes = LanguageModel(
        num_layers=3, num_kv_heads=2, head_dim=8, hidden_size=32, vocab_size=50, max_position_embeddings=2048
    )
    io = decoder_io(sizes, "fp32")
    save(trace(DecoderGraph(AsLlava(causal)), io, opset=20), tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    embeds = torch.randn(2, 24, 32)
    with torch.inference_mode():
        expected = causal(inputs_embeds=embeds).logits.numpy()
    past = {spec.name: np.zeros((2, 2, 0, 8), np.float32) for spec in io.inputs[3:]}
    start = 0
    for end in (20, 21, 22, 24):
        feeds = {
            "inputs_embeds": embeds[:, start:end].numpy(),
            "attention_mask": np.ones((2, end), np.int64),
            "position_ids": np.tile(np.arange(start, end), (2, 1)),
        }
        logits, tokens, mask, positions, *present = session.run(None, feeds | past)
        np.testing.assert_allclose(logits[:, 0], expected[:, end - 1], atol=1e-4)
        np.testing.assert_array_equal(tokens[:, 0], expected[:, end - 1].argmax(-1))
        np.testing.assert_array_equal(mask, np.ones((2, end + 1)))
        np.testing.assert_array_equal(positions, [[end], [end]])
        past = dict(zip(past, present, strict=True))
        start = end


@pytest.mark.parametrize("name", WINDOWED)
def test_the_fused_decoder_equals_transformers_beyond_a_sliding_window(name, tmp_path):
    """A prompt, steps of one token and a step of several, with gaps in the positions."""
    causal = make(name)
    sizes = LanguageModel(
        num_layers=3, num_kv_heads=2, head_dim=8, hidden_size=32, vocab_size=50, max_position_embeddings=2048
    )
    io = fused_decoder_io(sizes, "fp32")
    save(trace(FusedDecoderGraph(AsLlava(causal)), io, opset=20), tmp_path / "decoder.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "decoder.onnx")
    embeds, positions = torch.randn(1, 24, 32), np.arange(24) + np.arange(24) // 5 * 3
    with torch.inference_mode():
        expected = causal(
            inputs_embeds=embeds,
            # without a mask, transformers takes a gap in the positions for the beginning of another text
            attention_mask=torch.ones(1, 24, dtype=torch.int64),
            position_ids=torch.from_numpy(positions)[None],
        ).logits.numpy()
    past = {spec.name: np.full((1, 2, 30, 8), 7, np.float32) for spec in io.inputs[3:]}
    start = 0
    for end in (20, 21, 22, 24):
        feeds = {
            "inputs_embeds": embeds[:, start:end].numpy(),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": positions[None, start:end],
        }
        logits, tokens, mask, following, *present = session.run(None, feeds | past)
        np.testing.assert_allclose(logits[:, 0], expected[:, end - 1], atol=1e-4)
        np.testing.assert_array_equal(tokens[:, 0], expected[:, end - 1].argmax(-1))
        np.testing.assert_array_equal(mask, np.ones((1, end + 1)))
        np.testing.assert_array_equal(following, [[positions[end - 1] + 1]])
        past = dict(zip(past, present, strict=True))
        start = end


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize("padding", [0, 1, 40])
def test_relevance_is_the_attention_that_transformers_reports(name, padding):
    """c to 1e-5, for a prompt without and with padding: `output_attentions` at index 1, eager, full sequence."""
    causal = make(name)
    schedule = Schedule(keep=Fraction(1, 2), side=3, grids=((1, 2), (2, 2)))
    size, grid = (50, 120), (1, 2)
    sequence = np.array(packed_sequence(*size, grid, 3))
    random = np.random.default_rng(1)
    prefix, suffix = random.normal(size=(5, 32)), random.normal(size=(9, 32))
    slots_embeds = random.normal(size=(schedule.num_tokens + schedule.num_newlines, 32)).astype(np.float32)
    slots_embeds[schedule.num_tokens :] = 0.3
    image = np.where((sequence == NEWLINE)[:, None], 0.3, slots_embeds[sequence])
    question = np.zeros(14, bool)
    question[6:12] = True

    full = torch.from_numpy(np.concatenate([prefix, image, suffix]).astype(np.float32))
    causal.set_attn_implementation("eager")
    with torch.inference_mode():
        attention = causal(inputs_embeds=full[None], output_attentions=True).attentions[1][0]
    rows = np.flatnonzero(question) + len(sequence)
    expected = attention.mean(dim=0)[rows].amax(dim=0)[5 : 5 + len(sequence)].numpy()

    prompt = np.concatenate([prefix, suffix, np.full((padding, 32), 7.0)]).astype(np.float32)
    real = np.arange(14 + padding) < 14
    causal.set_attn_implementation("sdpa")
    with torch.inference_mode():
        slots = packed_slots(torch.tensor([size]), torch.tensor([grid]), schedule)
        tokens = instruction_sequence(
            torch.from_numpy(prompt)[None],
            torch.from_numpy(real)[None],
            torch.tensor([5]),
            torch.from_numpy(slots_embeds)[None],
            slots,
        )
        blocks = EarlyBlocks(causal.model)
        query, keys, allowed = blocks(tokens, len(prompt))
        mask = torch.from_numpy(np.pad(question, (0, padding)))[None]
        found = attention_relevance(query, keys, allowed, mask)[0, len(prompt) :].numpy()
    visual = np.flatnonzero(sequence != NEWLINE)
    np.testing.assert_allclose(found[sequence[visual]], expected[visual], atol=1e-5)
    assert found[sequence[visual]].max() > 1e-3


def test_tracing_holds_no_large_weight_twice():
    """The traced graph's weights are the model's own memory, or are made of it when they are written."""
    config = LlamaConfig(**SIZES | {"vocab_size": 700, "hidden_size": 512, "intermediate_size": 1024})
    model = AsLlava(LlamaForCausalLM(config))
    sizes = LanguageModel(
        num_layers=3, num_kv_heads=2, head_dim=128, hidden_size=512, vocab_size=700, max_position_embeddings=2048
    )
    traced = trace(DecoderGraph(model), decoder_io(sizes, "fp32"), opset=20)
    own = {parameter.data_ptr() for parameter in model.parameters()}
    large = [value.const_value for value in traced.graph.initializers.values() if value.const_value.nbytes > 1 << 20]
    assert len(large) == 3 * 3 + 1  # gate, up and down of three layers, and the head
    assert all(isinstance(x, ir.LazyTensor) or x.numpy().__array_interface__["data"][0] in own for x in large)


def logits_of(case: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    logits = rng.integers(-9, 9, (4, 1, 50)).astype(np.float32)  # many equals
    if case == "huge":
        logits *= 3e37
    if case == "minus infinity":
        logits[:, :, ::2] = -np.inf
    if case == "NaN":
        logits[1, 0, 17] = np.nan
    if case == "infinity":
        logits[1, 0, 17] = np.inf
    if case == "nothing":
        logits[1] = -np.inf
    return logits


@pytest.mark.parametrize("case", ["equals", "huge", "minus infinity", "NaN", "infinity", "nothing"])
def test_the_likeliest_token_is_the_first_of_equals(case: str, tmp_path: Path) -> None:
    """In ONNX Runtime, too; where there is none it is V, a token that nobody has."""

    class Likeliest(torch.nn.Module):
        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return likeliest(logits)

    io = GraphIO(
        inputs=(TensorSpec(name="logits", dtype="float32", shape=("batch_size", 1, 50)),),
        outputs=(TensorSpec(name="next_tokens", dtype="int64", shape=("batch_size", 1)),),
    )
    save(trace(Likeliest(), io, opset=20), tmp_path / "likeliest.onnx")
    logits = logits_of(case)
    expected = logits.argmax(-1)
    assert len(set(expected.ravel().tolist())) > 1
    if case in ("NaN", "infinity", "nothing"):
        expected[1] = 50
    np.testing.assert_array_equal(likeliest(torch.from_numpy(logits)).numpy(), expected)
    session = onnxruntime.InferenceSession(tmp_path / "likeliest.onnx")
    np.testing.assert_array_equal(session.run(None, {"logits": logits})[0], expected)

"""How a decoder's key/value cache is kept, and what that costs: ONNX Runtime on the CPU beside transformers.

    python benchmarks/decoder_cache.py [--layers 24] [--contexts 512,1024,3072] [--steps 16] [--prefills 3]

A language model of Qwen2-0.5B's sizes (24 blocks of width 896, 14 heads, 2 KV heads, MLP 4864, vocabulary 32064) with
random weights, FP32, in forms that share them:

- `concat`: the portable decoder, `decoder_model_merged.onnx`; every step returns the cache one row longer;
- `scatter`: the same in stock operators with a cache of a fixed length, written by ScatterElements into the buffer that
  it came in, and read whole under a mask. Only this script has it;
- `fused`: `decoder_onnxruntime.onnx` of `ptp-export --optimize onnxruntime`, GroupQueryAttention in place;
- `concat in pieces`, `fused in pieces`: the same two, the prompt 512 tokens at a time, as the runtime feeds them;
- `eager`, `sdpa`: transformers with a `DynamicCache`; `compile`: sdpa's prefill through `torch.compile`, with
  `--compile` (needs a C++ compiler).

Each measurement has fresh random rows. The forms take turns, so that a slow moment of the machine hits all of them;
medians in milliseconds are printed, of a prefill of the context, and of a step after it. First, their logits are
compared.

24 blocks take about 11 GiB and 25 minutes on two cores, with `--compile`. Run it with nothing else running.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cache_utils import DynamicCache

from ptp.bundle.contract import becomes
from ptp.bundle.manifest import GraphSpec, LanguageModel
from ptp.export.attention import GROUPED, attending
from ptp.export.decoder import DecoderGraph
from ptp.export.fused_decoder import FusedDecoderGraph
from ptp.export.language import additive_mask
from ptp.export.passes import ShareWeights
from ptp.export.specs import GraphIO, decoder_io, fused_decoder_io
from ptp.export.to_onnx import save, trace
from ptp.runtime.backends.onnxruntime import InPlaceDecoder, OnnxRuntimeGraph

Array = NDArray[Any]
HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, VOCABULARY = 896, 14, 2, 4864, 32064
POSITIONS = 32768
SPARE = 256
"""Rows of the scattered cache beyond the context, as many as the fused one's room is at least."""

LARGEST_DIFFERENCE = 1e-4


class ScatteredCache:
    """Cache of a fixed length whose new rows are scattered behind the past (the part of `Cache` that attention uses).

    Args:
        past: key and value of each layer, (1, kv heads, cache_length, d).
        rows: (S,) int64, where the new rows go.
    """

    def __init__(self, past: tuple[Tensor, ...], rows: Tensor) -> None:
        self.past, self.rows, self.present = past, rows, list[Tensor]()

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Return keys and values, (1, kv heads, cache_length, d), the new rows among them."""
        places = self.rows[None, None, :, None].expand_as(key)  # (1, kv heads, S, d)
        for old, new in zip(self.past[2 * layer : 2 * layer + 2], (key, value), strict=True):
            self.present.append(old.scatter(2, places, new))
        return self.present[-2], self.present[-1]


class ScatteredDecoderGraph(DecoderGraph):
    """The portable decoder with a `ScatteredCache`."""

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past_key_values: Tensor
    ) -> tuple[Tensor, ...]:
        """See `FusedDecoderGraph.forward`."""
        new = inputs_embeds.shape[1]
        rows = torch.arange(new) + (attention_mask.shape[1] - new)  # (S,)
        allowed = torch.arange(past_key_values[0].shape[2])[None, :] <= rows[:, None]  # (S, cache_length)
        cache: Any = ScatteredCache(past_key_values, rows)
        with attending(self.language_model, GROUPED):
            hidden = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask={"full_attention": additive_mask(allowed[None, None], inputs_embeds.dtype)},
                position_ids=position_ids,
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return self._returned(hidden, attention_mask, position_ids, cache.present)


class ScatteredDecoder(OnnxRuntimeGraph):
    """Runs it; the buffers that come in as the past are written and come back."""

    def run(self, feeds: Any) -> dict[str, Any]:
        """See `Graph.run`."""
        past = {name: value for name, value in feeds.items() if name.startswith("past")}
        return self._run(feeds, {x.name: past[becomes(x.name)] for x in self.outputs if becomes(x.name) in past})


def main() -> None:
    """Write the graphs, compare them, time them, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--contexts", default="512,1024,3072")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--prefills", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model = build_model(options.layers)
    with tempfile.TemporaryDirectory() as folder:
        forms: dict[str, Any] = write_graphs(model, options.layers, Path(folder), options.threads)
        forms |= {name: Transformers(model, name) for name in ("eager", "sdpa")}
        if options.compile:
            forms["compile"] = Transformers(model, "sdpa", compiled=True)
        compare(forms, options.layers)
        columns = [measure(forms, options, int(context)) for context in options.contexts.split(",")]
        print(f"{options.layers} blocks, fp32, {options.threads or 'all'} threads; milliseconds, medians")
        print(f"| form | {' | '.join(f'{what} {n}' for n in options.contexts.split(',') for what in HEADINGS)} |")
        print("|---" * (1 + 2 * len(columns)) + "|")
        for name in forms:
            values = [f"{1e3 * value:.1f}" for column in columns for value in column[name]]
            print(f"| {name} | {' | '.join(values)} |")


HEADINGS = ("prefill", "step after")


def build_model(layers: int) -> Any:
    """Return transformers' model with random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=False,
    )
    return Qwen2ForCausalLM(config).eval()


def write_graphs(model: Any, layers: int, folder: Path, threads: int | None) -> dict[str, Any]:
    """Return the decoders, loaded as the runtime loads them."""
    sizes = LanguageModel(
        num_layers=layers,
        num_kv_heads=KV_HEADS,
        head_dim=HIDDEN // HEADS,
        hidden_size=HIDDEN,
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
    )
    wrapped = SimpleNamespace(model=SimpleNamespace(language_model=model.model), lm_head=model.lm_head)
    portable, fixed = decoder_io(sizes, "fp32"), fused_decoder_io(sizes, "fp32")
    kinds: dict[str, tuple[Any, GraphIO, type[OnnxRuntimeGraph]]] = {
        "concat": (DecoderGraph, portable, OnnxRuntimeGraph),
        "scatter": (ScatteredDecoderGraph, fixed, ScatteredDecoder),
        "fused": (FusedDecoderGraph, fixed, InPlaceDecoder),
    }
    forms = {}
    for name, (module, io, load) in kinds.items():
        print(f"writing {name}", flush=True)
        path = folder / f"{name}.onnx"
        traced = trace(module(wrapped), io, opset=20)
        if name != "concat":
            ShareWeights(folder / "concat.onnx")(traced)
        save(traced, path)
        spec = GraphSpec(file=f"onnx/{name}.onnx", inputs=io.inputs, outputs=io.outputs)
        graph = load(path, spec, threads=threads)
        forms[name] = Onnx(graph, layers, fixed=load is ScatteredDecoder)
        if load is not ScatteredDecoder:
            forms[f"{name} in pieces"] = Onnx(graph, layers, fixed=False, chunk=graph.prefill_chunk)
    return forms


class Onnx:
    """A decoder in ONNX Runtime.

    Args:
        graph: the loaded graph.
        layers: its blocks.
        fixed: whether the cache has a fixed length that its user chooses.
        chunk: tokens of a prompt that are computed at a time; None for all.
    """

    def __init__(self, graph: OnnxRuntimeGraph, layers: int, *, fixed: bool, chunk: int | None = None) -> None:
        self.graph, self.fixed, self.chunk = graph, fixed, chunk
        self.names = [f"past_key_values.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
        self.state: dict[str, Any] = {}

    def prefill(self, embeds: Array) -> Callable[[], Array]:
        """Return what runs the prompt (1, S, H) and returns the last token's logits."""
        length = embeds.shape[1]
        shape = (1, KV_HEADS, length + SPARE if self.fixed else 0, HIDDEN // HEADS)
        self.buffers = [np.zeros(shape, np.float32) for _ in self.names]  # kept alive: a binding does not
        self.state = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(buffer) if self.fixed else buffer
            for name, buffer in zip(self.names, self.buffers, strict=True)
        }
        mask, positions, chunk = np.ones((1, length), np.int64), np.arange(length)[None], self.chunk or length

        def run() -> Array:
            for start in range(0, length, chunk):
                end = start + chunk
                self.state |= {"attention_mask": mask[:, :end], "position_ids": positions[:, start:end]}
                logits = self.step(embeds[:, start:end])()
            return logits

        return run

    def step(self, embeds: Array) -> Callable[[], Array]:
        """Return what runs rows (1, S, H) after the past and returns the last one's logits."""

        def run() -> Array:
            outputs = self.graph.run({"inputs_embeds": embeds, **self.state})
            self.state = {becomes(name): x for name, x in outputs.items() if becomes(name) in self.state}
            return outputs["logits"].numpy()

        return run


class Transformers:
    """The model in PyTorch.

    Args:
        model: transformers' model.
        attention: its implementation.
        compiled: whether the prefill goes through `torch.compile`.
    """

    def __init__(self, model: Any, attention: str, *, compiled: bool = False) -> None:
        self.model, self.attention = model, attention
        self.begin = torch.compile(model.model) if compiled else model.model

    def prefill(self, embeds: Array) -> Callable[[], Array]:
        """See `Onnx.prefill`."""
        self.cache = DynamicCache(config=self.model.config)
        return self._run(self.begin, embeds)

    def step(self, embeds: Array) -> Callable[[], Array]:
        """See `Onnx.step`."""
        return self._run(self.model.model, embeds)

    def _run(self, body: Any, embeds: Array) -> Callable[[], Array]:
        def run() -> Array:
            self.model.set_attn_implementation(self.attention)
            with torch.inference_mode():
                hidden = body(inputs_embeds=torch.from_numpy(embeds), past_key_values=self.cache).last_hidden_state
                logits: Array = self.model.lm_head(hidden[:, -1:]).numpy()
            return logits

        return run


def compare(forms: dict[str, Any], layers: int) -> None:
    """Fail where a form's logits are not transformers' own, after a prompt and three tokens."""
    random = np.random.default_rng(layers)
    prompt, *tokens = [rows(random, length) for length in (50, 1, 1, 1)]
    found = {name: [form.prefill(prompt)(), *(form.step(token)() for token in tokens)] for name, form in forms.items()}
    for name, logits in found.items():
        difference = max(
            float(np.abs(x - y).max() / np.abs(y).max()) for x, y in zip(logits, found["eager"], strict=True)
        )
        if not difference < LARGEST_DIFFERENCE:
            raise SystemExit(f"{name}'s logits are off by {difference:.2g}")


def rows(random: np.random.Generator, length: int) -> Array:
    """Return rows like those of an embedding table, (1, S, H)."""
    return random.normal(0, 0.02, (1, length, HIDDEN)).astype(np.float32)


def measure(forms: dict[str, Any], options: Any, context: int) -> dict[str, tuple[float, float]]:
    """Return medians in seconds, by form: of a prefill of `context` tokens, and of a step after it."""
    random = np.random.default_rng(context)
    prefills: dict[str, list[float]] = {name: [] for name in forms}
    steps: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.prefills):
        for name, form in forms.items():
            prefills[name].append(seconds(form.prefill(rows(random, context))))
    for _ in range(options.steps):
        for name, form in forms.items():
            form.step(rows(random, 1))()  # not counted: makes memory, and threads of the form before still spin
            steps[name].append(seconds(form.step(rows(random, 1))))
    print(f"measured {context}", flush=True)
    return {name: (statistics.median(prefills[name]), statistics.median(steps[name])) for name in forms}


def seconds(run: Callable[[], Array]) -> float:
    """Return how long a run takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()

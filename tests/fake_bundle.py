"""Graphs in a few lines of numpy, for tests of the code around them."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ptp.bundle import Bundle, Manifest
from ptp.bundle.manifest import FileEntry, GraphSpec, TensorSpec

HIDDEN, LAYERS, MAX_PROMPT, KEPT = 6, 2, 24, 7
CHAT = {"trim": "none", "before_image": "<s>[INST] ", "before_question": "\n", "after_question": " [/INST]"}


@dataclass
class FakeTensor:
    """A tensor on a device: `numpy` counts the copies to the host."""

    value: np.ndarray
    copies: int = 0

    def numpy(self) -> np.ndarray:
        self.copies += 1
        return self.value


@dataclass
class FakeGraph:
    """Runs a function; remembers what it was fed, as it came (`calls`) and as arrays (`fed`), and what it returned."""

    spec: GraphSpec
    compute: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
    calls: list[dict[str, Any]] = field(default_factory=list)
    fed: list[dict[str, np.ndarray]] = field(default_factory=list)
    returned: list[dict[str, FakeTensor]] = field(default_factory=list)
    largest: dict[str, tuple[int, ...]] = field(default_factory=dict)
    prefill_chunk: int | None = None

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.spec.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.spec.outputs

    def run(self, feeds: Mapping[str, Any]) -> dict[str, FakeTensor]:
        assert set(feeds) == {spec.name for spec in self.inputs}
        arrays = {name: x.value if isinstance(x, FakeTensor) else x for name, x in feeds.items()}
        for spec in self.inputs:
            assert arrays[spec.name].dtype == spec.dtype, spec.name
            assert arrays[spec.name].ndim == len(spec.shape), spec.name
        self.calls.append(dict(feeds))
        self.fed.append(arrays)
        types = {spec.name: spec.dtype for spec in self.outputs}
        values = self.compute(arrays).items()
        self.returned.append({name: FakeTensor(value.astype(types[name])) for name, value in values})
        return self.returned[-1]


def tokenizer() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    raw.train_from_iterator(
        [], trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    )
    return raw


def file_entry(path: Path) -> FileEntry:
    data = path.read_bytes()
    return FileEntry(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def embed(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids + 0.125 * k for k in range(HIDDEN)], axis=-1).astype(np.float32)


@dataclass
class FakeBundle:
    """A bundle whose decoder writes a script.

    Args:
        folder: where the tokenizer goes.
        script: token ids the model answers with; the last one is repeated for ever.
        positions: packed positions of the tokens kept, then padding.
        changes: sections of the manifest to change.
        batch: images of one call of the vision graph.
    """

    folder: Path
    script: list[int]
    positions: tuple[int, ...] = (0, 3, 4, 9, 21)
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)
    batch: int = 1

    def __post_init__(self) -> None:
        raw = tokenizer()
        raw.save(str(self.folder / "tokenizer.json"))
        manifest = _manifest(raw.get_vocab_size())
        for section, update in self.changes.items():
            manifest[section] |= update
        if manifest["pruning"]["instruction"] == "none":
            inputs = manifest["graphs"]["vision_encoder"]["inputs"]
            manifest["graphs"]["vision_encoder"]["inputs"] = inputs[:3]
            manifest["graphs"]["vision_encoder"]["outputs"].pop()
        if self.batch > 1:
            graph = manifest["graphs"]["vision_encoder"]
            for spec in (*graph["inputs"], *graph["outputs"]):
                spec["shape"][0] = self.batch
        if manifest["pruning"].get("keep_range"):
            graph = manifest["graphs"]["vision_encoder"]
            graph["inputs"].append({"name": "num_kept", "dtype": "int64", "shape": [1]})
            for spec in graph["outputs"][:2]:
                spec["shape"][1] = "num_kept"
        self.manifest = Manifest.model_validate(manifest)
        self.graphs: dict[str, FakeGraph] = {}
        self.compute = {"vision.onnx": self._vision, "embed.onnx": self._embed, "decoder.onnx": self._decode}

    @property
    def bundle(self) -> Bundle:
        """The bundle with the files that are in its folder now, whatever a test wrote there."""
        there = {name: file_entry(self.folder / name) for name in self.manifest.files if (self.folder / name).exists()}
        files = self.manifest.files | there
        return Bundle(folder=self.folder, manifest=self.manifest.model_copy(update={"files": files}))

    def load_graph(self, bundle: Bundle, spec: GraphSpec) -> FakeGraph:
        name = bundle.path(spec.file).name
        return self.graphs.setdefault(name, FakeGraph(spec, self.compute[name]))

    def _embed(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"inputs_embeds": embed(feeds["input_ids"])}

    def _vision(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        count = int(feeds["num_kept"][0]) if "num_kept" in feeds else KEPT
        positions = np.zeros((1, count), np.int64)
        positions[0, : len(self.positions)] = self.positions
        outputs = {
            "image_features": np.full((1, count, HIDDEN), -1, np.float32) * np.arange(count)[None, :, None],
            "image_positions": positions,
            "num_valid": np.array([len(self.positions)]),
            "tile_budgets": np.array([[2, 1, 2]], np.int32),
            "packed_length": np.array([30]),
        }
        outputs = {name: value.repeat(self.batch, axis=0) for name, value in outputs.items()}
        if "alpha" in feeds:
            outputs["effective_alpha"] = np.abs(feeds["alpha"])
        return outputs

    def _decode(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        past, new = feeds["past_key_values.0.key"].shape[2], feeds["inputs_embeds"].shape[1]
        assert feeds["attention_mask"].shape == (1, past + new)
        assert feeds["attention_mask"].all()
        start = len(self.positions) + self.prompt_length
        logits = np.zeros((1, 1, self.manifest.language_model.vocab_size), np.float32)
        logits[0, 0, self.script[min(past + new - start, len(self.script) - 1)]] = 1
        # the cache holds the positions, so that a test can read what the model has seen
        seen = np.broadcast_to(feeds["position_ids"][:, None, :, None], (1, 1, new, 2))
        present = {
            name.replace("past_key_values", "present"): np.concatenate([value, seen.astype(value.dtype)], axis=2)
            for name, value in feeds.items()
            if name.startswith("past")
        }
        mask = feeds["attention_mask"]
        return {
            "logits": logits,
            "next_tokens": logits.argmax(-1),
            "next_attention_mask": np.concatenate([mask, np.ones((1, 1), mask.dtype)], axis=1),
            "next_position_ids": feeds["position_ids"][:, -1:] + 1,
            **present,
        }

    @property
    def prompt_length(self) -> int:
        """Text tokens of the last prompt."""
        return max(fed["input_ids"].shape[1] for fed in self.graphs["embed.onnx"].fed)


def _manifest(vocabulary: int) -> dict[str, Any]:
    def tensors(*specs: tuple[str, str, list[int | str]]) -> list[dict[str, Any]]:
        return [{"name": name, "dtype": dtype, "shape": shape} for name, dtype, shape in specs]

    cache = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    graphs = {
        "vision_encoder": {
            "file": "onnx/vision.onnx",
            "inputs": tensors(
                ("pixel_values", "float32", [1, 3, 3, 8, 8]),
                ("image_sizes", "int64", [1, 2]),
                ("tile_grid", "int64", [1, 2]),
                ("alpha", "float32", [1]),
                ("prompt_embeds", "float32", [1, MAX_PROMPT, HIDDEN]),
                ("prompt_mask", "bool", [1, MAX_PROMPT]),
                ("question_mask", "bool", [1, MAX_PROMPT]),
                ("prefix_length", "int64", [1]),
            ),
            "outputs": tensors(
                ("image_features", "float32", [1, KEPT, HIDDEN]),
                ("image_positions", "int64", [1, KEPT]),
                ("num_valid", "int64", [1]),
                ("tile_budgets", "int32", [1, 3]),
                ("packed_length", "int64", [1]),
                ("effective_alpha", "float32", [1]),
            ),
        },
        "embed_tokens": {
            "file": "onnx/embed.onnx",
            "inputs": tensors(("input_ids", "int64", ["b", "s"])),
            "outputs": tensors(("inputs_embeds", "float32", ["b", "s", HIDDEN])),
        },
        "decoder_model_merged": {
            "file": "onnx/decoder.onnx",
            "inputs": tensors(
                ("inputs_embeds", "float32", ["b", "s", HIDDEN]),
                ("attention_mask", "int64", ["b", "t"]),
                ("position_ids", "int64", ["b", "s"]),
                *((f"past_key_values.{name}", "float32", ["b", 1, "p", 2]) for name in cache),
            ),
            "outputs": tensors(
                ("logits", "float32", ["b", 1, vocabulary]),
                ("next_tokens", "int64", ["b", 1]),
                ("next_attention_mask", "int64", ["b", "n"]),
                ("next_position_ids", "int64", ["b", 1]),
                *((f"present.{name}", "float32", ["b", 1, "t", 2]) for name in cache),
            ),
        },
    }
    vectors = "parity/vectors.safetensors"
    names = ["tokenizer.json", vectors, *(graph["file"] for graph in graphs.values())]
    return {
        "schema_version": 2,
        "tools": {},
        "opset": 20,
        "model": {"id": "fake", "revision": None, "family": "llava_next", "precision": "fp32"},
        "pruning": {
            "keep": 0.25,
            "levels": {"thumbnail": 2, "crops": 3, "newline": 2},
            "num_kept": KEPT,
            "instruction": "similarity",
            "alpha": 0.5,
            "saliency_layer": 0,
            "region": "cls_cosine",
            "region_temperature": 0.1,
            "thumbnail": "ratio",
            "newline": "keep",
            "positions": "original",
        },
        "tiling": {
            "tile_size": 8,
            "tokens_per_side": 4,
            "max_tiles": 3,
            "grids": [[1, 2], [2, 1]],
            "resample": "bicubic",
            "rescale_factor": 1 / 255,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
        },
        "prompting": {
            "image_token": "<image>",
            "image_token_id": 3,
            "add_special_tokens": False,
            "eos_token_ids": [2],
            "max_prompt": MAX_PROMPT,
            "chat": CHAT,
        },
        "language_model": {
            "num_layers": LAYERS,
            "num_kv_heads": 1,
            "head_dim": 2,
            "hidden_size": HIDDEN,
            "vocab_size": vocabulary,
            "max_position_embeddings": 1000,
        },
        "graphs": graphs,
        "files": {name: {"bytes": 0, "sha256": "0" * 64} for name in names},
        "parity": {
            "images": [],
            "max_feature_difference": 0,
            "max_score_difference": 0,
            "kept_indices_equal": True,
            "tensorrt_rtx": None,
        },
        "vectors": vectors,
    }

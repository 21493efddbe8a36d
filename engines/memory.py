"""Memory of an engine before it is built: weights, activations, key/value cache, and what its builder needs.

All of it follows from the bundle's small files. The weights are as large as the graphs' files, with what the vision
graph refers to in the decoder's; the export counted that (`report.json`). Widths of the vision encoder are in no
manifest, so they are read from the checkpoint's own `config.json`.

The constants were fitted to builds by TensorRT-RTX 1.7.1 on a CPU (docs/deploy-jetson.md has the figures). What
TensorRT needs on a Jetson was never measured.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel, Field, ValidationError

from ptp.bundle import Bundle, Manifest
from ptp.bundle.engine import EngineKind, graph_of
from ptp.bundle.manifest import GraphSpec, LanguageModel, Precision, Size, Tiling
from ptp.engines.profiles import longest_prompt
from ptp.engines.targets import Target
from ptp.errors import SchemaError

BUILDER_BASE_BYTES = 380 << 20
"""A process with the builder's libraries, and a graph of some thousand nodes."""

TABLE_BASE_BYTES = 200 << 20
"""The same with a graph of one node, the token embedding's."""

MAPPED_COPIES = 1.2
ENGINE_COPIES = 2
"""What a builder holds: the file's weights, mapped, and a little; the engine's, and these once more serialised."""

ITEM_BYTES: dict[Precision, int] = {"fp32": 4, "fp16": 2}
COMPUTED_BYTES = 4
"""Of a value inside a block: the norms are computed in float32."""

MLP_WIDTHS = 4
"""Width of the language model's MLP, in widths of the model, where `config.json` leaves it to transformers' default."""

HOST_BYTES = 600 << 20
"""Python, numpy, the engines' library, a CUDA context. Assumed, not measured."""

SYSTEM_BYTES = 1536 << 20
"""What the rest of a Jetson's system takes, desktop included. Assumed, not measured."""

Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Sizes of one transformer block: width, attention heads, width of its MLP."""

    width: int
    heads: int
    mlp: int

    def values(self, tokens: int, *, scores: bool) -> int:
        """Return the values that the block holds at once for one sequence.

        Args:
            tokens: length of the sequence.
            scores: whether the attention of all heads is held, before and after its softmax; fused attention is not.
        """
        attention = 2 * self.heads * tokens**2 if scores else 0
        return attention + tokens * (4 * self.width + 2 * self.mlp)


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes that one engine needs.

    Attributes:
        weights: of its graph.
        activations: largest intermediate values.
        cache: keys and values of all tokens, as read and as written; 0 for the vision engine.
        build_bytes: peak of the process that builds it, and on a board of the GPU that times its kernels.
        run_bytes: what it takes of the GPU's memory while it runs.
    """

    weights: int
    activations: int
    cache: int
    build_bytes: int
    run_bytes: int


def estimate(bundle: Bundle, target: Target, kind: EngineKind, max_context: int) -> Estimate:
    """Estimate the memory that an engine of a bundle needs.

    Args:
        bundle: a bundle with its `config.json` and `report.json`.
        target: what the engine is for.
        kind: which of the engines.
        max_context: tokens that the cache has room for; used for `llm` only.

    Raises:
        BundleError: one of those files is missing or not as an export writes it.
    """
    manifest = bundle.manifest
    model, precision = manifest.language_model, manifest.model.precision
    cache = 2 * cache_bytes(model, precision, max_context) if kind == "llm" else 0
    return engine_estimate(
        target, kind, weights=_weights(bundle, kind), activations=_activations(bundle, kind), cache=cache
    )


def engine_estimate(target: Target, kind: EngineKind, *, weights: int, activations: int, cache: int) -> Estimate:
    """Return what an engine needs, from the sizes of its parts in bytes; they are `Estimate`'s."""
    # TensorRT-RTX 1.7 writes the weights once for each profile
    copies = 2 if (target.backend, kind) == ("tensorrt-rtx", "llm") else 1
    on_the_board = 0 if target.memory_bytes is None else activations
    return Estimate(
        weights=weights,
        activations=activations,
        cache=cache,
        build_bytes=builder_bytes(weights, copies, TABLE_BASE_BYTES if kind == "embed" else BUILDER_BASE_BYTES)
        + on_the_board,
        run_bytes=copies * weights + activations + cache,
    )


def builder_bytes(weights: int, copies: int = 1, base: int = BUILDER_BASE_BYTES) -> int:
    """Return the peak of a builder's process, whose engine holds the weights so many times, in bytes."""
    return base + round((MAPPED_COPIES + ENGINE_COPIES * copies) * weights)


def run_total(estimates: Iterable[Estimate]) -> int:
    """Return the bytes of a run: the engines, and the process around them."""
    return HOST_BYTES + sum(x.run_bytes for x in estimates)


def usable_bytes(target: Target) -> int | None:
    """Return what a board's system leaves to others; None for a card, whose memory is not known."""
    return None if target.memory_bytes is None else target.memory_bytes - SYSTEM_BYTES


def cache_bytes(model: LanguageModel, precision: Precision, tokens: int) -> int:
    """Return the bytes of the keys and values of so many tokens."""
    return 2 * model.num_layers * model.num_kv_heads * model.head_dim * ITEM_BYTES[precision] * tokens


def keeps_scores(precision: Precision) -> bool:
    """Return whether an engine holds attention scores: the builder fuses attention in FP16, in FP32 it does not."""
    return precision == "fp32"


def vision_values(
    tower: Block, text: Block | None, tiling: Tiling, *, batch: int, max_prompt: int, scores: bool
) -> int:
    """Return the values that the vision graph holds at once.

    Args:
        tower: a block of the vision encoder.
        text: a block of the language model, where the graph asks it about the unpruned sequence.
        tiling: of the images.
        batch: images of a call.
        max_prompt: most text tokens of a prompt.
        scores: as for `Block.values`.
    """
    tokens = tiling.max_tiles * tiling.tokens_per_tile
    newlines = tiling.tokens_per_side * max(rows for rows, _ in tiling.grids)
    encoder = tiling.max_tiles * tower.values(1 + tiling.tokens_per_tile, scores=scores)
    question = text.values(max_prompt + tokens + newlines, scores=scores) if text else 0
    return batch * max(encoder, question)


def _weights(bundle: Bundle, kind: EngineKind) -> int:
    """Return the bytes of the weights that an engine's graph refers to, in whichever file they are."""
    shared = _read(bundle, _Report).shared_weight_bytes if kind == "visual" else 0
    return _file_bytes(graph_of(kind, bundle.manifest.graphs), bundle.manifest) + shared


def _file_bytes(graph: GraphSpec, manifest: Manifest) -> int:
    """Return the size of a graph's file and of the weights beside it."""
    names = (graph.file, f"{graph.file}_data")
    return sum(entry.bytes for name, entry in manifest.files.items() if name in names)


def _activations(bundle: Bundle, kind: EngineKind) -> int:
    """Return the bytes of the largest block's values."""
    manifest = bundle.manifest
    if kind == "embed":
        item = ITEM_BYTES[manifest.model.precision]
        return item * manifest.prompting.max_prompt * manifest.language_model.hidden_size
    config = _read(bundle, _Config)
    model, tower = manifest.language_model, config.vision_config
    mlp = config.text_config.intermediate_size or MLP_WIDTHS * model.hidden_size
    text = Block(width=model.hidden_size, heads=model.hidden_size // model.head_dim, mlp=mlp)
    scores = keeps_scores(manifest.model.precision)
    if kind == "llm":
        return COMPUTED_BYTES * text.values(longest_prompt(manifest), scores=scores)
    return COMPUTED_BYTES * vision_values(
        Block(width=tower.hidden_size, heads=tower.num_attention_heads, mlp=tower.intermediate_size),
        text if manifest.pruning.instruction == "attention" else None,
        manifest.tiling,
        batch=manifest.batch,
        max_prompt=manifest.prompting.max_prompt,
        scores=scores,
    )


class _Tower(BaseModel):
    """`vision_config`; what is left out is transformers' default for a CLIP tower."""

    hidden_size: Size = 768
    num_attention_heads: Size = 12
    intermediate_size: Size = 3072


class _Text(BaseModel):
    intermediate_size: Size | None = None


class _Config(BaseModel):
    """What is read of `config.json`."""

    vision_config: _Tower
    text_config: _Text


class _Report(BaseModel):
    """What is read of `report.json`."""

    shared_weight_bytes: int = Field(ge=0)


FILES: dict[type[BaseModel], str] = {_Config: "config.json", _Report: "report.json"}


def _read(bundle: Bundle, schema: type[Schema]) -> Schema:
    path = bundle.path(FILES[schema])
    try:
        return schema.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = error.errors()[0]
        raise SchemaError(
            f"{path} does not have the sizes that memory is estimated from",
            got=f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}",
            do="export the bundle again",
        ) from error

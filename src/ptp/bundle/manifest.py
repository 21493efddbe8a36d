"""The manifest of a bundle, `ptp_config.json`: every fact that a runtime needs, in one place.

The classes below are the schema. They are frozen, refuse unknown keys, and validate on construction, so a manifest
that loads is one that can be relied on. `docs/bundle.md` describes the format for people who write their own loader.
"""

import shlex
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from ptp.anyres import Grid
from ptp.bundle.contract import disagreements
from ptp.bundle.schema import (
    MAX_DIMENSION,
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_POSITIONS,
    MAX_TENSORS,
    AlwaysTrue,
    Count,
    Dtype,
    FileEntry,
    Integer,
    Line,
    Measure,
    Model,
    Relative,
    Size,
    TensorSpec,
    decode,
    validate,
)
from ptp.errors import SchemaError

__all__ = ["MAX_DIMENSION", "Count", "Dtype", "FileEntry", "Line", "Model", "Size", "TensorSpec"]

MANIFEST_NAME = "ptp_config.json"
SCHEMA_VERSION: Literal[2] = 2

Text = Annotated[str, Field(max_length=1 << 16)]
"""Text that goes into a prompt as it is."""

Precision = Literal["fp32", "fp16"]
WeightType = Literal["int8", "int4"]
BlockSize = Literal[32, 128]
Instruction = Literal["none", "similarity", "attention"]
RegionRule = Literal["cls_cosine", "thumbnail_attention", "uniform"]
ThumbnailPolicy = Literal["ratio", "keep_all", "as_region"]
NewlinePolicy = Literal["keep", "drop"]
PositionPolicy = Literal["original", "compact"]
Trim = Literal["none", "both", "end"]
Alpha = Annotated[float, Field(ge=0, le=1)] | Literal["auto"]
"""Weight of the question, 0 to 1, or `auto`: computed in the graph for each question."""

Mean = Annotated[float, Field(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Field(ge=1e-6, le=1e6)]
Token = Annotated[str, Field(max_length=1000)]


class GraphSpec(Model):
    """One ONNX graph of the bundle: its file and its inputs and outputs."""

    file: Relative
    inputs: tuple[TensorSpec, ...] = Field(max_length=MAX_TENSORS)
    outputs: tuple[TensorSpec, ...] = Field(max_length=MAX_TENSORS)


class Quantization(Model):
    """How the language model's matrices are stored (docs/quantization.md).

    Attributes:
        weights: type of the blocks' matrices.
        lm_head: type of the last one.
        block_size: values along the input that share a scale.
    """

    weights: WeightType
    lm_head: WeightType = "int8"
    block_size: Annotated[BlockSize, Integer]


class ModelInfo(Model):
    """Which checkpoint was exported. `revision` is the Hugging Face commit, absent for a local folder."""

    id: Line
    revision: Line | None
    family: Line
    precision: Precision
    quantization: Quantization | None = Field(default=None, exclude_if=lambda how: how is None)


class Levels(Model):
    """Token budget of each level of the pyramid, and their sum K."""

    thumbnail: Count
    crops: Count
    newline: Count

    @property
    def total(self) -> int:
        """K, the sum of the levels."""
        return self.thumbnail + self.crops + self.newline


class KeepRange(Model):
    """The fractions of visual tokens that may be asked for at run time, and the K that they give."""

    min: float = Field(gt=0, le=1)
    max: float = Field(gt=0, le=1)
    min_kept: Size
    max_kept: Size


class Pruning(Model):
    """How tokens are chosen (docs/algorithm.md).

    Attributes:
        keep: fraction of visual tokens kept, 0 < keep ≤ 1; newline tokens are not counted.
        keep_range: what `keep` may be changed to at run time; None where K is fixed in the graph.
        saliency_layer: 0-based vision block whose CLS attention is the token saliency.
        region: what a crop's share of the budget follows.
        region_temperature: τ of `cls_cosine`'s softmax over crops.
        thumbnail: where the thumbnail's budget comes from.
        alpha: default weight of the instruction.
        num_kept: K, rows of `image_features`; at `keep`, where K is chosen at run time.
    """

    keep: float = Field(gt=0, le=1)
    keep_range: KeepRange | None = Field(default=None, exclude_if=lambda bounds: bounds is None)
    levels: Levels
    num_kept: Size
    instruction: Instruction
    alpha: Alpha
    saliency_layer: int = Field(ge=0, lt=512)
    region: RegionRule
    region_temperature: float = Field(gt=0, le=1e6)
    thumbnail: ThumbnailPolicy
    newline: NewlinePolicy
    positions: PositionPolicy

    @model_validator(mode="after")
    def _levels_sum_to_num_kept(self) -> "Pruning":
        if self.levels.total != self.num_kept:
            raise ValueError(f"levels sum to {self.levels.total}, num_kept is {self.num_kept}")
        bounds = self.keep_range
        if bounds and not bounds.min_kept <= self.num_kept <= bounds.max_kept:
            raise ValueError(f"num_kept {self.num_kept} is outside {bounds.min_kept} to {bounds.max_kept}")
        return self


class Tiling(Model):
    """How an image becomes encoder inputs.

    Attributes:
        tile_size: side S of a tile in pixels.
        tokens_per_side: visual tokens on a side of a tile; N is its square.
        max_tiles: T, thumbnail included.
        grids: crop grids (rows, columns) in the checkpoint's order.
        resample: filter of every resize.
        rescale_factor: what a pixel value 0..255 is multiplied with, before (x − mean) / std.
    """

    tile_size: int = Field(ge=1, le=4096)
    tokens_per_side: int = Field(ge=1, le=1024)
    max_tiles: Size
    grids: tuple[Grid, ...] = Field(min_length=1, max_length=1024)
    resample: Literal["nearest", "lanczos", "bilinear", "bicubic", "box", "hamming"]
    rescale_factor: float = Field(ge=1e-6, le=1e6)
    mean: tuple[Mean, Mean, Mean]
    std: tuple[Deviation, Deviation, Deviation]

    @property
    def tokens_per_tile(self) -> int:
        """N, the visual tokens of a tile."""
        return self.tokens_per_side**2

    @property
    def longest(self) -> int:
        """The most tokens of an unpruned sequence: thumbnail and the largest grid's rows, a newline after each."""
        side = self.tokens_per_side
        return side * side + max(rows * side * (columns * side + 1) for rows, columns in self.grids)

    @field_validator("grids")
    @classmethod
    def _grids_are_positive(cls, grids: tuple[Grid, ...]) -> tuple[Grid, ...]:
        if any(not 1 <= side <= 1024 for grid in grids for side in grid):
            raise ValueError("grid sides must be 1 to 1024")
        return grids

    @model_validator(mode="after")
    def _sizes_agree(self) -> "Tiling":
        if self.tokens_per_side > self.tile_size:
            raise ValueError(f"{self.tokens_per_side} tokens on a side of {self.tile_size} pixels")
        largest = 1 + max(rows * columns for rows, columns in self.grids)
        if largest != self.max_tiles:
            raise ValueError(f"max_tiles is {self.max_tiles}, the grids need {largest}")
        return self


class SystemPrompt(Model):
    """Text before a system prompt, and from there to the image instead of `ChatFormat.before_image`."""

    trim: Trim
    before_system: Text
    before_image: Text


class NextTurn(Model):
    """Text between a question and its answer, and between that and the next question; `trim` is of answers."""

    trim: Trim
    before_answer: Text
    before_question: Text


class ChatFormat(Model):
    """The chat template's text around the image token, the question, and what may stand beside them.

    Attributes:
        trim: white space that is removed from a question.
        before_image: up to the image token.
        before_question: from the image token to the question; of a conversation, to the first one.
        after_question: after the last question.
        system: None where the template takes no system prompt.
        next_turn: None where the template takes one question.
    """

    trim: Trim
    before_image: Text
    before_question: Text
    after_question: Text
    system: SystemPrompt | None = None
    next_turn: NextTurn | None = None


class Prompting(Model):
    """What turns a question into token ids, beside `tokenizer.json`.

    Attributes:
        add_special_tokens: whether the tokenizer adds its own, such as BOS; false where the text has it already.
        max_prompt: most text tokens of a prompt, template included, image token left out.
        chat: the text around the question.
    """

    image_token: Token = Field(min_length=1)
    image_token_id: Count
    add_special_tokens: StrictBool
    eos_token_ids: tuple[Count, ...] = Field(max_length=MAX_TENSORS)
    max_prompt: Size
    chat: ChatFormat


class LanguageModel(Model):
    """Sizes of the decoder and of its key/value cache."""

    num_layers: int = Field(ge=1, le=512)
    num_kv_heads: Size
    head_dim: Size
    hidden_size: Size
    vocab_size: Size
    max_position_embeddings: int = Field(ge=1, le=MAX_POSITIONS)


class Graphs(Model):
    """The three graphs, under the names that transformers.js and optimum look for, and others beside them.

    Attributes:
        decoder_onnxruntime: the same decoder for ONNX Runtime alone, in its own operators; None where the export did
            not ask for it.
        vision_encoder_onnxruntime: the same vision graph for ONNX Runtime alone, with control flow inside; likewise.
    """

    vision_encoder: GraphSpec
    embed_tokens: GraphSpec
    decoder_model_merged: GraphSpec
    decoder_onnxruntime: GraphSpec | None = Field(default=None, exclude_if=lambda spec: spec is None)
    vision_encoder_onnxruntime: GraphSpec | None = Field(default=None, exclude_if=lambda spec: spec is None)

    @property
    def all(self) -> tuple[GraphSpec, ...]:
        """The graphs in the order they run; those that may run instead of another come last."""
        portable = self.vision_encoder, self.embed_tokens, self.decoder_model_merged
        others = self.decoder_onnxruntime, self.vision_encoder_onnxruntime
        return (*portable, *(spec for spec in others if spec is not None))


class Drift(Model):
    """How far the quantised language model is from the one it was made of, on the same pruned inputs.

    Attributes:
        positions: answer tokens of the parity vectors.
        top1_agreement: share of them where both find the same token likeliest.
        kl_divergence: mean KL(unquantised ‖ quantised) of the next token there, in nats; its exponential is the ratio
            of the models' perplexities on text that the unquantised one writes.
    """

    positions: Size
    top1_agreement: float = Field(ge=0, le=1)
    kl_divergence: Measure


class Parity(Model):
    """What the export's gates measured.

    Attributes:
        images: image sizes (height, width) on which the graph was compared with the reference.
        max_feature_difference: largest |graph − transformers| / |transformers| of a feature row, in Euclidean length.
        max_score_difference: largest |graph − transformers| of the scores that decide the selection, relative to their
            largest value.
        kept_indices_equal: kept positions equal the reference's on every image (an export is refused otherwise).
        tensorrt_rtx: version whose builder accepted the vision graph; absent where it was not installed.
        drift: what quantisation changed; None where nothing was quantised.
    """

    images: tuple[tuple[Size, Size], ...] = Field(max_length=MAX_TENSORS)
    max_feature_difference: Measure
    max_score_difference: Measure
    kept_indices_equal: AlwaysTrue
    tensorrt_rtx: Line | None
    drift: Drift | None = Field(default=None, exclude_if=lambda drift: drift is None)


class Manifest(Model):
    """The whole of `ptp_config.json`.

    Attributes:
        files: size and SHA-256 of every file but the manifest, by path.
        parity: what the export's gates measured.
        vectors: file of the parity vectors that `ptp verify` runs again.
    """

    schema_version: Annotated[Literal[2], Integer]
    tools: dict[Line, Line] = Field(max_length=256)
    opset: int = Field(ge=18, le=21)
    model: ModelInfo
    pruning: Pruning
    tiling: Tiling
    prompting: Prompting
    language_model: LanguageModel
    graphs: Graphs
    files: dict[Relative, FileEntry] = Field(max_length=MAX_FILES)
    parity: Parity
    vectors: Relative

    @field_validator("files")
    @classmethod
    def _files_fit_onto_a_disk(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        if sum(entry.bytes for entry in files.values()) > MAX_FILE_BYTES:
            raise ValueError(f"the files must not have more than {MAX_FILE_BYTES} bytes together")
        return files

    @model_validator(mode="after")
    def _graphs_agree_with_the_facts(self) -> "Manifest":
        if problems := disagreements(self):
            raise ValueError(", ".join(problems[:4]))
        return self

    @property
    def batch(self) -> int:
        """B, images of one call of the vision graph."""
        shapes = [x.shape for x in self.graphs.vision_encoder.inputs if x.name == "pixel_values"]
        return shapes[0][0] if shapes and shapes[0] and isinstance(shapes[0][0], int) else 1

    def to_json(self) -> str:
        """Return the text of `ptp_config.json`, keys in schema order."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Parse and validate the text of a `ptp_config.json`.

        Raises:
            SchemaError: not JSON, of another schema version, or not as the schema says (all problems named).
        """
        do = "export the bundle again"
        data = decode(text, MANIFEST_NAME, do)
        version = data.get("schema_version") if isinstance(data, dict) else None
        if type(version) is int and version != SCHEMA_VERSION:
            newer = version > SCHEMA_VERSION
            raise SchemaError(
                f"{MANIFEST_NAME} is of {'a newer' if newer else 'an older'} schema",
                got=f"version {version}",
                expected=SCHEMA_VERSION,
                do=("install a newer ptp-export or " if newer else "")
                + f"export the bundle again{_export_command(data)}",
            )
        return validate(cls, text, f"{MANIFEST_NAME} does not follow schema {SCHEMA_VERSION}", do)


def _export_command(data: dict[str, Any]) -> str:
    """Return the command that writes a bundle again, as far as a manifest of any schema says it."""
    model, pruning = data.get("model"), data.get("pruning")
    name = model.get("id") if isinstance(model, dict) else None
    keep = pruning.get("keep") if isinstance(pruning, dict) else None
    if not isinstance(name, str) or not isinstance(keep, float | int):
        return ""
    return f": {shlex.join(['ptp-export', '--model', name[:200], '--keep', f'{keep:g}'])}"

"""Everything an export decides before it loads a weight: tiles, budgets, layers, sizes."""

from dataclasses import dataclass

from ptp.bundle.manifest import Alpha, KeepRange, LanguageModel, Pruning, Quantization, Tiling
from ptp.errors import ConfigError
from ptp.export.attention import HEAD_DIM_MULTIPLE
from ptp.export.checkpoint import Checkpoint
from ptp.export.config import DEFAULT_ALPHA, REGION_TEMPERATURE, ExportConfig
from ptp.export.specs import GraphIO, decoder_io, embed_io, fused_decoder_io, vision_io
from ptp.ptp_graph.schedule import Schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be exported.

    Attributes:
        config: the user's options.
        tiling: how images become tiles, with the grids of this export only.
        schedule: the static sizes and budgets.
        language_model: sizes of the decoder.
        saliency_layer: 0-based vision block whose CLS attention is the token saliency.
        region_temperature: τ of the softmax over crops.
    """

    config: ExportConfig
    tiling: Tiling
    schedule: Schedule
    language_model: LanguageModel
    saliency_layer: int
    region_temperature: float = REGION_TEMPERATURE

    @property
    def pruning(self) -> Pruning:
        """The manifest's record of how tokens are chosen."""
        return Pruning(
            keep=float(self.schedule.keep),
            keep_range=self._keep_range,
            levels=self.schedule.levels,
            num_kept=self.schedule.num_kept,
            instruction=self.config.instruction,
            alpha=self._alpha,
            saliency_layer=self.saliency_layer,
            region=self.config.region,
            region_temperature=self.region_temperature,
            thumbnail=self.config.thumbnail,
            newline=self.config.newline,
            positions=self.config.positions,
        )

    @property
    def _keep_range(self) -> KeepRange | None:
        if self.schedule.keep_range is None:
            return None
        low, high = self.schedule.keep_range
        min_kept, max_kept = self.schedule.num_kept_range
        return KeepRange(min=float(low), max=float(high), min_kept=min_kept, max_kept=max_kept)

    @property
    def num_kept_profile(self) -> dict[str, tuple[int, int, int]]:
        """Smallest, preferred and largest K of an engine, by the input's name; empty where K is fixed."""
        low, high = self.schedule.num_kept_range
        return {"num_kept": (low, self.schedule.num_kept, high)} if self.schedule.keep_range else {}

    @property
    def _alpha(self) -> Alpha:
        if self.config.instruction == "none":
            return 0.0
        return DEFAULT_ALPHA if self.config.alpha is None else self.config.alpha

    @property
    def vision_io(self) -> GraphIO:
        """Contract of the vision graph."""
        return vision_io(
            self.schedule,
            instruction=self.config.instruction,
            precision=self.config.precision,
            tile_size=self.tiling.tile_size,
            hidden_size=self.language_model.hidden_size,
            max_prompt=self.config.max_prompt,
            batch=self.config.batch,
        )

    @property
    def embed_io(self) -> GraphIO:
        """Contract of the embedding graph."""
        return embed_io(self.language_model, self.config.precision)

    @property
    def decoder_io(self) -> GraphIO:
        """Contract of the decoder graph."""
        return decoder_io(self.language_model, self.config.precision)

    @property
    def fused_decoder_io(self) -> GraphIO:
        """Contract of the decoder graph for ONNX Runtime alone."""
        return fused_decoder_io(self.language_model, self.config.precision)


def make_plan(config: ExportConfig, checkpoint: Checkpoint) -> Plan:
    """Decide what to export.

    Raises:
        ConfigError: the grid is not the checkpoint's, the budgets cannot be exported, the language model has no
            second block to look at the question with, or its attention is not one that `optimize` can express.
        CheckpointError: the checkpoint's tiles are not ones that the family's export covers.
    """
    tiling = checkpoint.tiling
    if config.grid is not None:
        if config.grid not in tiling.grids:
            known = ", ".join(f"{rows}x{columns}" for rows, columns in tiling.grids)
            raise ConfigError(
                "--grid is not one of the checkpoint's", got="{}x{}".format(*config.grid), expected=f"one of {known}"
            )
        tiles = 1 + config.grid[0] * config.grid[1]
        tiling = tiling.model_copy(update={"grids": (config.grid,), "max_tiles": tiles})
    if config.instruction == "attention" and checkpoint.language_model.num_layers < 2:
        raise ConfigError(
            "--instruction attention needs the language model's second block",
            got=f"{checkpoint.language_model.num_layers} block",
            do="choose --instruction similarity or none",
        )
    if config.quantization:
        _check_blocks(config.quantization, checkpoint)
    head_dim = checkpoint.language_model.head_dim
    if config.optimize == "onnxruntime" and head_dim % HEAD_DIM_MULTIPLE:
        raise ConfigError(
            "--optimize onnxruntime: ONNX Runtime's fused attention does not take this model's heads",
            got=f"heads of {head_dim}",
            expected=f"a multiple of {HEAD_DIM_MULTIPLE}",
            do="leave --optimize out",
        )
    schedule = Schedule(
        keep=config.keep,
        keep_range=config.keep_range,
        side=tiling.tokens_per_side,
        grids=tiling.grids,
        newline=config.newline,
        thumbnail=config.thumbnail,
    )
    return Plan(
        config=config,
        tiling=tiling,
        schedule=schedule,
        language_model=checkpoint.language_model,
        saliency_layer=checkpoint.adapter.saliency_layer(checkpoint.config),
    )


def _check_blocks(quantization: Quantization, checkpoint: Checkpoint) -> None:
    """Refuse a language model of which a matrix has an input that blocks do not divide."""
    text, sizes = checkpoint.config.text_config, checkpoint.language_model
    heads = text.num_attention_heads * sizes.head_dim
    inputs = {"hidden size": sizes.hidden_size, "heads": heads, "MLP": text.intermediate_size}
    if odd := [f"{name} {size}" for name, size in inputs.items() if size % quantization.block_size]:
        raise ConfigError(
            "--quantize divides each matrix's input into blocks",
            got=", ".join(odd),
            expected=f"multiples of --block-size {quantization.block_size}",
            do="choose a smaller block size or export without --quantize",
        )

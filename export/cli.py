"""The `export` verb."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from ptp.alpha import parse_alpha
from ptp.bundle.manifest import (
    Instruction,
    NewlinePolicy,
    PositionPolicy,
    Precision,
    RegionRule,
    ThumbnailPolicy,
    WeightType,
)
from ptp.bundle.summary import budget_line, human_bytes, quantization_line
from ptp.console import shown
from ptp.errors import ConfigError
from ptp.export.config import Optimize

if TYPE_CHECKING:
    from ptp.export.plan import Plan

Opt = typer.Option


def export(
    model: Annotated[str, Opt(help="short name (demo, llava-next, …), Hugging Face id, or checkpoint folder")] = "demo",
    keep: Annotated[
        str | None, Opt(metavar="R|MIN:OPT:MAX", help="fraction of visual tokens kept; a range to choose at run time")
    ] = None,
    reduction: Annotated[str | None, Opt(help="fraction dropped; the same as --keep 1 − R")] = None,
    out: Annotated[Path | None, Opt(help="bundle to write (default: <model>-keep<R>)")] = None,
    instruction: Annotated[Instruction, Opt(help="how the question takes part in the choice")] = "attention",
    alpha: Annotated[str | None, Opt(help="default weight of the question, 0 to 1 or auto (default: 0.5)")] = None,
    dtype: Annotated[Precision, Opt(help="type of weights, inputs and outputs")] = "fp32",
    quantize: Annotated[WeightType | None, Opt(help="type of the language model's matrices, if not --dtype")] = None,
    block_size: Annotated[int | None, Opt(help="weights that share a scale: 32 (default) or 128")] = None,
    max_prompt: Annotated[int, Opt(help="most text tokens of a prompt, template included")] = 256,
    batch: Annotated[int, Opt(help="images of one call of the vision graph")] = 1,
    region: Annotated[RegionRule, Opt(help="what a crop's share of the budget follows")] = "cls_cosine",
    thumbnail: Annotated[ThumbnailPolicy, Opt(help="where the thumbnail's budget comes from")] = "ratio",
    newline: Annotated[NewlinePolicy, Opt(help="row separators: keep all, or drop all")] = "keep",
    positions: Annotated[PositionPolicy, Opt(help="kept tokens' positions: as unpruned, or renumbered")] = "original",
    grid: Annotated[str | None, Opt(metavar="RxC", help="export for this one crop grid: fewer tiles to encode")] = None,
    opset: Annotated[int | None, Opt(help="ONNX opset: 18 to 20 (default), and 21 with --quantize")] = None,
    optimize: Annotated[
        Optimize | None, Opt(help="add graphs for this backend alone: tile by tile, keys and values in place")
    ] = None,
    revision: Annotated[str | None, Opt(help="branch, tag or commit of a Hugging Face id")] = None,
    dry_run: Annotated[bool, Opt("--dry-run", help="print levels, budgets and sizes; load and write nothing")] = False,
    force: Annotated[bool, Opt("--force", help="replace a bundle that stands at --out")] = False,
) -> None:
    """Export a vision-language model with Pyramid Token Pruning inside the graph."""
    _require_extra()
    from ptp.export.checkpoint import find_weights, open_checkpoint
    from ptp.export.checkpoint_files import holds_weights
    from ptp.export.config import DEFAULT_OPSET, QUANTIZED_OPSET, ExportConfig, parse_grid, parse_keep
    from ptp.export.failures import one_line, quiet_libraries
    from ptp.export.pipeline import export as run_export
    from ptp.export.plan import make_plan
    from ptp.report.page import REPORT_NAME

    fraction, keep_range = parse_keep(keep, reduction)
    name = "-".join(f"{float(bound):g}" for bound in keep_range or (fraction,))
    config = ExportConfig(
        model=model,
        out=out or Path(f"{Path(model).name}-keep{name}"),
        keep=fraction,
        keep_range=keep_range,
        instruction=instruction,
        alpha=None if alpha is None else parse_alpha(alpha),
        precision=dtype,
        quantize=quantize,
        block_size=block_size,  # type: ignore[arg-type]  # validated on construction
        max_prompt=max_prompt,
        batch=batch,
        region=region,
        thumbnail=thumbnail,
        newline=newline,
        positions=positions,
        grid=parse_grid(grid) if grid else None,
        opset=opset or (QUANTIZED_OPSET if quantize else DEFAULT_OPSET),  # type: ignore[arg-type]  # as above
        optimize=optimize,
        revision=revision,
        force=force,
    )
    console = Console(highlight=False, soft_wrap=True)
    if dry_run:
        with quiet_libraries(), one_line(lambda: "planning the export"):
            checkpoint = open_checkpoint(config.model, config.revision, weights=False)
            plan = make_plan(config, checkpoint)
            if checkpoint.revision is None and holds_weights(checkpoint.folder):  # of an id, only the index is there
                find_weights(checkpoint, config.precision)
            _print_plan(console, plan, checkpoint)
        return
    with quiet_libraries(), _progress() as progress:
        bundle = run_export(config, progress)
    manifest = bundle.manifest
    total = sum(entry.bytes for entry in manifest.files.values())
    console.print(f"[bold]{escape(shown(bundle.folder))}[/bold]  {human_bytes(total)}")
    console.print(budget_line(manifest.pruning, manifest.tiling))
    console.print(
        f"checked on {len(manifest.parity.images)} images: kept tokens equal the reference, features within "
        f"{manifest.parity.max_feature_difference:.1e} of transformers; TensorRT-RTX "
        + (f"{manifest.parity.tensorrt_rtx} builds it" if manifest.parity.tensorrt_rtx else "not installed, not tried")
    )
    if (how := manifest.model.quantization) and (drift := manifest.parity.drift):
        console.print(
            f"quantised to {quantization_line(how)}: {drift.top1_agreement:.1%} of {drift.positions} answer tokens "
            f"as before, KL divergence {drift.kl_divergence:.1e} nats"
        )
    if REPORT_NAME in manifest.files:
        console.print(f"report: {shown(bundle.folder / REPORT_NAME)}", markup=False)


def _require_extra() -> None:
    try:
        import onnx_ir  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            "exporting needs the extra `export`", got=f"no module {error.name!r}", do='pip install "ptp-export[export]"'
        ) from error


def _print_plan(console: Console, plan: "Plan", checkpoint: Any) -> None:
    from ptp.engines.memory import usable_bytes
    from ptp.engines.targets import TARGETS
    from ptp.export.memory import estimate

    sizes = estimate(plan, checkpoint)
    needed = max(sizes.board_build, sizes.board_run)
    boards = [name for name, target in TARGETS.items() if (usable_bytes(target) or 0) >= needed]
    tiling, text, how = plan.tiling, plan.language_model, plan.config.quantization
    types = plan.config.precision + (f", language model {quantization_line(how)}" if how else "")
    grids = ", ".join(f"{rows}x{columns}" for rows, columns in tiling.grids)
    lines = [
        f"[bold]{escape(checkpoint.id)}[/bold]  {checkpoint.config.model_type}, {types}",
        budget_line(plan.pruning, tiling),
        f"tiles: T = {tiling.max_tiles} of {tiling.tile_size}×{tiling.tile_size} pixels, "
        f"N = {tiling.tokens_per_tile} tokens each; grids {grids}; {plan.config.batch} image(s) a call",
        f"levels: thumbnail {plan.schedule.levels.thumbnail}, crops {plan.schedule.levels.crops}, "
        f"newline {plan.schedule.levels.newline}",
        f"instruction: {plan.config.instruction}; saliency from vision block {plan.saliency_layer}",
        f"language model: {text.num_layers} layers, {text.num_kv_heads} KV heads × {text.head_dim}, "
        f"hidden {text.hidden_size}, vocabulary {text.vocab_size}",
        f"weights: vision {human_bytes(sizes.vision)}, embedding {human_bytes(sizes.embed)}, "
        f"decoder {human_bytes(sizes.decoder)}",
        f"KV cache at {plan.config.max_prompt} + {plan.schedule.num_kept_range[1]} tokens: {human_bytes(sizes.cache)}",
        f"memory, estimated: export {human_bytes(sizes.export)}, run on the CPU {human_bytes(sizes.run)}",
        f"on a Jetson, estimated: build {human_bytes(sizes.board_build)}, run {human_bytes(sizes.board_run)}; "
        f"fits {', '.join(boards) or 'none of them'}",
    ]
    for line in lines:
        console.print(line)


@contextmanager
def _progress() -> Iterator[Any]:
    """Yield a callback that shows each step on stderr, with a bar where the amount is known; silent in a log file."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[amount]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("starting", total=None, amount="")

        def say(what: str, done: int | None, total: int | None) -> None:
            amount = ""
            if done is not None and total is not None:
                name = human_bytes if what.endswith("bytes") else str
                amount = f"{name(done)} of {name(total)}"
            progress.update(task, description=what, completed=done or 0, total=total, amount=amount)

        yield say

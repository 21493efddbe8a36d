"""The export, from checkpoint to bundle: each graph is traced, linted, written and checked before the next."""

import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import nn

from ptp.bundle.engine import KINDS
from ptp.bundle.manifest import Graphs, GraphSpec, Manifest, ModelInfo, Parity
from ptp.bundle.reader import Bundle
from ptp.bundle.vectors import VECTORS_NAME, write_vectors
from ptp.bundle.writer import check_destination, file_entries, file_entry, staged, write_manifest
from ptp.engines import tensorrt
from ptp.engines.build_script import write_build_script
from ptp.engines.memory import estimate
from ptp.engines.profiles import default_max_context, longest_prompt
from ptp.engines.targets import TARGETS
from ptp.export.checkpoint import Checkpoint, load_weights, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.decoder import DecoderGraph, EmbedGraph
from ptp.export.fused_decoder import FusedDecoderGraph
from ptp.export.gates.decoders import check_fused_decoder
from ptp.export.gates.parity import ImageParity, check_parity
from ptp.export.gates.vectors import record_vectors
from ptp.export.language import drop_late_blocks
from ptp.export.lint import lint
from ptp.export.passes import ShareWeights, shared_bytes
from ptp.export.plan import Plan, make_plan
from ptp.export.specs import GraphIO
from ptp.export.to_onnx import save, trace
from ptp.export.vision import build_vision_graph
from ptp.report.evaluation import read_evaluation
from ptp.report.page import EngineMemory, write_report

Progress = Callable[[str, int | None, int | None], None]
"""Called with what is being done, and how much of it is done where that is known."""

SUFFIX = {"fp32": "", "fp16": "_fp16"}
"""File name endings of transformers.js."""

TOOLS = ("ptp-export", "torch", "transformers", "onnx", "onnx-ir", "onnxruntime")


@dataclass(frozen=True, kw_only=True)
class VisionCheck:
    """What the gates saw: images compared, the engine build where the builder is installed, weights shared."""

    images: list[ImageParity]
    build: tensorrt.BuildReport | None
    shared_bytes: int


def export(config: ExportConfig, progress: Progress | None = None) -> Bundle:
    """Export a checkpoint into a bundle, with a report for people if the checkpoint holds an evaluation.

    Args:
        config: what to export, and where to.
        progress: told of every step.

    Raises:
        ConfigError: an option does not fit the checkpoint, or the destination may not be written.
        CheckpointError: the checkpoint cannot be loaded as it is, or its evaluation cannot be read.
        ExportError: a gate refused the graph; nothing is written.
    """
    say = progress or (lambda what, done, total: None)
    check_destination(config.out, force=config.force)
    say("reading the checkpoint", None, None)
    checkpoint = open_checkpoint(config.model, config.revision, weights=True)
    plan = make_plan(config, checkpoint)
    evaluation = read_evaluation(checkpoint.folder)
    started = time.perf_counter()
    with staged(config.out, force=config.force) as stage:
        say("loading weights", None, None)
        model = load_weights(checkpoint, config.precision)
        checkpoint.copy_files(stage)
        prompting = checkpoint.prompting(model.generation_config, config.max_prompt)
        if not (stage / "generation_config.json").exists():
            model.generation_config.to_json_file(stage / "generation_config.json")

        embed = _write(EmbedGraph(model), plan.embed_io, "embed_tokens", plan, stage, say)
        decoder = _write(DecoderGraph(model), plan.decoder_io, "decoder_model_merged", plan, stage, say)
        fused = _export_fused(model, plan, stage / decoder.file, stage, say) if config.optimize else None
        size = plan.tiling.tile_size
        model.config.image_grid_pinpoints = [[rows * size, columns * size] for rows, columns in plan.tiling.grids]
        vectors = record_vectors(plan, checkpoint, model, partial(say, "recording parity vectors"))
        write_vectors(stage / VECTORS_NAME, vectors)
        drop_late_blocks(model)  # they are on disk
        gc.collect()
        vision, check = _export_vision(plan, checkpoint, model, stage / decoder.file, stage, say)
        del model

        _write_report(stage / "report.json", plan, check, time.perf_counter() - started)
        say("hashing", None, None)
        manifest = Manifest(
            tools={"python": platform.python_version()} | {name: version(name) for name in TOOLS},
            opset=config.opset,
            model=ModelInfo(
                id=checkpoint.id,
                revision=checkpoint.revision,
                family=checkpoint.config.model_type,
                precision=config.precision,
            ),
            pruning=plan.pruning,
            tiling=plan.tiling,
            prompting=prompting,
            language_model=plan.language_model,
            graphs=Graphs(
                vision_encoder=vision, embed_tokens=embed, decoder_model_merged=decoder, decoder_onnxruntime=fused
            ),
            files=file_entries(stage),
            parity=_parity(check),
            vectors=VECTORS_NAME,
        )
        has_engines = longest_prompt(manifest) < default_max_context(manifest)
        if has_engines:
            manifest = _with_file(manifest, write_build_script(stage, manifest))
        if evaluation:
            gc.collect()  # the runtime needs the memory that the model had
            bundle = Bundle(folder=stage, manifest=manifest)
            memory = _engine_memory(bundle, check) if has_engines else ()
            report = write_report(
                bundle, evaluation, memory, lambda done, total: say("writing the report", done, total)
            )
            manifest = _with_file(manifest, report)
        write_manifest(stage, manifest)
    return Bundle(folder=config.out, manifest=manifest)


def _export_vision(
    plan: Plan, checkpoint: Checkpoint, model: Any, decoder: Path, stage: Path, say: Progress
) -> tuple[GraphSpec, VisionCheck]:
    """Write the vision graph, its language model's weights shared with the decoder; put it through the three gates."""
    graph = build_vision_graph(plan, checkpoint, model)
    spec = _write(graph, plan.vision_io, "vision_encoder", plan, stage, say, static=True, beside=decoder)
    gc.collect()
    path = stage / spec.file
    images = check_parity(
        path, plan.vision_io, plan, checkpoint, model, lambda done, of: say("comparing with transformers", done, of)
    )
    build = None
    if tensorrt.is_installed("tensorrt-rtx"):
        say("building with TensorRT-RTX", None, None)
        build = tensorrt.try_build(path, plan.num_kept_profile)
    return spec, VisionCheck(images=images, build=build, shared_bytes=shared_bytes(path))


def _export_fused(model: Any, plan: Plan, decoder: Path, stage: Path, say: Progress) -> GraphSpec:
    """Write the decoder for ONNX Runtime alone, beside the other one, whose weights it refers to; compare the two."""
    graph = FusedDecoderGraph(model)
    spec = _write(graph, plan.fused_decoder_io, "decoder_onnxruntime", plan, stage, say, stock=False, beside=decoder)
    say("comparing the decoders", None, None)
    check_fused_decoder(stage / spec.file, decoder, plan.language_model, plan.config.precision)
    return spec


def _write(
    module: nn.Module,
    io: GraphIO,
    name: str,
    plan: Plan,
    stage: Path,
    say: Progress,
    *,
    static: bool = False,
    stock: bool = True,
    beside: Path | None = None,
) -> GraphSpec:
    """Trace and write one graph, linted where it is in stock operators, sharing weights of the graph `beside` it."""
    say(f"tracing {name}", None, None)
    model = trace(module, io, opset=plan.config.opset)
    if stock:
        lint(model, name, static=static)
    if beside is not None:
        ShareWeights(beside)(model)
    file = f"onnx/{name}{SUFFIX[plan.config.precision]}.onnx"
    say(f"writing {name}", None, None)
    save(model, stage / file)
    return GraphSpec(file=file, inputs=io.inputs, outputs=io.outputs)


def _with_file(manifest: Manifest, path: Path) -> Manifest:
    """Return a manifest that lists one more file at the top of the bundle."""
    files = manifest.files | {path.name: file_entry(path)}
    return manifest.model_copy(update={"files": dict(sorted(files.items()))})


def _engine_memory(bundle: Bundle, check: VisionCheck) -> tuple[EngineMemory, ...]:
    """Return what the engines need on an RTX card, all of which need the same."""
    card = next(target for target in TARGETS.values() if target.backend == "tensorrt-rtx")
    estimates = {kind: estimate(bundle, card, kind, default_max_context(bundle.manifest)) for kind in KINDS}
    measured = {"visual": check.build.peak_bytes} if check.build else {}
    return tuple(
        EngineMemory(
            name=kind, run_bytes=x.run_bytes, build_bytes=x.build_bytes, measured_bytes=measured.get(kind) or None
        )
        for kind, x in estimates.items()
    )


def _parity(check: VisionCheck) -> Parity:
    return Parity(
        images=tuple(dict.fromkeys((image.height, image.width) for image in check.images)),
        max_feature_difference=_largest(image.feature_difference for image in check.images),
        max_score_difference=_largest(image.score_difference for image in check.images),
        kept_indices_equal=True,
        tensorrt_rtx=check.build.version if check.build else None,
    )


def _largest(values: Iterable[float]) -> float:
    return float(f"{max(values):.3g}")


def _write_report(path: Path, plan: Plan, check: VisionCheck, seconds: float) -> None:
    report = {
        "pruning": plan.pruning.model_dump(),
        "images": [image.to_dict() for image in check.images],
        "tensorrt_rtx": vars(check.build) if check.build else None,
        "shared_weight_bytes": check.shared_bytes,
        "seconds": round(seconds, 1),
        "machine": {"system": platform.platform(), "python": sys.version.split()[0]},
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

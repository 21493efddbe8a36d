"""The export, from checkpoint to bundle: each graph is traced, linted, written and checked before the next."""

import gc
import json
import platform
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnxruntime

from ptp.bundle.contract import GRAPH_FOLDER
from ptp.bundle.engine import KINDS
from ptp.bundle.manifest import SCHEMA_VERSION, Drift, Graphs, Manifest, ModelInfo, Parity
from ptp.bundle.reader import Bundle
from ptp.bundle.vectors import VECTORS_NAME, write_vectors
from ptp.bundle.writer import check_destination, file_entries, file_entry, staged, write_manifest
from ptp.engines import tensorrt
from ptp.engines.build_script import write_build_script
from ptp.engines.memory import estimate
from ptp.engines.profiles import default_max_context, longest_prompt
from ptp.engines.targets import TARGETS
from ptp.export.checkpoint import Checkpoint, check_weights, find_weights, load_model, make_skeleton, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.decoder import DecoderGraph, EmbedGraph
from ptp.export.failures import one_line
from ptp.export.fused_decoder import FusedDecoderGraph
from ptp.export.gates.decoders import check_fused_decoder
from ptp.export.gates.drift import measure_drift
from ptp.export.gates.parity import ImageParity, check_parity
from ptp.export.gates.vectors import record_vectors
from ptp.export.graph_writer import Clock, GraphWriter, Progress
from ptp.export.passes import shared_bytes
from ptp.export.plan import Plan, make_plan
from ptp.export.quantization import QuantizedWeights
from ptp.export.vision import build_vision_graph
from ptp.export.weights import Weights
from ptp.peak_memory import give_back
from ptp.report.evaluation import read_evaluation
from ptp.report.page import EngineMemory, write_report

DRIFT_NAME = "parity/drift.json"

TOOLS = ("ptp-export", "torch", "transformers", "onnx", "onnx-ir")


def tool_versions() -> dict[str, str]:
    """Return the versions of what makes and compares graphs, by package."""
    found = {"python": platform.python_version()} | {name: version(name) for name in TOOLS}
    return found | {"onnxruntime": onnxruntime.__version__}  # the package's own name may be onnxruntime-gpu


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
        ExportError: a gate refused the graph, or a library failed; nothing is written.
    """
    step = "starting"

    def say(what: str, done: int | None, total: int | None) -> None:
        nonlocal step
        step = what
        if progress:
            progress(what, done, total)

    with one_line(lambda: step):
        return _export(config, say)


def _export(config: ExportConfig, say: Progress) -> Bundle:
    check_destination(config.out, force=config.force)
    say("reading the checkpoint", None, None)
    checkpoint = open_checkpoint(config.model, config.revision, weights=True)
    plan = make_plan(config, checkpoint)
    evaluation = read_evaluation(checkpoint.folder)
    weights = find_weights(checkpoint, config.precision)
    clock = Clock()
    with staged(config.out, force=config.force, resume=_identity(plan, weights)) as stage:
        if not (stage / GRAPH_FOLDER).exists():  # an export that goes on has checked them
            with clock("checking the weights"):
                check_weights(checkpoint, weights, partial(say, "checking the weights"))
        skeleton = make_skeleton(checkpoint, weights)
        checkpoint.copy_files(stage)
        how = config.quantization
        model = load_model(checkpoint, QuantizedWeights(weights, how) if how else weights)
        prompting = checkpoint.prompting(model.generation_config, config.max_prompt)
        if not (stage / "generation_config.json").exists():
            model.generation_config.to_json_file(stage / "generation_config.json")

        write = GraphWriter(plan=plan, skeleton=skeleton, stage=stage, say=say, clock=clock).write
        embed = write(EmbedGraph(skeleton.model), plan.embed_io, "embed_tokens")
        decoder = write(DecoderGraph(skeleton.model), plan.decoder_io, "decoder_model_merged")
        fused = None
        if config.optimize:
            module, beside = FusedDecoderGraph(skeleton.model), stage / decoder.file
            fused = write(module, plan.fused_decoder_io, "decoder_onnxruntime", stock=False, beside=beside)
            say("comparing the decoders", None, None)
            with clock("comparing the decoders"):
                check_fused_decoder(stage / fused.file, beside, plan.language_model, config.precision)
        size = plan.tiling.tile_size
        model.config.image_grid_pinpoints = [[rows * size, columns * size] for rows, columns in plan.tiling.grids]
        if not (stage / VECTORS_NAME).exists():
            with clock("recording parity vectors"):
                vectors = record_vectors(plan, checkpoint, model, partial(say, "recording parity vectors"))
            if how:
                with clock("comparing with the unquantised model"):
                    say("comparing with the unquantised model", None, None)
                    drift = measure_drift(vectors, model, load_model(checkpoint, weights), config.positions)
                (stage / DRIFT_NAME).parent.mkdir(exist_ok=True)
                (stage / DRIFT_NAME).write_text(drift.model_dump_json(indent=2) + "\n", encoding="utf-8")
            write_vectors(stage / VECTORS_NAME, vectors)
        graph = build_vision_graph(plan, checkpoint, skeleton.model)
        vision = write(graph, plan.vision_io, "vision_encoder", static=True, beside=stage / decoder.file)
        twin = None
        if config.optimize:
            graph = build_vision_graph(plan, checkpoint, skeleton.model, control_flow=True)
            beside = stage / vision.file
            twin = write(graph, plan.vision_io, "vision_encoder_onnxruntime", stock=False, beside=beside)
        gc.collect()
        give_back()
        forms = [stage / form.file for form in (vision, twin) if form]
        check = _check_vision(plan, checkpoint, model, forms, say, clock)
        del model

        parity = _parity(check, stage / DRIFT_NAME)
        _write_report(stage / "report.json", plan, check, parity.drift, clock)
        say("hashing", None, None)
        manifest = Manifest(
            schema_version=SCHEMA_VERSION,
            tools=tool_versions(),
            opset=config.opset,
            model=ModelInfo(
                id=checkpoint.id,
                revision=checkpoint.revision,
                family=checkpoint.config.model_type,
                precision=config.precision,
                quantization=how,
            ),
            pruning=plan.pruning,
            tiling=plan.tiling,
            prompting=prompting,
            language_model=plan.language_model,
            graphs=Graphs(
                vision_encoder=vision,
                embed_tokens=embed,
                decoder_model_merged=decoder,
                decoder_onnxruntime=fused,
                vision_encoder_onnxruntime=twin,
            ),
            files=file_entries(stage),
            parity=parity,
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


def _identity(plan: Plan, weights: Weights) -> str | None:
    """Return all that decides what an export writes, where so much is written that a stopped one should go on."""
    if not weights.stay_on_disk:
        return None
    files = sorted({place.file for place in weights.places.values()})
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return repr((replace(plan.config, out=Path(), force=False), stats, tool_versions()))


def _check_vision(
    plan: Plan, checkpoint: Checkpoint, model: Any, paths: list[Path], say: Progress, clock: Clock
) -> VisionCheck:
    """Put the written vision graph in its forms, the portable one first, through their gates."""
    with clock("comparing with transformers"):
        images = check_parity(paths, plan, checkpoint, model, partial(say, "comparing with transformers"))
    build = None
    if tensorrt.is_installed("tensorrt-rtx"):
        say("building with TensorRT-RTX", None, None)
        with clock("building with TensorRT-RTX"):
            build = tensorrt.try_build(paths[0], plan.num_kept_profile)
    return VisionCheck(images=images, build=build, shared_bytes=shared_bytes(paths[0]))


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


def _parity(check: VisionCheck, drift: Path) -> Parity:
    return Parity(
        images=tuple(dict.fromkeys((image.height, image.width) for image in check.images)),
        max_feature_difference=_largest(image.feature_difference for image in check.images),
        max_score_difference=_largest(image.score_difference for image in check.images),
        kept_indices_equal=True,
        tensorrt_rtx=check.build.version if check.build else None,
        drift=Drift.model_validate_json(drift.read_bytes()) if drift.exists() else None,
    )


def _largest(values: Iterable[float]) -> float:
    return float(f"{max(values):.3g}")


def _write_report(path: Path, plan: Plan, check: VisionCheck, drift: Drift | None, clock: Clock) -> None:
    report = {
        "pruning": plan.pruning.model_dump(),
        "images": [image.to_dict() for image in check.images],
        "tensorrt_rtx": vars(check.build) if check.build else None,
        "drift": drift.model_dump() if drift else None,
        "shared_weight_bytes": check.shared_bytes,
        "seconds": {step: round(seconds, 1) for step, seconds in clock.seconds.items()},
        "machine": {"system": platform.platform(), "python": sys.version.split()[0]},
    }
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")

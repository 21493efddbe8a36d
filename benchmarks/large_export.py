"""Export a model that does not fit into memory: time and memory, beside a copy of its bytes and `torch.onnx.export`.

    python -m ptp.benchmarks.large_export FOLDER [--no-gates] [--quantize int4]

writes a random checkpoint of LLaVA-NeXT-7B's sizes into FOLDER (CLIP-L/336 and Mistral-7B, FP16, 15 GB), copies its
bytes, exports it (`--keep 0.25 --dtype fp16`), and prints what each took. Then a smaller one (`--plain-layers`) is
exported twice, by this package and by `torch.onnx.export` with the whole model in memory; not with `--quantize`. It
needs 50 GB of disk.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch

from ptp.benchmarks.random_checkpoint import SEVEN_B, write_large_checkpoint
from ptp.bundle.manifest import WeightType
from ptp.export import pipeline
from ptp.export.checkpoint import find_weights, make_skeleton, open_checkpoint
from ptp.export.config import DEFAULT_OPSET, QUANTIZED_OPSET, ExportConfig
from ptp.export.decoder import DecoderGraph, EmbedGraph
from ptp.export.graph_writer import Clock, GraphWriter
from ptp.export.plan import Plan, make_plan
from ptp.export.to_onnx import example_arguments
from ptp.export.vision import build_vision_graph
from ptp.peak_memory import peak_bytes

GIB = 1 << 30


def main() -> None:
    """Run one measurement in this process, or all of them in children."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=SEVEN_B.layers, help="blocks of the language model")
    parser.add_argument("--plain-layers", type=int, default=16, help="blocks of what torch.onnx.export is given")
    parser.add_argument("--gates", action=argparse.BooleanOptionalAction, default=True, help="check the export, too")
    parser.add_argument("--quantize", choices=get_args(WeightType), help="of the language model's matrices")
    parser.add_argument("--measure", choices=MEASURES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(MEASURES[options.measure](options.folder, options.quantize) | {"peak_bytes": peak_bytes()}))
        return
    large, small = options.folder / "large", options.folder / "small"
    _checkpoint(large, options.layers)
    weights = sum(file.stat().st_size for file in large.glob("*.safetensors"))
    print(f"checkpoint: {options.layers} blocks, {weights / GIB:.1f} GiB", flush=True)
    copied = _copy(large, options.folder / "copy")
    print(f"copy of these bytes: {copied:.1f} s", flush=True)
    exported = _child("export" if options.gates else "graphs", large, options.quantize)
    seconds = exported["seconds"]
    print("export: " + ", ".join(f"{step} {value:.1f} s" for step, value in seconds.items()))
    print(f"        peak {exported['peak_bytes'] / GIB:.2f} GiB; writing / copy = {seconds['writing'] / copied:.2f}; "
          f"{exported['written_bytes'] / 1e9:.2f} GB written")  # fmt: skip
    if options.quantize:
        return
    _checkpoint(small, options.plain_layers)
    ours, plain = (_child(measure, small) for measure in ("decoder", "plain"))
    for name, one in (("this package", ours), ("torch.onnx.export", plain)):
        print(f"decoder of {options.plain_layers} blocks, {name}: {sum(one['seconds'].values()):.1f} s, "
              f"peak {one['peak_bytes'] / GIB:.2f} GiB")  # fmt: skip


def _checkpoint(folder: Path, layers: int) -> None:
    if not (folder / "config.json").exists():
        write_large_checkpoint(folder, replace(SEVEN_B, layers=layers), dtype=torch.float16)


def _child(measure: str, folder: Path, quantize: str | None = None) -> Any:
    command = [sys.executable, "-m", "ptp.benchmarks.large_export", str(folder), "--measure", measure]
    command += ["--quantize", quantize] if quantize else []
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def _copy(folder: Path, to: Path) -> float:
    """Return the seconds that a copy of a checkpoint's weights takes, until it is on disk; the copy is removed."""
    to.mkdir()
    started = time.perf_counter()
    for file in sorted(folder.glob("*.safetensors")):
        shutil.copyfile(file, to / file.name)
        with (to / file.name).open("rb+") as opened:
            os.fsync(opened.fileno())
    seconds = time.perf_counter() - started
    shutil.rmtree(to)
    return seconds


def _plan(folder: Path, quantize: WeightType | None = None) -> tuple[Plan, Any]:
    config = ExportConfig(
        model=str(folder),
        out=folder / "out",
        keep=Fraction("0.25"),
        precision="fp16",
        quantize=quantize,
        opset=QUANTIZED_OPSET if quantize else DEFAULT_OPSET,
    )
    checkpoint = open_checkpoint(config.model, None, weights=True)
    return make_plan(config, checkpoint), checkpoint


def _export(folder: Path, quantize: WeightType | None) -> dict[str, Any]:
    """Export with every gate, and remove what was written."""
    plan, _ = _plan(folder, quantize)
    pipeline.export(plan.config, lambda what, done, total: print(f"\r{what} {done or ''}", end="", file=sys.stderr))
    report = json.loads((plan.config.out / "report.json").read_text(encoding="utf-8"))
    written = _bytes(plan.config.out)
    shutil.rmtree(plan.config.out)
    return {"seconds": report["seconds"], "written_bytes": written}


def _graphs(folder: Path, quantize: WeightType | None, *, only_decoder: bool = False) -> dict[str, Any]:
    """Trace and write the graphs alone, as an export does."""
    with _written(folder, quantize) as (plan, checkpoint, stage):
        clock = Clock()
        skeleton = make_skeleton(checkpoint, find_weights(checkpoint, "fp16"))
        write = GraphWriter(plan=plan, skeleton=skeleton, stage=stage, say=lambda *said: None, clock=clock).write
        decoder = write(DecoderGraph(skeleton.model), plan.decoder_io, "decoder_model_merged")
        if not only_decoder:
            write(EmbedGraph(skeleton.model), plan.embed_io, "embed_tokens")
            vision = build_vision_graph(plan, checkpoint, skeleton.model)
            write(vision, plan.vision_io, "vision_encoder", static=True, beside=stage / decoder.file)
        return {"seconds": clock.seconds, "written_bytes": _bytes(stage)}


def _plain(folder: Path, _: WeightType | None) -> dict[str, Any]:
    """Write the decoder as PyTorch's documentation says: load the model, call `torch.onnx.export`, save."""
    with _written(folder) as (plan, checkpoint, stage):
        started = time.perf_counter()
        model = checkpoint.adapter.load_class().from_pretrained(folder, dtype=torch.float16).eval()
        with torch.inference_mode():
            program = torch.onnx.export(
                DecoderGraph(model), **example_arguments(plan.decoder_io), dynamo=True, opset_version=20, verbose=False
            )
        assert program is not None
        program.save(stage / "decoder.onnx", external_data=True)
        return {"seconds": {"all": time.perf_counter() - started}}


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


@contextmanager
def _written(folder: Path, quantize: WeightType | None = None) -> Iterator[tuple[Plan, Any, Path]]:
    """Yield a plan, its checkpoint, and a folder that is removed with what was written to it."""
    plan, checkpoint = _plan(folder, quantize)
    stage = folder / "stage"
    stage.mkdir()
    try:
        yield plan, checkpoint, stage
    finally:
        shutil.rmtree(stage)


MEASURES: dict[str, Callable[[Path, WeightType | None], dict[str, Any]]] = {
    "export": _export,
    "graphs": _graphs,
    "decoder": partial(_graphs, only_decoder=True),
    "plain": _plain,
}

if __name__ == "__main__":
    main()

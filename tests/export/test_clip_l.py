"""The real geometry: CLIP-L/336, 24 layers, 5 tiles of 576 tokens. Minutes and gigabytes, so marked slow."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Geometry, write_checkpoint

from ptp.bundle import open_bundle
from ptp.bundle.engine import read_engines

CLIP_L = Geometry(
    tile=336,
    patch=14,
    vision_layers=24,
    vision_hidden=1024,
    vision_heads=16,
    vision_intermediate=4096,
    hidden=1024,
    layers=2,
    heads=16,
    kv_heads=4,
)


@pytest.mark.slow
def test_clip_l_336_exports_through_every_gate_and_builds(tmp_path: Path):
    checkpoint = write_checkpoint(tmp_path / "checkpoint", CLIP_L)
    out = tmp_path / "out"
    arguments = ["export", "--model", str(checkpoint), "--keep", "0.25", "--out", str(out)]
    program = [sys.executable, "-c", "from ptp.cli import main; main()"]
    subprocess.run([*program, *arguments], check=True)
    manifest = open_bundle(out).manifest
    assert manifest.pruning.levels.model_dump() == {"thumbnail": 144, "crops": 576, "newline": 72}
    assert manifest.pruning.num_kept == 792
    assert manifest.pruning.saliency_layer == 10  # the paper's 11th block
    # the first block, and the second's queries and keys: written once, with the decoder
    width, kv, mlp = 1024, 256, 2048
    shared = 2 * width * width + 2 * kv * width + 3 * width * mlp + width * width + kv * width
    shared += width  # the norms, all ones in a random checkpoint, are one tensor
    assert json.loads((out / "report.json").read_text())["shared_weight_bytes"] == 4 * shared
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(json.dumps({"peak_gib": round(peak, 2), "parity": manifest.parity.model_dump()}))

    subprocess.run([*program, "build", str(out), "--backend", "tensorrt-rtx", "--target", "sm86,sm89"], check=True)
    engines = read_engines(out)
    assert [(engine.target, engine.kind) for engine in engines] == [
        (target, kind) for target in ("sm86", "sm89") for kind in ("llm", "visual")
    ]
    names = [f"onnx/{name}" for name in ("vision_encoder.onnx", "vision_encoder.onnx_data")]
    assert {*names} < {*engines[1].graph_files}  # and the decoder's, whose weights it shares
    assert len(engines[1].graph_files) == 3
    for engine in engines:
        print(json.dumps({"kind": engine.kind, "seconds": engine.seconds, "peak": engine.peak_bytes}))

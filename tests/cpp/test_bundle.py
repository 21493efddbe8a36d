"""A bundle that the Python loader refuses is refused here, and random damage never crashes."""

import copy
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ptp.bundle import Manifest, open_bundle
from ptp.errors import PtpError

Change = tuple[list[str | int], Any]
DELETE = object()

CHANGES: dict[str, list[Change]] = {
    "newer schema": [(["schema_version"], 3)],
    "older schema": [(["schema_version"], 1)],
    "no schema": [(["schema_version"], DELETE)],
    "text for a number": [(["opset"], "many")],
    "opset": [(["opset"], 7)],
    "missing": [(["tiling"], DELETE)],
    "unknown key": [(["tiling", "surprise"], 1)],
    "unknown key at the top": [(["surprise"], {})],
    "null": [(["pruning"], None)],
    "list for an object": [(["language_model"], [])],
    "levels": [(["pruning", "levels", "crops"], 1)],
    "negative": [(["pruning", "levels", "crops"], -1)],
    "huge": [(["language_model", "hidden_size"], 1 << 62)],
    "beyond 64 bits": [(["language_model", "vocab_size"], 1 << 70)],
    "keep": [(["pruning", "keep"], 1.5)],
    "alpha": [(["pruning", "alpha"], "much")],
    "instruction": [(["pruning", "instruction"], "magic")],
    "grids": [(["tiling", "grids"], [])],
    "huge grid": [(["tiling", "grids", 0], [100000, 1])],
    "grid of three": [(["tiling", "grids", 0], [1, 2, 3])],
    "max tiles": [(["tiling", "max_tiles"], 9)],
    "tile size": [(["tiling", "tile_size"], 1 << 19)],
    "zero deviation": [(["tiling", "std", 0], 0)],
    "filter": [(["tiling", "resample"], "magic")],
    "image token": [(["prompting", "image_token"], "")],
    "max prompt": [(["prompting", "max_prompt"], 65)],
    "no chat": [(["prompting", "chat"], DELETE)],
    "chat": [(["prompting", "chat"], {"before_image": ""})],
    "trim": [(["prompting", "chat", "trim"], "start")],
    "long text": [(["prompting", "chat", "after_question"], "x" * ((1 << 16) + 1))],
    "system": [(["prompting", "chat", "system"], {"trim": "none"})],
    "next turn": [(["prompting", "chat", "next_turn"], {"trim": "none", "before_answer": ""})],
    "special tokens": [(["prompting", "add_special_tokens"], 1)],
    "control character": [(["model", "id"], "a\u001bb")],
    "long line": [(["model", "id"], "a" * 1001)],
    "path": [(["files", "../escape"], {"bytes": 1, "sha256": "0" * 64})],
    "absolute path": [(["files", "/etc/passwd"], {"bytes": 1, "sha256": "0" * 64})],
    "dots in a path": [(["files", "onnx/../../x"], {"bytes": 1, "sha256": "0" * 64})],
    "hash": [(["files", "tokenizer.json", "sha256"], "F" * 64)],
    "size": [(["files", "tokenizer.json", "bytes"], -1)],
    "graph file": [(["graphs", "embed_tokens", "file"], "onnx/other.onnx")],
    "graph elsewhere": [(["graphs", "embed_tokens", "file"], "tokenizer.json")],
    "rank": [(["graphs", "vision_encoder", "inputs", 0, "shape"], [1])],
    "empty shape": [(["graphs", "vision_encoder", "inputs", 0, "shape"], [])],
    "zero": [(["graphs", "vision_encoder", "inputs", 0, "shape", 0], 0)],
    "batch": [(["graphs", "vision_encoder", "inputs", 0, "shape", 0], 65)],
    "elements": [(["graphs", "embed_tokens", "inputs", 0, "shape"], [1 << 20, 1 << 20])],
    "element type": [(["graphs", "vision_encoder", "inputs", 0, "dtype"], "float64")],
    "no name": [(["graphs", "vision_encoder", "inputs", 0, "name"], "")],
    "another name": [(["graphs", "vision_encoder", "inputs", 0, "name"], "x")],
    "no inputs": [(["graphs", "vision_encoder", "inputs"], [])],
    "layers": [(["language_model", "num_layers"], 2)],
    "an input twice": [(["graphs", "decoder_model_merged", "inputs", 1, "name"], "inputs_embeds")],
    "an output twice": [(["graphs", "decoder_model_merged", "outputs", 1, "name"], "logits")],
    "tokens of another type": [(["graphs", "decoder_model_merged", "outputs", 1, "dtype"], "int32")],
    "a cache of another type": [(["graphs", "decoder_model_merged", "outputs", 5, "dtype"], "float16")],
    "embeddings of another type": [(["graphs", "embed_tokens", "outputs", 0, "dtype"], "float16")],
}


@pytest.fixture(scope="module")
def manifest(demo_bundle: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((demo_bundle / "ptp_config.json").read_text())
    return data


def changed(manifest: dict[str, Any], changes: list[Change]) -> dict[str, Any]:
    data = copy.deepcopy(manifest)
    for place, value in changes:
        parent: Any = data
        for key in place[:-1]:
            parent = parent[key]
        if value is DELETE:
            del parent[place[-1]]
        else:
            parent[place[-1]] = value
    return data


def test_the_manifest_as_it_is(probe, demo_bundle: Path) -> None:
    assert probe("manifest", path=demo_bundle / "ptp_config.json")


@pytest.mark.parametrize("name", CHANGES)
def test_manifests_that_python_refuses(probe, manifest, tmp_path: Path, name: str) -> None:
    path = tmp_path / "ptp_config.json"
    path.write_text(json.dumps(changed(manifest, CHANGES[name])))
    with pytest.raises(PtpError) as expected:
        Manifest.from_json(path.read_text())
    error = probe.refusal("manifest", path=path)
    assert error.status == "PTP_ERROR_BUNDLE"
    assert str(error).split(";")[0] == str(expected.value).split(";")[0]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", "[" * 100_000, '{"a":' * 100_000, '{"opset": 1e999}', '"\\ud800"']
)
def test_what_is_no_manifest(probe, tmp_path: Path, text: str) -> None:
    path = tmp_path / "ptp_config.json"
    path.write_text(text)
    assert re.match("ptp_config.json (is not JSON|does not follow schema 2)", str(probe.refusal("manifest", path=path)))


def test_damaged_manifests_never_crash(probe, demo_bundle: Path, tmp_path: Path) -> None:
    whole, path = (demo_bundle / "ptp_config.json").read_bytes(), tmp_path / "ptp_config.json"
    random = np.random.default_rng(0)
    for _ in range(100):
        data = bytearray(whole[: random.integers(len(whole))] if random.random() < 0.2 else whole)
        for place in random.integers(0, max(1, len(data)), 3):
            data[place : place + 1] = bytes([random.integers(256)])
        path.write_bytes(data)
        try:
            probe("manifest", path=path)
        except Exception as error:
            assert error.status == "PTP_ERROR_BUNDLE"  # noqa: PT017  some damage is in free text


def spoil(bundle: Path, way: str) -> None:
    if way == "altered":
        with (bundle / "onnx/embed_tokens.onnx").open("r+b") as file:
            file.seek(1000)
            file.write(b"spoiled")
    elif way == "longer":
        (bundle / "tokenizer.json").write_text((bundle / "tokenizer.json").read_text() + " ")
    elif way == "missing":
        (bundle / "tokenizer.json").unlink()
    elif way == "unlisted":
        (bundle / "onnx/extra.onnx_data").write_bytes(b"weights")
    elif way == "linked":
        outside = shutil.move(bundle / "config.json", bundle.parent / "config.json")
        (bundle / "config.json").symlink_to(outside)
    elif way == "no manifest":
        (bundle / "ptp_config.json").unlink()


@pytest.mark.parametrize("way", ["altered", "longer", "missing", "unlisted", "linked", "no manifest"])
def test_spoiled_bundles_get_python_s_sentence(probe, copied_bundle: Path, way: str) -> None:
    spoil(copied_bundle, way)
    with pytest.raises(PtpError) as expected:
        open_bundle(copied_bundle)
    error = probe.refusal("ask", bundle=copied_bundle, questions=[])
    assert (error.status, str(error)) == ("PTP_ERROR_BUNDLE", str(expected.value))


def test_hashes_are_shared_with_python(probe, copied_bundle: Path) -> None:
    probe("ask", bundle=copied_bundle, questions=[])
    cache = Path(os.environ["XDG_CACHE_HOME"]) / "ptp-export/sha256.json"
    graph = copied_bundle / "onnx/embed_tokens.onnx"
    entries = json.loads(cache.read_text())
    stat = graph.stat()
    assert entries[str(graph.resolve())][:-1] == [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    open_bundle(copied_bundle)
    assert json.loads(cache.read_text()) == entries

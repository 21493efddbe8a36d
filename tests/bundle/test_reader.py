import errno
import hashlib
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from ptp.bundle import HashCache, open_bundle
from ptp.bundle.manifest import MANIFEST_NAME
from ptp.errors import BundleError, IntegrityError, SchemaError
from ptp.runtime.backends.registry import graph_loader


def edit(folder, change):
    path = folder / MANIFEST_NAME
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_an_exported_bundle_opens(demo_bundle):
    bundle = open_bundle(demo_bundle)
    assert bundle.manifest.pruning.num_kept == 16 + 64 + 24
    assert bundle.path("tokenizer.json").is_file()
    with pytest.raises(BundleError, match="no file 'nothing'"):
        bundle.path("nothing")


def test_every_file_of_the_folder_is_listed(demo_bundle):
    files = {path.relative_to(demo_bundle).as_posix() for path in demo_bundle.rglob("*") if path.is_file()}
    assert files - {MANIFEST_NAME} == set(open_bundle(demo_bundle).manifest.files)


@pytest.mark.parametrize("name", ["onnx/vision_encoder.onnx", "tokenizer.json", "chat_template.jinja"])
def test_one_altered_byte_is_refused_after_the_bundle_was_once_verified(copied_bundle, name):
    open_bundle(copied_bundle)
    path = copied_bundle / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(IntegrityError, match=rf"{name} was altered"):
        open_bundle(copied_bundle)


def test_an_altered_byte_is_refused_even_with_the_old_modification_time(copied_bundle):
    open_bundle(copied_bundle)
    path = copied_bundle / "tokenizer.json"
    before = path.stat()
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError, match="altered"):
        open_bundle(copied_bundle)


def test_a_missing_and_a_truncated_file_are_refused(copied_bundle):
    path = copied_bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match="bytes; expected"):
        open_bundle(copied_bundle)
    path.unlink()
    with pytest.raises(IntegrityError, match="is missing"):
        open_bundle(copied_bundle)


def test_a_link_out_of_the_bundle_is_refused(copied_bundle, tmp_path):
    path = copied_bundle / "tokenizer.json"
    outside = tmp_path / "outside.json"
    path.rename(outside)
    path.symlink_to(outside)
    with pytest.raises(IntegrityError, match="link out of the bundle"):
        open_bundle(copied_bundle)


def test_a_file_beside_the_graphs_that_is_not_listed_is_refused(copied_bundle):
    """A graph's weights may be in any file of its folder, so each of them must have been verified."""
    (copied_bundle / "onnx" / "weights.bin").write_bytes(b"x")
    with pytest.raises(IntegrityError, match=r"weights\.bin is not a file of this bundle; remove it"):
        open_bundle(copied_bundle)


def test_a_folder_beside_the_graphs_that_is_a_link_is_refused(copied_bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (copied_bundle / "onnx" / "more").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(IntegrityError, match="more is not a file of this bundle"):
        open_bundle(copied_bundle)


def test_a_small_file_that_is_not_small_is_refused_before_it_is_read(copied_bundle):
    path = copied_bundle / "tokenizer.json"
    os.truncate(path, (1 << 26) + 1)
    edit(copied_bundle, lambda data: data["files"]["tokenizer.json"].update(bytes=(1 << 26) + 1))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json is too large"):
        open_bundle(copied_bundle)


def test_a_newer_schema_is_refused_with_what_to_do(copied_bundle):
    edit(copied_bundle, lambda data: data.update(schema_version=3))
    with pytest.raises(SchemaError, match="newer schema; got version 3; expected 2; install a newer"):
        open_bundle(copied_bundle)


def decoder(data):
    return data["graphs"]["decoder_model_merged"]


def vision(data):
    return data["graphs"]["vision_encoder"]


def another_vision(data):
    """Return the same graph with one output less."""
    return vision(data) | {"outputs": vision(data)["outputs"][:-1]}


RANGE = {"min": 0.1, "max": 0.5, "min_kept": 56, "max_kept": 184}
HOSTILE = {
    "unknown key": lambda d: d.update(extra=1),
    "missing key": lambda d: d.pop("tiling"),
    "parent path": lambda d: d["files"].update({"../evil": d["files"]["config.json"]}),
    "absolute path": lambda d: d["files"].update({"/etc/passwd": d["files"]["config.json"]}),
    "drive": lambda d: d["files"].update({"C:evil": d["files"]["config.json"]}),
    "huge file": lambda d: d["files"]["config.json"].update(bytes=1 << 60),
    "huge tile": lambda d: d["tiling"].update(tile_size=1 << 40),
    "negative": lambda d: d["tiling"].update(tokens_per_side=-1),
    "grids": lambda d: d["tiling"].update(grids=[[0, 1]]),
    "tiles": lambda d: d["tiling"].update(max_tiles=9),
    "division by zero": lambda d: d["tiling"].update(std=[1, 0, 1]),
    "budget": lambda d: d["pruning"].update(num_kept=d["pruning"]["num_kept"] + 1),
    "unlisted graph": lambda d: d["graphs"]["embed_tokens"].update(file="onnx/other.onnx"),
    "bad hash": lambda d: d["files"]["config.json"].update(sha256="x"),
    "text version": lambda d: d.update(schema_version="2"),
    "no version": lambda d: d.pop("schema_version"),
    "no chat": lambda d: d["prompting"].pop("chat"),
    "trim": lambda d: d["prompting"]["chat"].update(trim="start"),
    "long text": lambda d: d["prompting"]["chat"].update(after_question="x" * ((1 << 16) + 1)),
    "tile of the graph": lambda d: d["tiling"].update(tile_size=56),
    "tokens of the graph": lambda d: d["graphs"]["vision_encoder"]["outputs"][0].update(shape=[1, 7, 128]),
    "layers": lambda d: d["language_model"].update(num_layers=3),
    "many layers": lambda d: d["language_model"].update(num_layers=1 << 20),
    "vocabulary": lambda d: d["language_model"].update(vocab_size=5),
    "prompt": lambda d: d["prompting"].update(max_prompt=63),
    "scalar cache": lambda d: decoder(d)["inputs"][3].update(shape=[]),
    "heads of the cache": lambda d: decoder(d)["outputs"][1].update(shape=["b", 9, "t", 32]),
    "a fused decoder of many sequences": lambda d: d["graphs"].update(decoder_onnxruntime=decoder(d)),
    "a twin of other outputs": lambda d: d["graphs"].update(vision_encoder_onnxruntime=another_vision(d)),
    "hidden size of the decoder": lambda d: decoder(d)["inputs"][0].update(shape=["b", "s", 64]),
    "hidden size of the embedding": lambda d: d["graphs"]["embed_tokens"]["outputs"][0].update(shape=["b", "s", 64]),
    "batch": lambda d: d["graphs"]["vision_encoder"]["inputs"][1].update(shape=[7, 2]),
    "batch at run time": lambda d: d["graphs"]["vision_encoder"]["inputs"][0].update(shape=["b", 5, 3, 112, 112]),
    "mask": lambda d: d["graphs"]["vision_encoder"]["inputs"][6].update(shape=[1, 3]),
    "tokens smaller than pixels": lambda d: d["tiling"].update(tokens_per_side=113),
    "elements": lambda d: d["graphs"]["vision_encoder"]["inputs"][2].update(shape=[1 << 16, 1 << 16], name="tile_grid"),
    "unlisted vectors": lambda d: d.update(vectors="config.safetensors"),
    "graph at another place": lambda d: (
        d["files"].update({"e.onnx": d["files"]["onnx/embed_tokens.onnx"]}),
        d["graphs"]["embed_tokens"].update(file="e.onnx"),
    ),
    "terminal escape": lambda d: d["model"].update(id="\x1b]0;owned\x07"),
    "escape in a path": lambda d: d["files"].update({"a\x1b[2J": d["files"]["config.json"]}),
    "alpha": lambda d: d["pruning"].update(alpha="much"),
    "instruction without its inputs": lambda d: vision(d).update(inputs=vision(d)["inputs"][:3]),
    "inputs without an instruction": lambda d: d["pruning"].update(instruction="none"),
    "no word of the alpha used": lambda d: vision(d)["outputs"].pop(),
    "a further output": lambda d: vision(d)["outputs"].append({"name": "x", "dtype": "int64", "shape": []}),
    "an input twice": lambda d: vision(d)["inputs"].append(vision(d)["inputs"][0]),
    "large batch": lambda d: [x["shape"].__setitem__(0, 65) for x in vision(d)["inputs"] + vision(d)["outputs"]],
    "range of a fixed graph": lambda d: d["pruning"].update(keep_range=RANGE),
    "range without its input": lambda d: (
        d["pruning"].update(keep_range=RANGE),
        [x["shape"].__setitem__(1, "num_kept") for x in vision(d)["outputs"][:2]],
    ),
    "range upside down": lambda d: d["pruning"].update(keep_range=RANGE | {"min_kept": 184, "max_kept": 56}),
    "many files": lambda d: d["files"].update({f"m/{i}": d["files"]["config.json"] for i in range(4097)}),
    "long name": lambda d: d["files"].update({"a" * 256: d["files"]["config.json"]}),
    "another spelling of a path": lambda d: d["files"].update({"./config.json": d["files"]["config.json"]}),
    "more of the thumbnail than it has": lambda d: d["pruning"].update(
        levels={"thumbnail": 65, "crops": 15, "newline": 24}
    ),
    "an end token outside the vocabulary": lambda d: d["prompting"].update(eos_token_ids=[768]),
    "a large row of the cache": lambda d: (
        d["language_model"].update(num_kv_heads=1 << 12, head_dim=1 << 9),
        [x["shape"].__setitem__(slice(1, 4), [1 << 12, "t", 1 << 9]) for x in decoder(d)["inputs"][3:]],
        [
            x["shape"].__setitem__(slice(1, 4), [1 << 12, "t", 1 << 9])
            for x in decoder(d)["outputs"]
            if "present" in x["name"]
        ],
    ),
    "dtype": lambda d: d["graphs"]["vision_encoder"]["inputs"][0].update(dtype="float64"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests_are_refused_in_one_line(copied_bundle, name):
    edit(copied_bundle, HOSTILE[name])
    with pytest.raises(SchemaError) as error:
        open_bundle(copied_bundle)
    assert "\n" not in str(error.value)


def test_the_dimensions_of_a_shape_are_counted_before_they_are_multiplied(copied_bundle, monkeypatch):
    multiplied = []
    monkeypatch.setattr("ptp.bundle.schema.math.prod", lambda sizes: multiplied.append(list(sizes)) or 1)
    edit(copied_bundle, lambda d: vision(d)["inputs"][0].update(shape=[1 << 20] * 300_000))
    with pytest.raises(SchemaError, match="shape"):
        open_bundle(copied_bundle)
    assert max(map(len, multiplied)) <= 8


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 100_000, '{"schema_version": 2}'])
def test_text_that_is_no_manifest_is_refused(copied_bundle, text):
    (copied_bundle / MANIFEST_NAME).write_text(text)
    with pytest.raises(SchemaError):
        open_bundle(copied_bundle)


def test_bytes_that_are_no_text_and_a_manifest_too_large_are_refused(copied_bundle):
    (copied_bundle / MANIFEST_NAME).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="UTF-8"):
        open_bundle(copied_bundle)
    (copied_bundle / MANIFEST_NAME).write_bytes(b" " * ((1 << 24) + 1))
    with pytest.raises(BundleError, match="too large"):
        open_bundle(copied_bundle)


def test_a_folder_that_is_no_bundle_says_so(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)


def test_hashes_are_computed_once(copied_bundle, tmp_path):
    read = []
    cache = tmp_path / "cache.json"
    open_bundle(copied_bundle, hashes=HashCache(cache), progress=lambda name, done, total: read.append(name))
    assert read
    read.clear()
    open_bundle(copied_bundle, hashes=HashCache(cache), progress=lambda name, done, total: read.append(name))
    assert read == []


def test_a_cache_that_cannot_be_used_costs_only_time(copied_bundle, tmp_path):
    cache = tmp_path / "cache.json"
    for text in ("not json", "[]", '{"x": 1}'):
        cache.write_text(text)
        assert open_bundle(copied_bundle, hashes=HashCache(cache))
    assert open_bundle(copied_bundle, hashes=HashCache(copied_bundle / "tokenizer.json" / "no"))


def test_without_a_home_folder_hashes_are_not_kept_where_others_can_write(copied_bundle, tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("pathlib.Path.home", homeless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert open_bundle(copied_bundle)
    assert not (tmp_path / "ptp-export").exists()


def test_the_cache_is_written_once_for_many_files(copied_bundle, tmp_path, monkeypatch):
    written = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, target: written.append(target) or replace(self, target))
    (copied_bundle / "m").mkdir()
    empty = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    for i in range(50):
        (copied_bundle / "m" / str(i)).touch()
    edit(copied_bundle, lambda d: d["files"].update({f"m/{i}": empty for i in range(50)}))
    open_bundle(copied_bundle, hashes=HashCache(tmp_path / "cache.json"))
    assert written == [tmp_path / "cache.json"]


def test_writers_of_one_cache_keep_each_others_hashes(copied_bundle, tmp_path):
    one, two = (HashCache(tmp_path / "cache.json") for _ in range(2))
    for cache, name in ((one, "tokenizer.json"), (two, "config.json")):
        cache.sha256_of(copied_bundle / name)
    one.save()
    two.save()
    known = json.loads((tmp_path / "cache.json").read_text())
    assert {Path(path).name for path in known} == {"tokenizer.json", "config.json"}


def test_a_cache_that_would_be_too_large_begins_anew(copied_bundle, tmp_path, monkeypatch):
    cache = tmp_path / "cache.json"
    cache.write_text(json.dumps({f"/gone/{i}": [1, 2, 3, 4, "0" * 64] for i in range(100)}))
    monkeypatch.setattr("ptp.bundle.hashes.MAX_CACHE_BYTES", cache.stat().st_size)
    hashes = HashCache(cache)
    hashes.sha256_of(copied_bundle / "config.json")
    hashes.save()
    assert [Path(path).name for path in json.loads(cache.read_text())] == ["config.json"]


def test_a_full_disk_leaves_no_temporary_file(copied_bundle, tmp_path, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    assert open_bundle(copied_bundle, hashes=HashCache(tmp_path / "cache" / "sha256.json"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_place_of_the_graphs_is_no_link_and_nothing_is_walked(copied_bundle, tmp_path, monkeypatch):
    walked = []
    scan = os.scandir
    shutil.move(copied_bundle / "onnx", tmp_path / "elsewhere")
    (copied_bundle / "onnx").symlink_to(tmp_path / "elsewhere")
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(path) or scan(path))
    with pytest.raises(IntegrityError, match="onnx is a link; expected a folder"):
        open_bundle(copied_bundle)
    assert walked == []


def test_folders_beside_the_graphs_are_not_entered(copied_bundle, monkeypatch):
    walked = []
    scan = os.scandir
    (copied_bundle / "onnx/a/b/c").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", lambda path: walked.append(path) or scan(path))
    with pytest.raises(IntegrityError, match="onnx/a is not a file of this bundle"):
        open_bundle(copied_bundle)
    assert walked == [copied_bundle / "onnx"]


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket"])
def test_what_is_no_file_is_refused_and_never_waited_for(copied_bundle, kind, monkeypatch):
    path = copied_bundle / "tokenizer.json"
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        monkeypatch.chdir(copied_bundle)  # a socket's path is short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("tokenizer.json")
    with pytest.raises(IntegrityError, match=r"tokenizer\.json (is not a file|cannot be read)"):
        open_bundle(copied_bundle)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(copied_bundle, monkeypatch):
    opened = os.open

    def denied(path, *arguments, **options):
        if str(path).endswith("tokenizer.json"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(IntegrityError, match=r"tokenizer\.json cannot be read; got Permission denied"):
        open_bundle(copied_bundle)


@pytest.mark.parametrize("folder", ["a" * 300, "a\0b"])
def test_names_that_no_folder_has_are_no_bundle(folder):
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(folder)


def test_bytes_are_compared_where_they_are_read(copied_bundle):
    bundle = open_bundle(copied_bundle)
    assert bundle.read("tokenizer.json") == (copied_bundle / "tokenizer.json").read_bytes()
    path = copied_bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes().replace(b"a", b"b", 1))
    with pytest.raises(IntegrityError, match=r"tokenizer\.json was altered"):
        bundle.read("tokenizer.json")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_graph_exchanged_after_it_was_verified_is_not_used(copied_bundle, backend):
    bundle = open_bundle(copied_bundle)
    path = copied_bundle / "onnx/embed_tokens.onnx"
    shutil.copy(path, copied_bundle / "copy")
    (copied_bundle / "copy").replace(path)
    with pytest.raises(IntegrityError, match=r"embed_tokens\.onnx changed after it was verified; start again"):
        graph_loader(backend)(bundle, bundle.manifest.graphs.embed_tokens)

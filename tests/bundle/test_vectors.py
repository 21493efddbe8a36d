"""The file of parity vectors: what an export wrote, and what a stranger could have put in its place."""

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_bundle import file_entry
from safetensors.numpy import load_file, save_file

from ptp.bundle import Bundle, open_bundle
from ptp.bundle.tensors import MAX_HEADER_BYTES, read_tensors, write_tensors
from ptp.bundle.vectors import MAX_VECTORS, TENSORS, VECTORS_NAME, read_vectors, write_vectors
from ptp.errors import IntegrityError, SchemaError


@pytest.fixture
def spoiled(demo_bundle, tmp_path):
    """The demo bundle with a copy of its vectors that a test may spoil; nothing else is in the folder."""
    manifest = open_bundle(demo_bundle).manifest
    (tmp_path / "parity").mkdir()
    shutil.copy(demo_bundle / VECTORS_NAME, tmp_path / VECTORS_NAME)
    return Bundle(folder=tmp_path, manifest=manifest)


def listed(bundle):
    """Return a bundle whose manifest lists the vectors that are in its folder."""
    files = bundle.manifest.files | {VECTORS_NAME: file_entry(bundle.folder / VECTORS_NAME)}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"files": files}))


def test_vectors_exchanged_after_the_bundle_was_opened_are_not_used(demo_bundle, tmp_path):
    shutil.copytree(demo_bundle, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    tensors = read_tensors(bundle.read(VECTORS_NAME))
    write_tensors(bundle.folder / VECTORS_NAME, tensors | {"0.tokens": tensors["0.tokens"] ^ 1})
    with pytest.raises(IntegrityError, match=r"vectors\.safetensors was altered; got SHA-256"):
        read_vectors(bundle)


def test_the_format_is_safetensors(demo_bundle, tmp_path):
    path = demo_bundle / VECTORS_NAME
    ours, theirs = read_tensors(path.read_bytes()), load_file(path)
    assert set(ours) == set(theirs)
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        np.testing.assert_array_equal(ours[name], array)
    save_file(theirs, tmp_path / "theirs", metadata={"made by": "another program"})
    assert read_tensors((tmp_path / "theirs").read_bytes()).keys() == theirs.keys()
    write_tensors(tmp_path / "again", ours)
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_vectors_are_read_as_they_were_written(demo_bundle, tmp_path):
    bundle = open_bundle(demo_bundle)
    vectors = read_vectors(bundle)
    assert len({tuple(vector.tile_grid) for vector in vectors}) == len(vectors) == 3
    write_vectors(tmp_path / VECTORS_NAME, vectors)
    again = read_vectors(listed(Bundle(folder=tmp_path, manifest=bundle.manifest)))
    for one, two in zip(vectors, again, strict=True):
        for name in TENSORS:
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))


def replaced(name, change):
    """Return a change of one tensor of the second vector."""

    def spoil(tensors):
        tensors[f"1.{name}"] = np.array(change(tensors[f"1.{name}"].copy()), order="C")

    return spoil


def at(place, value):
    def change(array):
        array[place] = value
        return array

    return change


HOSTILE_TENSORS = {
    "no tensor 1.logits": lambda t: t.pop("1.logits"),
    "unknown tensor 0.weights": lambda t: t.update({"0.weights": t.pop("0.logits"), "0.logits": t["1.logits"]}),
    "no tensor 0.effective_alpha, 0.image_features": lambda t: t.clear(),
    "vectors, more than": lambda t: t.update(
        {f"{i}.{name}": t[f"0.{name}"] for i in range(MAX_VECTORS + 1) for name in TENSORS}
    ),
    "1.logits is float32 [": replaced("logits", lambda x: x[1:]),
    "logits is float16": replaced("logits", lambda x: x.astype(np.float16)),
    "image_features is float32": replaced("image_features", lambda x: x[:-1]),
    "tiles is uint8 [3, 3, 112, 56]": replaced("tiles", lambda x: x[..., ::2]),
    "input_ids is int64 []": replaced("input_ids", lambda x: x[0]),
    "packed_length is int64 [2]": replaced("packed_length", lambda x: x.repeat(2)),
    "1.logits holds numbers that are not finite": replaced("logits", at(3, np.nan)),
    "image_features holds numbers that are not finite": replaced("image_features", at((0, 0), np.inf)),
    "tile_grid is (9, 9)": replaced("tile_grid", lambda x: x * 0 + 9),
    "tile_grid is (2, 1) with 2 tiles": replaced("tiles", lambda x: x[:2]),
    "image_size is 0, 112": replaced("image_size", at(0, 0)),
    "image_size is 1099511627776": replaced("image_size", at(0, 1 << 40)),
    "packed_length holds values that cannot be": replaced("packed_length", lambda x: x + (1 << 40)),
    "input_ids holds values": replaced("input_ids", at(0, 1 << 40)),
    "prefix_length holds values": replaced("prefix_length", at(0, -1)),
    "image_positions holds values": replaced("image_positions", lambda x: x[::-1]),
    "tile_budgets holds values": replaced("tile_budgets", at(0, -1)),
    "tokens holds values": replaced("tokens", at(0, 1 << 40)),
}


@pytest.mark.parametrize("message", HOSTILE_TENSORS)
def test_tensors_that_no_export_writes_are_refused_in_one_line(spoiled, message):
    tensors = read_tensors((spoiled.folder / VECTORS_NAME).read_bytes())
    HOSTILE_TENSORS[message](tensors)
    write_tensors(spoiled.folder / VECTORS_NAME, tensors)
    with pytest.raises(SchemaError) as error:
        read_vectors(listed(spoiled))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def file_of(header, body=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def tensor(dtype="F32", shape=(1,), offsets=(0, 4)):
    return {"0.logits": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


HOSTILE_BYTES = {
    "empty": b"",
    "shorter than its length": b"\x01\x00",
    "a pickle": pickle.dumps({"0.logits": os.system}),
    "a zip": b"PK\x03\x04" + bytes(100),
    "a header beyond the end": (1 << 63).to_bytes(8, "little") + b"{}",
    "a huge header": file_of(b" " * (MAX_HEADER_BYTES + 1)),
    "a header that is no JSON": file_of(b"{'a': 1}"),
    "a header that is no text": file_of(b'{"\xff": 1}'),
    "a header that is no object": file_of([]),
    "deep nesting": file_of(b"[" * 100_000),
    "an unknown type": file_of(tensor("F64", offsets=(0, 8)), bytes(8)),
    "an unknown key": file_of({"0.logits": tensor()["0.logits"] | {"code": "import os"}}, bytes(4)),
    "bytes beyond the end": file_of(tensor(offsets=(4, 8)), bytes(4)),
    "bytes before the beginning": file_of(tensor(offsets=(-4, 0)), bytes(4)),
    "offsets upside down": file_of(tensor(offsets=(4, 0)), bytes(4)),
    "more elements than bytes": file_of(tensor(shape=(1 << 20, 1 << 20)), bytes(4)),
    "a negative size": file_of(tensor(shape=(-1,)), bytes(4)),
    "too many dimensions": file_of(tensor(shape=(1,) * 100), bytes(4)),
    "neither true nor false": file_of(tensor("BOOL", offsets=(0, 1)), b"\x07"),
}


@pytest.mark.parametrize("name", HOSTILE_BYTES)
def test_bytes_that_are_no_tensors_are_refused_in_one_line(spoiled, name):
    (spoiled.folder / VECTORS_NAME).write_bytes(HOSTILE_BYTES[name])
    with pytest.raises(SchemaError, match=r"vectors\.safetensors holds no parity vectors of this bundle") as error:
        read_vectors(listed(spoiled))
    assert "\n" not in str(error.value)


def test_a_bundle_whose_vectors_are_missing_or_too_large_does_not_open(copied_bundle, monkeypatch):
    monkeypatch.setattr("ptp.bundle.reader.MAX_VECTORS_BYTES", 1000)
    with pytest.raises(
        IntegrityError, match=r"vectors\.safetensors is too large; got \d+ bytes; expected at most 1000"
    ):
        open_bundle(copied_bundle)
    monkeypatch.undo()
    Path(copied_bundle / VECTORS_NAME).unlink()
    with pytest.raises(IntegrityError, match=r"vectors\.safetensors is missing"):
        open_bundle(copied_bundle)

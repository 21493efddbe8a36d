"""Weights that stay on disk until they are used: the same model, the same bundle, and nothing lost on the way."""

import json
import shutil
import weakref
from fractions import Fraction

import numpy as np
import onnx_ir as ir
import pytest
import torch
from checkpoints import Geometry
from safetensors.torch import load_file, save_file
from transformers import LlavaNextForConditionalGeneration

from ptp.benchmarks import random_checkpoint
from ptp.bundle import open_bundle
from ptp.errors import CheckpointError, ConfigError
from ptp.export import pipeline, tensor_file, to_onnx, weights
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.tensor_file import write_tensors

DTYPES = {"fp32": torch.float32, "fp16": torch.float16}


def opened(folder):
    return open_checkpoint(str(folder), None, weights=True)


@pytest.fixture
def own_checkpoint(tiny_checkpoint, tmp_path):
    """Return a function that copies a tiny checkpoint, to be changed."""
    return lambda language_model: shutil.copytree(tiny_checkpoint(language_model), tmp_path / "checkpoint")


def split(folder):
    """Put a checkpoint's tensors into three files with an index, as large checkpoints come."""
    tensors = load_file(folder / "model.safetensors")
    index = {}
    for number in range(3):
        name = f"model-{number}.safetensors"
        part = {key: tensors[key] for key in sorted(tensors)[number::3]}
        save_file(part, folder / name, metadata={"format": "pt"})
        index |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_the_model_is_transformers_own_with_rounded_weights(tiny_checkpoint, monkeypatch, precision, on_disk):
    folder = tiny_checkpoint("qwen2")
    expected = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=DTYPES[precision]).float().eval()
    if on_disk:
        monkeypatch.setattr(weights, "IN_MEMORY", 0)
    checkpoint = opened(folder)
    model = load_model(checkpoint, find_weights(checkpoint, precision))
    assert {parameter.device.type for parameter in model.parameters()} == ({"meta", "cpu"} if on_disk else {"cpu"})
    ids = torch.tensor([[5, 7, 9]])
    pixels, sizes = torch.randn(1, 3, 3, 56, 56), torch.tensor([[60, 120]])
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
        found = model.get_image_features(pixels, sizes).pooler_output
        assert torch.equal(found[0], expected.get_image_features(pixels, sizes).pooler_output[0])
    assert not any(torch.isnan(buffer).any() for buffer in model.buffers())


def test_shards_are_found_and_a_missing_one_is_named(own_checkpoint):
    folder = own_checkpoint("llama")
    whole = dict(find_weights(opened(folder), "fp32"))
    split(folder)
    parts = find_weights(opened(folder), "fp32")
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name], whole[name]) for name in whole)
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model-1\.safetensors; download"):
        find_weights(opened(folder), "fp32")


def test_a_checkpoint_that_is_written_piece_by_piece_has_every_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(random_checkpoint, "SHARD_BYTES", 200_000)
    folder = random_checkpoint.write_large_checkpoint(tmp_path, Geometry(language_model="mistral"), dtype=torch.float16)
    assert len(list(folder.glob("*.safetensors"))) > 2
    expected = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float16).state_dict()
    found = find_weights(opened(folder), "fp16")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def test_a_tied_head_is_read_from_the_embedding(own_checkpoint):
    folder = own_checkpoint("qwen2")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = config["text_config"]["tie_word_embeddings"] = True
    (folder / "config.json").write_text(json.dumps(config))
    tensors = load_file(folder / "model.safetensors")
    del tensors["language_model.lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = find_weights(opened(folder), "fp32")
    assert torch.equal(found["lm_head.weight"], tensors["language_model.model.embed_tokens.weight"])


@pytest.fixture
def large(monkeypatch):
    """Let a tiny model count as one whose weights do not fit into memory, in files that are synced often."""
    monkeypatch.setattr(weights, "IN_MEMORY", 0)
    monkeypatch.setattr(to_onnx, "INLINE_LIMIT", 1000)
    monkeypatch.setattr(tensor_file, "SYNC_BYTES", 50_000)
    monkeypatch.setattr(pipeline.tensorrt, "is_installed", lambda name: False)


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in ("report.json", "ptp_config.json")
    }


def test_an_interrupted_export_goes_on_and_gives_the_same_bytes(tiny_checkpoint, tmp_path, monkeypatch, large):
    def config(name):
        return ExportConfig(
            model=str(tiny_checkpoint("llama")), out=tmp_path / name, keep=Fraction("0.25"), max_prompt=16,
            instruction="similarity", grid=(1, 2), precision="fp16",
        )  # fmt: skip

    def stop_in(step, after):
        def progress(what, done, total):
            if what.startswith(step) and (done or 0) >= after:
                raise KeyboardInterrupt

        return progress

    pipeline.export(config("whole"))
    with pytest.raises(KeyboardInterrupt) as stopped:
        pipeline.export(config("parts"), stop_in("writing decoder", 100_000))
    (left,) = tmp_path.glob(".parts.*.partial")
    assert stopped.value.__notes__ == [f"{left} holds what was written, and the same command goes on from there"]
    assert not list(tmp_path.glob("*.lock"))
    (mark,) = (left / "onnx").glob(".*.synced")
    synced = int(mark.read_text())
    assert 0 < synced <= 100_000 + 50_000
    read = []
    original = weights.Weights.__getitem__
    monkeypatch.setattr(weights.Weights, "__getitem__", lambda self, name: read.append(name) or original(self, name))
    steps = []
    with pytest.raises(KeyboardInterrupt):  # what is written in part is not read again
        pipeline.export(config("parts"), lambda *say: steps.append(say[0]) or stop_in("recording", 0)(*say))
    assert "tracing embed_tokens" not in steps
    assert "model.language_model.layers.0.self_attn.q_proj.weight" not in read
    assert "model.language_model.layers.1.mlp.down_proj.weight" in read
    pipeline.export(config("parts"))
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")
    open_bundle(tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_another_export_does_not_go_on_where_this_one_stopped(tiny_checkpoint, tmp_path, large):
    options = {"model": str(tiny_checkpoint("llama")), "out": tmp_path / "out", "instruction": "none", "grid": (1, 2)}

    def stop(what, done, total):
        if what.startswith("tracing decoder"):
            raise KeyboardInterrupt

    for keep in ("0.25", "0.5"):
        with pytest.raises(KeyboardInterrupt):
            pipeline.export(ExportConfig(keep=Fraction(keep), **options), stop)
    assert len(list(tmp_path.glob(".out.*.partial"))) == 2


def test_one_weight_is_in_memory_at_a_time(tiny_checkpoint, tmp_path, monkeypatch, large):
    alive, most = weakref.WeakSet(), []
    original = weights.Weights.__getitem__

    def read(self, name):
        tensor = original(self, name)
        alive.add(tensor)
        most.append(len(alive))
        return tensor

    folder = tiny_checkpoint("llama")
    checkpoint = opened(folder)
    found = find_weights(checkpoint, "fp16")
    monkeypatch.setattr(weights.Weights, "__getitem__", read)
    tensors = [found.lazy(name) for name in found]
    written = write_tensors(tensors, tmp_path / "data")
    assert len(most) == len(found)
    assert max(most) == 1
    expected = load_file(folder / "model.safetensors")["image_newline"].half()
    newline = written[list(found).index("model.image_newline")]
    np.testing.assert_array_equal(newline.numpy(), expected.numpy())
    assert all(tensor.offset % 64 == 0 for tensor in written)


def test_what_is_not_certain_to_be_on_disk_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(tensor_file, "SYNC_BYTES", 8192)
    monkeypatch.setattr(tensor_file, "LARGE", 4096)
    tensors = [ir.tensor(np.full(1024, number, np.float32)) for number in range(6)]

    def stop(done, total):
        if done > 16_000:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_tensors(tensors, tmp_path / "data", stop)
    synced = int((tmp_path / ".data.synced").read_text())
    damaged = bytearray((tmp_path / "data").read_bytes())
    damaged[synced:] = bytes(len(damaged) - synced)
    (tmp_path / "data").write_bytes(damaged)
    write_tensors(tensors, tmp_path / "data")
    assert np.array_equal(np.fromfile(tmp_path / "data", np.float32), np.arange(6).repeat(1024))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_mark_that_a_full_disk_left_empty_says_nothing(tmp_path):
    (tmp_path / "data").write_bytes(bytes(4096))
    (tmp_path / ".data.synced").touch()
    write_tensors([ir.tensor(np.ones(1024, np.float32))], tmp_path / "data")
    assert np.array_equal(np.fromfile(tmp_path / "data", np.float32), np.ones(1024))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_two_exports_of_the_same_do_not_write_into_one_folder(tmp_path):
    from ptp.bundle.writer import staged

    with staged(tmp_path / "out", force=False, resume="same"):
        with pytest.raises(ConfigError, match="another process is writing the same"):
            with staged(tmp_path / "out", force=False, resume="same"):
                pass

"""The weights that an export writes are those that plain `from_pretrained` loads, whatever form the checkpoint has."""

import json
import os
import re
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlavaNextForConditionalGeneration

from ptp import Pipeline
from ptp.cli import main
from ptp.errors import CheckpointError
from ptp.export import weights
from ptp.export.checkpoint import check_weights, find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.pipeline import export
from ptp.export.weights import Place, Weights

HEAD, EMBEDDING = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]
Change = Callable[[Path], object]


@pytest.fixture
def folder(tiny_checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "checkpoint"))


def tensors_of(folder: Path, name: str = SINGLE) -> Tensors:
    return load_file(folder / name)


def save(tensors: Tensors, folder: Path, name: str = SINGLE) -> None:
    save_file({key: x.contiguous() for key, x in tensors.items()}, folder / name, metadata={"format": "pt"})


def configure(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def tie(folder: Path, *, top: bool = True, text: bool = True) -> None:
    config = json.loads((folder / "config.json").read_text())
    configure(folder, tie_word_embeddings=top, text_config=config["text_config"] | {"tie_word_embeddings": text})


def shard(tensors: Tensors, folder: Path, parts: int = 2, prefix: str = "model") -> None:
    index = {}
    for number in range(parts):
        part = {key: tensors[key] for key in sorted(tensors)[number::parts]}
        save(part, folder, f"{prefix}-{number}.safetensors")
        index |= dict.fromkeys(part, f"{prefix}-{number}.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))


def disturbed(tensors: Tensors) -> Tensors:
    return {name: x + 1 for name, x in tensors.items()}


def own_head(folder: Path) -> None:
    tie(folder)


def own_head_by_the_text_alone(folder: Path) -> None:
    tie(folder, top=False)


def own_head_by_the_model_alone(folder: Path) -> None:
    tie(folder, text=False)


def equal_head(folder: Path) -> None:
    tie(folder)
    tensors = tensors_of(folder)
    save(tensors | {HEAD: tensors[EMBEDDING].clone()}, folder)


def no_head(folder: Path) -> None:
    tie(folder)
    save({name: x for name, x in tensors_of(folder).items() if name != HEAD}, folder)


def head_alone(folder: Path) -> None:
    tie(folder)
    save({name: x for name, x in tensors_of(folder).items() if name != EMBEDDING}, folder)


def shards(folder: Path) -> None:
    shard(tensors_of(folder), folder)
    (folder / SINGLE).unlink()


def single_file_beside_an_index(folder: Path) -> None:
    shard(disturbed(tensors_of(folder)), folder)


def shards_beside_those_of_an_earlier_save(folder: Path) -> None:
    shard(disturbed(tensors_of(folder)), folder, 3, "old")
    shards(folder)


def a_tensor_in_two_shards(folder: Path) -> None:
    shards(folder)
    last = tensors_of(folder, "model-1.safetensors")
    first = tensors_of(folder, "model-0.safetensors")
    name = next(iter(first))
    save(last | {name: first[name] + 1}, folder, "model-1.safetensors")


def an_index_of_other_places(folder: Path) -> None:
    shards(folder)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    other = {"model-0.safetensors": "model-1.safetensors", "model-1.safetensors": "model-0.safetensors"}
    (folder / INDEX).write_text(
        json.dumps({"metadata": {}, "weight_map": {name: other[file] for name, file in places.items()}})
    )


def shards_in_a_folder_of_their_own(folder: Path) -> None:
    shards(folder)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / "parts").mkdir()
    for name in set(places.values()):
        (folder / name).rename(folder / "parts" / name)
    below = {key: f"parts/{name}" for key, name in places.items()}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": below}))


def a_file_that_the_configuration_names(folder: Path) -> None:
    tensors = tensors_of(folder)
    save(tensors, folder, "mine.safetensors")
    save(disturbed(tensors), folder)
    configure(folder, transformers_weights="mine.safetensors")


def beside_a_pickle(folder: Path) -> None:
    torch.save(disturbed(tensors_of(folder)), folder / "pytorch_model.bin")


def beside_a_variant(folder: Path) -> None:
    save(disturbed(tensors_of(folder)), folder, "model.fp16.safetensors")


def a_head_of_two_names(folder: Path) -> None:
    tensors = tensors_of(folder)
    save(tensors | {"lm_head.weight": tensors[HEAD] + 1}, folder)


def an_embedding_of_two_names_in_shards(folder: Path) -> None:
    tensors = tensors_of(folder)
    new = "model.language_model.embed_tokens.weight"
    shard({new: tensors[EMBEDDING] + 1} | tensors, folder)
    (folder / SINGLE).unlink()


def in_bfloat16(folder: Path) -> None:
    save({name: x.bfloat16() for name, x in tensors_of(folder).items()}, folder)


FORMS = (
    own_head,
    own_head_by_the_text_alone,
    own_head_by_the_model_alone,
    equal_head,
    no_head,
    head_alone,
    shards,
    single_file_beside_an_index,
    shards_beside_those_of_an_earlier_save,
    a_tensor_in_two_shards,
    an_index_of_other_places,
    shards_in_a_folder_of_their_own,
    a_file_that_the_configuration_names,
    beside_a_pickle,
    beside_a_variant,
    a_head_of_two_names,
    an_embedding_of_two_names_in_shards,
    in_bfloat16,
)


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_the_model_is_what_transformers_loads(form: Change, on_disk: bool, folder: Path, monkeypatch) -> None:
    form(folder)
    if on_disk:
        monkeypatch.setattr(weights, "IN_MEMORY", 0)
    expected = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    checkpoint = open_checkpoint(str(folder), None, weights=True)
    found = find_weights(checkpoint, "fp32")
    check_weights(checkpoint, found)
    assert found.keys() == expected.state_dict().keys()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    model, ids = load_model(checkpoint, found), torch.tensor([[5, 7, 9]])
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)


@pytest.mark.parametrize("form", [own_head, head_alone])
def test_an_exported_model_answers_as_transformers_does(form: Change, folder: Path, tmp_path: Path) -> None:
    form(folder)
    bundle = export(ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1), instruction="none"))
    model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    pipeline = Pipeline.load(bundle.folder)
    ids = torch.tensor([[5, 7, 9, 11]])
    with torch.inference_mode():
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)[0, 4:]
    decoding = pipeline._decoder.begin()
    prediction, answer = decoding.prefill(pipeline._encoder.embed(ids[0].tolist()), torch.arange(4).numpy()), []
    for _ in expected:
        answer.append(prediction.token)
        prediction = decoding.append(prediction.tokens)
    assert answer == expected.tolist()
    assert len(set(answer)) > 1


@pytest.mark.parametrize("on_disk", [False, True])
@pytest.mark.parametrize(
    ("one", "other"),
    [("norm", "layers.0.input_layernorm"), ("layers.1.post_attention_layernorm", "layers.1.input_layernorm")],
)
def test_an_export_whose_loader_mistakes_a_tensor_is_refused(
    one: str, other: str, on_disk: bool, folder: Path, tmp_path: Path, monkeypatch
) -> None:
    tensors = tensors_of(folder)
    tensors[f"language_model.model.{one}.weight"] += 1
    save(tensors, folder)
    if on_disk:
        monkeypatch.setattr(weights, "IN_MEMORY", 0)
    find = weights.find_weights

    def wrong(*arguments: object) -> Weights:
        found = find(*arguments)
        first, last = (f"model.language_model.{x}.weight" for x in (other, one))
        places = {**found.places, first: found.places[last], last: found.places[first]}
        return Weights(places, found.dtype, found.untied)

    monkeypatch.setattr(weights, "find_weights", wrong)
    with pytest.raises(CheckpointError, match=f"not those that transformers loads; got .*{re.escape(other)}"):
        export(ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1)))
    assert not (tmp_path / "out").exists()


def test_an_export_that_ties_a_head_of_its_own_is_refused(folder: Path, tmp_path: Path, monkeypatch) -> None:
    own_head(folder)
    monkeypatch.setattr(weights, "_ties", lambda mapping, found: (dict(mapping), frozenset()))
    with pytest.raises(CheckpointError, match=r"not those that transformers loads; got lm_head\.weight"):
        export(ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1)))


def without(folder: Path, name: str) -> Path:
    (folder / name).unlink()
    return folder / name


def pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n")


def link_out(path: Path) -> None:
    path.rename(path.parents[1] / path.name)
    path.symlink_to(path.parents[1] / path.name)


def indexed(folder: Path, text: str) -> None:
    shards(folder)
    (folder / INDEX).write_text(text)


def only_a_pickle(folder: Path) -> None:
    torch.save(tensors_of(folder), folder / "pytorch_model.bin")
    (folder / SINGLE).unlink()


def shards_of_which_one_is_a_pointer(folder: Path) -> None:
    shards(folder)
    pointer(folder / "model-1.safetensors")


def shards_of_which_one_is_missing(folder: Path) -> None:
    shards(folder)
    (folder / "model-1.safetensors").unlink()


REFUSED: dict[str, tuple[Change, str]] = {
    "pickle": (only_a_pickle, "has no model.safetensors; got pytorch_model.bin, which could run code"),
    "adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "holds an adapter (adapter_config.json)"),
    "pointer": (lambda f: pointer(f / SINGLE), "is a pointer of Git LFS; fetch the file itself: git lfs pull"),
    "pointer of a shard": (shards_of_which_one_is_a_pointer, "model-1.safetensors is a pointer of Git LFS"),
    "link out": (lambda f: link_out(f / SINGLE), "model.safetensors is a link out of the checkpoint"),
    "link to nothing": (lambda f: without(f, SINGLE).symlink_to("x"), "model.safetensors leads nowhere"),
    "link to itself": (lambda f: without(f, SINGLE).symlink_to(SINGLE), "model.safetensors cannot be read"),
    "fifo": (lambda f: os.mkfifo(without(f, SINGLE)), "model.safetensors is not a file"),
    "folder": (lambda f: without(f, SINGLE).mkdir(), "model.safetensors is not a file"),
    "device": (lambda f: without(f, SINGLE).symlink_to("/dev/zero"), "model.safetensors is not a file"),
    "no shard": (shards_of_which_one_is_missing, "has no model-1.safetensors; download"),
    "file elsewhere": (lambda f: indexed(f, '{"metadata": {}, "weight_map": {"a": "../x"}}'), "names a file outside"),
    "named elsewhere": (lambda f: configure(f, transformers_weights="../x.safetensors"), "names a file outside"),
    "named a pickle": (lambda f: configure(f, transformers_weights="x.bin"), "transformers_weights of config.json is"),
    "empty index": (lambda f: indexed(f, '{"weight_map": {}}'), "names no files; expected weight_map"),
    "index of numbers": (lambda f: indexed(f, '{"weight_map": {"a": 1}}'), "names no files; expected weight_map"),
    "index that is a list": (lambda f: indexed(f, "[]"), "names no files; expected weight_map"),
    "index that is no JSON": (lambda f: indexed(f, "{"), "model.safetensors.index.json is not JSON"),
    "index without metadata": (lambda f: indexed(f, '{"weight_map": {"a": "x"}}'), "index.json has no metadata"),
    "deep index": (lambda f: indexed(f, "[" * 40 + "]" * 40), "is nested too deeply"),
    "empty file": (lambda f: (f / SINGLE).write_bytes(b""), "cannot load"),
    "cut file": (lambda f: os.truncate(f / SINGLE, 100_000), "cannot load"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_files_that_hold_no_weights_are_refused_by_a_dry_run(name: str, folder: Path, capsys) -> None:
    change, problem = REFUSED[name]
    change(folder)
    with pytest.raises(SystemExit) as ended:
        main(["export", "--model", str(folder), "--keep", "0.5", "--dry-run"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert problem in line


def test_a_dry_run_of_an_id_needs_no_shards(folder: Path, monkeypatch, capsys) -> None:
    """It downloads the index, as any other small file, and nothing that the index names."""
    shards(folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr("ptp.export.locate.snapshot_download", lambda *arguments, **options: str(folder))
    with pytest.raises(SystemExit) as ended:
        main(["export", "--model", "llava-next", "--keep", "0.5", "--dry-run"])
    assert ended.value.code == 0
    assert "keep 0.5" in capsys.readouterr().out


def test_an_export_without_weights_is_refused(folder: Path) -> None:
    without(folder, SINGLE)
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor model\.safetensors\.index\.json"):
        find_weights(open_checkpoint(str(folder), None, weights=True), "fp32")


def test_a_snapshot_in_the_cache_of_hugging_face_is_a_checkpoint(folder: Path, tmp_path: Path) -> None:
    """It consists of links to blobs."""
    snapshot, blobs, out = (tmp_path / x for x in ("models--a--b/snapshots/0123", "models--a--b/blobs", "out"))
    for made in (snapshot, blobs, out):
        made.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    checkpoint = open_checkpoint(str(snapshot), None, weights=True)
    assert len(find_weights(checkpoint, "fp32")) > 100
    checkpoint.copy_files(out)
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize(
    ("value", "dtype", "problem"),
    [
        (float("nan"), "fp32", "hold numbers that are not finite; got model.image_newline; download"),
        (float("inf"), "fp16", "hold numbers that are not finite; got model.image_newline; download"),
        (1e30, "fp16", "hold numbers that float16 cannot; got model.image_newline; export with --dtype fp32"),
    ],
)
def test_weights_that_are_not_finite_are_refused(
    value: float, dtype: str, problem: str, folder: Path, tmp_path: Path
) -> None:
    tensors = tensors_of(folder)
    (name,) = [x for x in tensors if x.endswith("image_newline")]
    tensors[name][0] = value
    save(tensors, folder)
    with pytest.raises(CheckpointError) as refused:
        export(ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1), precision=dtype))
    assert problem in str(refused.value)


def test_of_more_than_two_tied_tensors_one_that_is_there_stands_for_all() -> None:
    place = Place(file=Path("x"), key="b", shape=(1,))
    assert weights._ties({"b": "a", "c": "a"}, {"b": place}) == ({"a": "b", "c": "b"}, frozenset())

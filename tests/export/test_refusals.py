"""What no export can be made of is one line, before any work: `--dry-run` says it, too."""

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from ptp.cli import main
from ptp.errors import CheckpointError, ExportError
from ptp.export import pipeline
from ptp.export.checkpoint import open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.gates.parity import process
from ptp.export.pipeline import export
from ptp.runtime.preprocess.tiles import make_tiles

Change = Callable[[Path], object]


@pytest.fixture
def folder(tiny_checkpoint, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint"))


@pytest.fixture
def refused(folder: Path, capsys) -> Callable[[], str]:
    """Return a function that plans an export of the folder, and returns the one line that it ends with."""

    def run() -> str:
        with pytest.raises(SystemExit) as ended:
            main(["export", "--model", str(folder), "--keep", "0.5", "--dry-run"])
        assert ended.value.code == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def part(name: str, **changes: Any) -> Change:
    """Return a change of a part of config.json."""

    def change(folder: Path) -> None:
        data = json.loads((folder / "config.json").read_text())
        edit(folder / "config.json", **{name: data[name] | changes})

    return change


def text(**changes: Any) -> Change:
    return part("text_config", **changes)


def vision(**changes: Any) -> Change:
    return part("vision_config", **changes)


def top(**changes: Any) -> Change:
    return lambda folder: edit(folder / "config.json", **changes)


def rope(**parameters: Any) -> Change:
    return text(rope_parameters={"rope_theta": 10000.0} | parameters)


LONG = {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4, "original_max_position_embeddings": 64}
CONFIGS: dict[str, tuple[Change, str]] = {
    "feature layer": (top(vision_feature_layer=-40), "vision_feature_layer is -40, not of -13 to 12"),
    "feature layer beyond": (top(vision_feature_layer=[3, 13]), "vision_feature_layer is [3, 13]"),
    "no feature layer": (top(vision_feature_layer=[]), "vision_feature_layer is []"),
    "dynamic": (rope(rope_type="dynamic", factor=4.0), "rope_type is 'dynamic', whose frequencies change"),
    "longrope": (rope(rope_type="longrope", factor=4.0, **LONG), "rope_type is 'longrope'"),
    "unknown rope": (rope(rope_type="magic"), "magic"),
    "rope in its old form": (text(rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0}), "'dynamic'"),
    "no factor": (rope(rope_type="linear"), "factor"),
    "factor of zero": (rope(rope_type="linear", factor=0), "rope_parameters.factor is 0, not a number above 0"),
    "theta": (rope(rope_type="default", rope_theta=-1.0), "rope_parameters.rope_theta is -1.0"),
    "rope of half a head": (
        rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5),
        "partial_rotary_factor is 0.5",
    ),
    "no band": (
        rope(rope_type="llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=1.0),
        "high_freq_factor is 1.0",
    ),
    "window": (text(sliding_window=-1), "text_config.sliding_window is -1, not 1 or more"),
    "epsilon": (text(rms_norm_eps=float("nan")), "text_config.rms_norm_eps is nan"),
    "no layers": (text(num_hidden_layers=0), "text_config.num_hidden_layers is 0, not 1 to 512"),
    "absurd layers": (text(num_hidden_layers=10**9), "text_config.num_hidden_layers is 1000000000"),
    "absurd width": (vision(hidden_size=1 << 40), "vision_config.hidden_size is 1099511627776"),
    "negative": (text(intermediate_size=-1), "text_config.intermediate_size is -1"),
    "heads": (text(num_attention_heads=5, head_dim=None), "number of attention heads (5)"),
    "KV heads": (text(num_attention_heads=4, num_key_value_heads=3), "3 KV heads do not divide 4 heads"),
    "no KV heads": (text(num_key_value_heads=0), "num_key_value_heads is 0"),
    "head size": (text(head_dim=0), "head_dim"),
    "no vocabulary": (text(vocab_size=0), "text_config.vocab_size is 0"),
    "no positions": (text(max_position_embeddings=0), "max_position_embeddings is 0"),
    "no pixels": (vision(image_size=0), "vision_config.image_size is 0"),
    "patches": (vision(patch_size=57), "image_size 56 is not 1 to 1024 times patch_size 57"),
    "channels": (vision(num_channels=4), "num_channels is 4, not 3"),
    "image token": (top(image_token_index=-1), "image_token_index is -1, not below vocab_size"),
    "image token beyond": (top(image_token_index=10**6), "image_token_index is 1000000"),
    "another image token": (top(image_token_index=7), "is not the model's image_token_index; got 3; expected 7"),
    "quantised": (top(quantization_config={"quant_method": "fp8"}), "quantised checkpoints are not read"),
    "text for a number": (text(hidden_size="big"), "hidden_size"),
    "list for a part": (top(text_config=[]), "cannot load"),
    "no type": (top(model_type=None), "model type 'None' is not supported"),
    "type that is a list": (top(model_type=["llava_next"]), "is not supported; expected llava_next"),
    "no grids": (top(image_grid_pinpoints=[]), "image_grid_pinpoints is no list of sizes"),
    "grid of one side": (top(image_grid_pinpoints=[[56]]), "image_grid_pinpoints"),
    "negative grid": (top(image_grid_pinpoints=[[-56, 56]]), "image_grid_pinpoints must be multiples of image_size"),
    "absurd grid": (top(image_grid_pinpoints=[[56, 56 << 20]]), "image_grid_pinpoints must be multiples of image_size"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_of_no_model_is_refused(name: str, folder: Path, refused) -> None:
    change, problem = CONFIGS[name]
    change(folder)
    assert problem in refused()


def test_absurd_sizes_are_refused_before_transformers_makes_lists_of_them(
    tiny_checkpoint, tmp_path, monkeypatch
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("qwen2"), tmp_path / "checkpoint"))
    text(num_hidden_layers=10**9, layer_types=None)(folder)
    monkeypatch.delattr("ptp.export.checkpoint.AutoConfig")
    with pytest.raises(CheckpointError, match=r"text_config\.num_hidden_layers is 1000000000, not 1 to 512"):
        open_checkpoint(str(folder), None, weights=False)


@pytest.mark.parametrize(
    ("rows", "patch", "problem"),
    [
        (60, 14, "too many pixels, times three, in 3601 tiles; got 33878208"),
        (15, 1, "too many visual tokens in 226 tiles"),
    ],
)
def test_an_image_of_too_much_work_is_refused(rows: int, patch: int, problem: str, folder: Path, refused) -> None:
    grids = [[56 * rows, 56 * rows]]
    top(image_grid_pinpoints=grids)(folder)
    vision(patch_size=patch)(folder)
    edit_processor(folder, image_grid_pinpoints=grids)
    assert problem in refused()


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn"])
def test_frequencies_that_do_not_depend_on_the_length_are_planned(kind: str, folder: Path) -> None:
    llama3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    rope(rope_type=kind, factor=2.0, **(llama3 if kind == "llama3" else {}))(folder)
    assert open_checkpoint(str(folder), None, weights=False).config.text_config.rope_parameters["rope_type"] == kind


PROCESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "short mean": (
        {"image_mean": [0.5]},
        "image_mean cannot be used; got (0.5,); expected a number, or one for each of 3",
    ),
    "text mean": ({"image_mean": "half"}, ""),
    "no mean": ({"image_mean": None}, "image_mean cannot be used"),
    "mean of booleans": ({"image_mean": [True, False, True]}, "image_mean cannot be used"),
    "infinite mean": ({"image_mean": [float("inf"), 0, 0]}, "image_mean cannot be used"),
    "std of zero": ({"image_std": [0.5, 0, 0.5]}, "image_std cannot be used; got 0; expected a number above 0"),
    "std of no number": ({"image_std": float("nan")}, "image_std cannot be used"),
    "no filter": ({"resample": None}, "resample cannot be used; got None; expected 0 to 5"),
    "unknown filter": ({"resample": 99}, "resample cannot be used; got 99"),
    "named filter": ({"resample": "bicubic"}, "resample"),
    "negative filter": ({"resample": -1}, "resample cannot be used; got -1"),
    "size with a limit": (
        {"size": {"shortest_edge": 56, "longest_edge": 60}},
        "does not match the model; got size None",
    ),
    "no crop": ({"crop_size": None}, "the image processor does not match the model; got size 56, crop None"),
    "another crop": ({"crop_size": {"height": 56, "width": 28}}, "the image processor does not match the model"),
    "no size": ({"size": None}, ""),
    "another size": ({"size": {"shortest_edge": 28}}, "the image processor does not match the model; got size 28"),
    "no factor": ({"rescale_factor": None}, "rescale_factor cannot be used; got None; expected a number above 0"),
    "factor of zero": ({"rescale_factor": 0}, "rescale_factor cannot be used; got 0"),
    "text factor": ({"rescale_factor": "1/255"}, "rescale_factor"),
    "a step left out": ({"do_normalize": False}, "leaves steps out; got do_normalize off"),
    "a step that is no switch": ({"do_resize": None}, "do_resize"),
    "other grids": ({"image_grid_pinpoints": [[56, 56]]}, "the image processor does not match the model"),
    "no grids": ({"image_grid_pinpoints": None}, ""),
}


def edit_processor(folder: Path, **changes: Any) -> None:
    data = json.loads((folder / "processor_config.json").read_text())
    edit(folder / "processor_config.json", image_processor=data["image_processor"] | changes)


@pytest.mark.parametrize("name", PROCESSORS)
def test_an_image_processor_that_cannot_be_followed_is_refused(name: str, folder: Path, refused) -> None:
    changes, problem = PROCESSORS[name]
    edit_processor(folder, **changes)
    assert problem in refused()


def test_one_number_is_the_mean_of_each_channel(folder: Path) -> None:
    edit_processor(folder, image_mean=0.5, image_std=0.25, crop_size=56)
    checkpoint = open_checkpoint(str(folder), None, weights=False)
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    tiles = make_tiles(Image.fromarray(pixels), checkpoint.tiling)
    assert np.array_equal(tiles.pixel_values[: tiles.count], process(pixels, checkpoint, checkpoint.tiling))


def too_many_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = json.loads((folder / "config.json").read_text())["text_config"]["vocab_size"]
    tokenizer.add_tokens([f"<loc_{i}>" for i in range(rows - len(tokenizer) + 2)])
    tokenizer.save_pretrained(folder)


def ids_around(folder: Path) -> None:
    """A token that no vocabulary has stands before every text."""
    piece, ids = {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"id": "<s>", "ids": [9999], "tokens": ["<s>"]}
    single = [piece, {"Sequence": {"id": "A", "type_id": 0}}]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    template = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": {"<s>": ids}}
    edit(folder / "tokenizer.json", post_processor=template)


def end_token(value: Any) -> Change:
    return lambda folder: edit(folder / "generation_config.json", eos_token_id=value)


def nested(folder: Path) -> None:
    (folder / "config.json").write_text('{"a":' * 100_000)


def deep(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"a":' + "[" * 40 + "]" * 40 + "}")


def again(folder: Path, name: str) -> Path:
    """Return a path where a file was."""
    (folder / name).unlink(missing_ok=True)
    return folder / name


def link_out(folder: Path, name: str) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


FILES: dict[str, tuple[Change, str]] = {
    "tokens without embedding": (too_many_tokens, "2 of the tokenizer's tokens have no embedding; got '<loc_"),
    "ids around a text": (ids_around, "post_processor adds the id 9999, which is no token"),
    "end token beyond": (end_token([2, 10**9]), "eos_token_id is not an id of the model; got 1000000000"),
    "end token that is text": (end_token("</s>"), "eos_token_id is not an id of the model; got </s>"),
    "end token that is true": (end_token(True), "eos_token_id is not an id of the model; got True"),
    "fifo": (lambda f: os.mkfifo(again(f, "config.json")), "config.json is not a file"),
    "fifo beside it": (lambda f: os.mkfifo(again(f, "tokenizer_config.json")), "tokenizer_config.json is not a file"),
    "device": (lambda f: again(f, "config.json").symlink_to("/dev/zero"), "config.json is not a file"),
    "folder": (lambda f: again(f, "tokenizer.json").mkdir(), "tokenizer.json is not a file"),
    "link out": (lambda f: link_out(f, "generation_config.json"), "is a link out of the checkpoint; got"),
    "template that is a link out": (lambda f: link_out(f, "chat_template.jinja"), "is a link out of the checkpoint"),
    "link to nothing": (lambda f: again(f, "tokenizer.json").symlink_to("nothing"), "tokenizer.json leads nowhere"),
    "nested": (nested, "config.json is not JSON"),
    "deep": (deep, "generation_config.json is nested too deeply; expected at most 32 levels"),
    "huge": (lambda f: os.truncate(f / "config.json", 1 << 40), "config.json is too large; got 1099511627776 bytes"),
    "huge tokenizer": (lambda f: os.truncate(f / "tokenizer.json", 1 << 40), "tokenizer.json is too large"),
    "no text": (lambda f: (f / "config.json").write_bytes(b"\xff\xfe"), "config.json is not JSON"),
    "list": (lambda f: (f / "config.json").write_text("[]"), "model type 'None' is not supported"),
    "pointer": (
        lambda f: (f / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "tokenizer.json is a pointer of Git LFS; fetch the file itself: git lfs pull",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "no runtime could use"),
    "no template": (lambda f: again(f, "chat_template.jinja"), "has no chat template"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_small_files_that_cannot_be_used_are_refused(name: str, folder: Path, refused) -> None:
    change, problem = FILES[name]
    change(folder)
    assert problem in refused()


def test_nothing_but_the_small_files_is_read_and_no_code_is_run(folder: Path) -> None:
    (folder / "evil.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for name, classes in (
        ("config.json", {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("processor_config.json", {"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"}),
    ):
        edit(folder / name, auto_map=classes)
    edit(folder / "tokenizer_config.json", tokenizer_class="Evil")
    edit(folder / "config.json", _attn_implementation="owner/kernel")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/default.jinja").write_bytes(b"\xff")
    checkpoint = open_checkpoint(str(folder), None, weights=False)
    assert checkpoint.config.text_config._attn_implementation == "sdpa"
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("instruction", ["none", "similarity", "attention"])
def test_a_model_whose_logits_are_not_finite_is_refused(instruction: str, folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["language_model.lm_head.weight"][:] = 3e38
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1, 2), instruction=instruction)
    with pytest.raises(CheckpointError, match="the model's logits of a test image are not finite; export with"):
        export(config)


def test_visual_features_that_are_not_finite_in_half_precision_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["multi_modal_projector.linear_2.bias"][:] = 6e4
    tensors["multi_modal_projector.linear_2.weight"][:] *= 1e4
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1, 2), precision="fp16")
    with pytest.raises(CheckpointError, match="the model's visual features of a test image are not finite"):
        export(config)


def test_what_a_library_raises_is_one_line_with_the_step(folder: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch._dynamo.exc.UserError(torch._dynamo.exc.UserErrorType.DYNAMIC_CONTROL_FLOW, "\n\nbad\n" * 200)

    monkeypatch.setattr("ptp.export.graph_writer.trace", fail)
    with pytest.raises(SystemExit) as ended:
        main(["export", "--model", str(folder), "--keep", "0.5", "--out", str(tmp_path / "out")])
    assert ended.value.code == 1
    assert capsys.readouterr().err == "error: tracing embed_tokens failed; got UserError: bad; nothing was written\n"
    with pytest.raises(ExportError) as failed:
        export(ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1, 2)))
    assert isinstance(failed.value.__cause__, torch._dynamo.exc.UserError)
    assert not list(tmp_path.glob(".out*"))


def test_warnings_and_log_lines_of_libraries_are_not_shown(folder: Path, monkeypatch, capsys, caplog) -> None:
    def talk(*_: object, **__: object) -> None:
        warnings.warn("overflow in cast", RuntimeWarning, stacklevel=1)
        logging.getLogger("torch.onnx").error("a thing")
        raise CheckpointError("no")

    monkeypatch.setattr("ptp.export.checkpoint.open_checkpoint", talk)
    monkeypatch.setattr("ptp.export.pipeline.open_checkpoint", talk)
    for more in (["--dry-run"], ["--out", str(folder.parent / "out")]):
        with pytest.raises(SystemExit):
            main(["export", "--model", str(folder), "--keep", "0.5", *more])
        assert capsys.readouterr().err == "error: no\n"
    assert not caplog.records
    with pytest.warns(RuntimeWarning), pytest.raises(CheckpointError):
        talk()


def test_an_interruption_is_no_failure(folder: Path, tmp_path: Path, monkeypatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "open_checkpoint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export(ExportConfig(model=str(folder), out=tmp_path / "out", keep=Fraction(1, 2)))

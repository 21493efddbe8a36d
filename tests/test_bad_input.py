"""Whatever a user gets wrong is answered by one clear line on stderr and exit status 1, and nothing is written."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from ptp.bundle.manifest import MANIFEST_NAME
from ptp.cli import main
from ptp.demo import CHECKPOINT
from ptp.errors import PtpError


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Run the program where it must be refused; return the line it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out = capsys.readouterr()
        assert end.value.code == 1
        assert out.out == ""
        assert out.err.startswith("error: ")
        assert out.err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return out.err

    return run


EXPORTS = {
    "0 < keep ≤ 1": ["--keep", "0"],
    "got 1.5": ["--keep", "1.5"],
    "got --keep 0.5 and --reduction 0.5": ["--keep", "0.5", "--reduction", "0.5"],
    "got neither": [],
    "--keep is not a number; got 'much'": ["--keep", "much"],
    "keep keeps no token at all": ["--keep", "0.001"],
    "no model 'gpt'": ["--model", "gpt", "--keep", "0.5"],
    "--instruction none does not look at it": ["--keep", "0.5", "--instruction", "none", "--alpha", "0.5"],
    "got --revision main with demo": ["--keep", "0.5", "--revision", "main"],
    "alpha is the weight of the question; got '2'; expected 0 to 1, or auto": ["--keep", "0.5", "--alpha", "2"],
    "alpha is the weight of the question; got 'AUTO'; expected 0 to 1": ["--keep", "0.5", "--alpha", "AUTO"],
    "--keep is not a range; got 0.5:0.1:1; expected MIN:OPT:MAX": ["--keep", "0.5:0.1:1"],
    "keep keeps no token at all; got 0.001": ["--keep", "0.001:0.1:0.5"],
    "--batch is a number of images; got 0": ["--keep", "0.5", "--batch", "0"],
    "--max-prompt is a number of text tokens; got 0": ["--keep", "0.5", "--max-prompt", "0"],
    "--opset is outside": ["--keep", "0.5", "--opset", "21"],
    "--grid is not a grid; got 'big'": ["--keep", "0.5", "--grid", "big"],
    "got 7x7; expected one of 1x2, 2x1": ["--keep", "0.5", "--grid", "7x7"],
}


@pytest.mark.parametrize("message", EXPORTS)
def test_an_export_that_cannot_be_is_refused(refused, message):
    assert message in refused("export", "--out", "out", *EXPORTS[message])


def test_an_existing_folder_is_refused_before_anything_is_loaded(refused, tmp_path):
    (tmp_path / "out").mkdir()
    assert "out exists; choose another --out" in refused("export", "--keep", "0.5", "--out", "out")


def test_missing_and_extra_tensors_are_named_and_nothing_is_written(refused, tmp_path):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    tensors = load_file(folder / "model.safetensors")
    tensors["surplus"] = tensors.pop("image_newline")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    line = refused("export", "--model", folder, "--keep", "0.5", "--out", "out")
    assert "1 missing: model.image_newline, 1 extra: surplus" in line


def test_an_unknown_model_type_lists_the_known_ones(refused, tmp_path):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "internvl"}))
    line = refused("export", "--model", folder, "--keep", "0.5", "--dry-run")
    assert "model type 'internvl' is not supported; expected llava_next" in line


@pytest.fixture
def images(tmp_path, photos):
    whole = photos["rocket"].read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    # a PNG header that promises 100,000 × 100,000 pixels
    png = bytearray(photos["cat"].read_bytes()[:4096])
    png[16:24] = (100_000).to_bytes(4, "big") * 2
    import zlib

    png[29:33] = zlib.crc32(png[12:29]).to_bytes(4, "big")
    (tmp_path / "oversized.png").write_bytes(png)
    return tmp_path


@pytest.mark.parametrize("name", ["truncated.jpg", "text.jpg", "oversized.png", "missing.jpg", "."])
def test_an_image_that_cannot_be_read_is_refused(refused, demo_bundle, images, name):
    line = refused("run", demo_bundle, "--image", images / name, "--prompt", "What?")
    assert str(images / name) in line


def test_a_prompt_longer_than_the_bundle_takes_is_refused(refused, demo_bundle, photos):
    line = refused("run", demo_bundle, "--image", photos["cat"], "--prompt", "why " * 100)
    assert "64" in line
    assert "tokens" in line


def test_a_bundle_altered_by_one_byte_is_refused(refused, copied_bundle, photos):
    path = copied_bundle / "onnx" / "decoder_model_merged.onnx"
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    line = refused("run", copied_bundle, "--image", photos["cat"], "--prompt", "What?")
    assert "decoder_model_merged.onnx was altered" in line


def test_a_manifest_of_a_newer_schema_is_refused(refused, copied_bundle, photos):
    path = copied_bundle / MANIFEST_NAME
    path.write_text(path.read_text().replace('"schema_version": 2', '"schema_version": 3'))
    assert "newer schema" in refused("inspect", copied_bundle)


def test_a_folder_that_is_no_bundle_is_refused(refused, tmp_path):
    assert "is not a bundle" in refused("inspect", tmp_path)


def test_a_usage_error_is_exit_status_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["export", "--no-such-option"])
    assert end.value.code == 2
    assert "No such option" in capsys.readouterr().err


def test_a_dry_run_prints_the_plan_and_loads_no_weights(capsys, tmp_path, monkeypatch):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    (folder / "model.safetensors").unlink()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main(["export", "--model", str(folder), "--reduction", "0.75", "--grid", "1x2", "--dry-run"])
    assert end.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert "keep 0.25 = reduction 0.75: 16 thumbnail + 32 crops = 48 of 192 tokens, + 8 newline rows, K = 56" in lines
    assert any(line.startswith("memory, estimated: export ") for line in lines)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


@pytest.mark.parametrize("option", [["--temperature", "-1"], ["--top-p", "0"], ["--max-new-tokens", "0"]])
def test_sampling_out_of_range_is_refused(refused, demo_bundle, photos, option):
    refused("run", demo_bundle, "--image", photos["cat"], "--prompt", "What?", *option)


def test_the_coldest_temperature_takes_the_most_likely_token(demo_bundle, photos, capsys):
    answers = []
    for temperature in ("0", "1e-50"):
        with pytest.raises(SystemExit):
            main(["run", str(demo_bundle), "--image", str(photos["cat"]), "--prompt", "What is in the picture?",
                  "--temperature", temperature])  # fmt: skip
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] != ""


def test_a_prompt_that_is_no_text_is_refused(refused, demo_bundle, photos):
    line = refused("run", demo_bundle, "--image", photos["cat"], "--prompt", "\udcff\udcfe hi")
    assert "not valid Unicode text" in line


def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_loaded(refused, tmp_path):
    (tmp_path / "file").write_text("x")
    assert "file/out cannot be made" in refused("export", "--keep", "0.5", "--out", tmp_path / "file" / "out")


def test_errors_of_the_system_are_one_line(refused, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device", "onnx/model.onnx")

    monkeypatch.setattr("ptp.export.pipeline.export", full)
    assert "No space left on device; got onnx/model.onnx" in refused("export", "--keep", "0.5", "--out", "out")


def test_an_error_never_commands_the_terminal():
    assert str(PtpError("bad \x1b[2J\x07 name", got="a\nb")) == "bad �[2J� name; got a b"


@pytest.mark.parametrize("name", ["a[/b]", "ck[v2]"])
def test_brackets_in_names_are_printed_as_they_are(name, tmp_path, capsys):
    folder = shutil.copytree(CHECKPOINT, tmp_path / "x" / name) if "/" not in name else tmp_path / "a[" / "b]"
    if "/" in name:
        shutil.copytree(CHECKPOINT, folder)
    with pytest.raises(SystemExit) as end:
        main(["export", "--model", str(folder), "--keep", "0.5", "--dry-run"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith(folder.name)

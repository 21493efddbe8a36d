import json
import shutil
from fractions import Fraction

import pytest
import torch
from checkpoints import Geometry
from safetensors.torch import load_file, save_file
from tokenizer_files import REFUSED, written
from tokenizers import Tokenizer, normalizers

from ptp.errors import CheckpointError, ConfigError
from ptp.export.checkpoint import find_weights, load_model, open_checkpoint
from ptp.export.config import ExportConfig
from ptp.export.locate import SHORT_NAMES
from ptp.export.plan import make_plan
from ptp.export.tokenizer_file import shipped_tokenizer


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    return shutil.copytree(tiny_checkpoint("llama"), tmp_path / "checkpoint")


def edit_config(folder, change):
    path = folder / "config.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def load(folder):
    checkpoint = open_checkpoint(str(folder), None, weights=True)
    return load_model(checkpoint, find_weights(checkpoint, "fp32"))


@pytest.mark.parametrize("language_model", ["llama", "mistral", "qwen2"])
def test_a_checkpoint_of_each_language_model_loads(tiny_checkpoint, language_model):
    model = load(tiny_checkpoint(language_model))
    assert model.config.text_config.model_type == language_model
    assert not model.training


def test_missing_extra_and_misshapen_tensors_are_all_named_at_once(checkpoint):
    def change(tensors):
        del tensors["image_newline"]
        del tensors["language_model.lm_head.weight"]
        tensors["surplus"] = torch.ones(3)
        tensors["multi_modal_projector.linear_1.bias"] = torch.ones(3)

    edit_tensors(checkpoint, change)
    with pytest.raises(CheckpointError) as error:
        load(checkpoint)
    message = str(error.value)
    assert "2 missing: lm_head.weight, model.image_newline" in message
    assert "1 extra: surplus" in message
    assert "1 of another shape: model.multi_modal_projector.linear_1.bias" in message


def test_a_damaged_weights_file_is_one_line(checkpoint):
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot load") as error:
        load(checkpoint)
    assert "\n" not in str(error.value)


def test_an_unknown_model_type_lists_the_known_ones(checkpoint):
    edit_config(checkpoint, lambda data: data.update(model_type="qwen3_vl"))
    with pytest.raises(CheckpointError, match="'qwen3_vl' is not supported; expected llava_next"):
        open_checkpoint(str(checkpoint), None, weights=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(vision_feature_select_strategy="full"), "select_strategy is not supported; got full"),
        (lambda d: d["text_config"].update(model_type="gemma"), "language model 'gemma' is not supported"),
        (lambda d: d["vision_config"].update(model_type="siglip_vision_model"), "vision tower 'siglip"),
        (lambda d: d.update(image_grid_pinpoints=[[56, 100]]), "must be multiples of image_size"),
    ],
)
def test_configurations_that_the_export_does_not_cover_are_refused(checkpoint, change, message):
    edit_config(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(str(checkpoint), None, weights=False)


def test_a_processor_that_does_not_match_the_model_is_refused(checkpoint):
    edit_config(checkpoint, lambda data: data.update(image_grid_pinpoints=[[56, 112]]))
    with pytest.raises(CheckpointError, match="does not match the model"):
        open_checkpoint(str(checkpoint), None, weights=False)


@pytest.mark.parametrize("text", [None, "{", "[]", "{}"])
def test_a_folder_without_a_usable_configuration_is_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError):
        open_checkpoint(str(tmp_path), None, weights=False)


def test_a_name_that_is_nothing_lists_what_it_could_be():
    with pytest.raises(CheckpointError, match=r"short name \(demo, llava-next, .*owner/name\) or a folder"):
        open_checkpoint("no-such-model", None, weights=False)


def test_an_unreachable_hub_is_one_line(monkeypatch):
    def refuse(*arguments, **options):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr("ptp.export.locate.snapshot_download", refuse)
    with pytest.raises(CheckpointError, match=r"cannot get llava-hf/.* from the Hugging Face hub"):
        open_checkpoint("llava-next", None, weights=False)


def test_a_hub_id_is_downloaded_without_weights_for_a_dry_run_and_with_them_for_an_export(monkeypatch, checkpoint):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(checkpoint)

    monkeypatch.setattr("ptp.export.locate.snapshot_download", download)
    opened = open_checkpoint("llava-next-vicuna-13b", "main", weights=False)
    assert opened.id == SHORT_NAMES["llava-next-vicuna-13b"] == "llava-hf/llava-v1.6-vicuna-13b-hf"
    assert opened.revision == "checkpoint"  # the snapshot's folder is named after the commit
    open_checkpoint("llava-next", None, weights=True)
    assert "*.safetensors" not in asked[0][2]
    assert "*.safetensors" in asked[1][2]
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked[1][2])


def test_files_are_copied_unchanged_and_what_is_missing_is_written(checkpoint, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    open_checkpoint(str(checkpoint), None, weights=False).copy_files(out)
    for name in ("config.json", "tokenizer.json", "generation_config.json", "processor_config.json"):
        assert (out / name).read_bytes() == (checkpoint / name).read_bytes()
    assert json.loads((out / "preprocessor_config.json").read_text())["crop_size"] == {"height": 56, "width": 56}
    assert (out / "chat_template.jinja").read_text() == (checkpoint / "chat_template.jinja").read_text()


def test_a_checkpoint_without_a_chat_template_is_refused(checkpoint, tmp_path):
    (checkpoint / "chat_template.jinja").unlink()
    with pytest.raises(CheckpointError, match="no chat template"):
        open_checkpoint(str(checkpoint), None, weights=False).copy_files(tmp_path)


def test_a_grid_that_is_not_the_checkpoints_is_refused(checkpoint, tmp_path):
    opened = open_checkpoint(str(checkpoint), None, weights=False)
    options = {"model": str(checkpoint), "out": tmp_path, "keep": Fraction(1)}
    with pytest.raises(ConfigError, match="got 5x5; expected one of 1x2, 2x1, 2x2, 3x1, 1x3"):
        make_plan(ExportConfig(**options, grid=(5, 5)), opened)
    plan = make_plan(ExportConfig(**options, grid=(1, 2)), opened)
    assert plan.tiling.max_tiles == plan.schedule.num_tiles == 3


def legacy_layout(folder):
    """Rewrite a checkpoint as the hub holds LLaVA-NeXT: old tensor names, one file per processor, sparse configs."""
    (folder / "processor_config.json").unlink()
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "generation_config.json").unlink()
    pinpoints = [[rows * 56, columns * 56] for rows, columns in Geometry().grids]
    image_processor = {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextProcessor",
        "size": {"shortest_edge": 56},
        "crop_size": {"height": 56, "width": 56},
        "image_grid_pinpoints": pinpoints,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.2, 0.3, 0.4],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_center_crop": True,
        "do_rescale": True,
        "do_normalize": True,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(image_processor))

    def change(data):
        text = data["text_config"]
        text["rope_theta"] = text.pop("rope_parameters", {}).get("rope_theta", 10000.0)
        text.update(head_dim=None, eos_token_id=[2, 3])
        data.pop("tie_word_embeddings", None)
        data["use_image_newline_parameter"] = True

    edit_config(folder, change)
    edit_tensors(
        folder,
        lambda tensors: tensors.update(
            {
                name.replace("vision_tower.", "vision_tower.vision_model."): tensors.pop(name)
                for name in list(tensors)
                if name.startswith("vision_tower.")
            }
        ),
    )


def test_a_checkpoint_in_the_hubs_older_layout_loads(checkpoint, tmp_path):
    before = load(checkpoint).state_dict()
    legacy_layout(checkpoint)
    opened = open_checkpoint(str(checkpoint), None, weights=True)
    model = load_model(opened, find_weights(opened, "fp32"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert opened.tiling.mean == (0.5, 0.4, 0.3)
    assert opened.language_model.head_dim == 8
    assert opened.prompting(model.generation_config, 64).eos_token_ids == (2, 3)
    opened.copy_files(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text().startswith("{{ bos_token }}")


def test_tied_embeddings_need_no_head_in_the_files(checkpoint):
    edit_config(
        checkpoint,
        lambda data: (data.update(tie_word_embeddings=True), data["text_config"].update(tie_word_embeddings=True)),
    )
    edit_tensors(checkpoint, lambda tensors: tensors.pop("language_model.lm_head.weight"))
    model = load(checkpoint)
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_the_tokenizer_that_transformers_runs_is_the_one_that_ships(checkpoint, tmp_path):
    """A tokenizer.json that transformers would not run as it stands is replaced by what it runs."""
    opened = open_checkpoint(str(checkpoint), None, weights=False)
    data = json.loads((checkpoint / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Lowercase"}
    (checkpoint / "tokenizer.json").write_text(json.dumps(data))
    opened.copy_files(tmp_path)
    shipped = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert shipped.encode("ABC").ids == opened.processor.tokenizer("ABC", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", ["panics", "grows", f"pattern {'(a+)+$'!r}", "merge is no token"])
def test_a_tokenizer_that_no_runtime_loads_is_refused(checkpoint, capfd, name):
    (checkpoint / "tokenizer.json").write_text(written(REFUSED[name][0]))
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(str(checkpoint), None, weights=False)
    assert REFUSED[name][1] in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_the_tokenizer_that_transformers_makes_is_refused_too(checkpoint):
    """It ships where the checkpoint has none, or another."""
    opened = open_checkpoint(str(checkpoint), None, weights=False)
    backend = opened.processor.tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Nmt()
    with pytest.raises(CheckpointError, match=r"no runtime could use the tokenizer that transformers runs for .*'Nmt'"):
        shipped_tokenizer(checkpoint, backend)


def test_a_revision_of_a_folder_is_refused(checkpoint):
    with pytest.raises(CheckpointError, match="a revision is of a Hugging Face id; got --revision main"):
        open_checkpoint(str(checkpoint), "main", weights=False)

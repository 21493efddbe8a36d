"""The demo checkpoint: loads strictly, is small, carries nothing of the machine that made it, answers right."""

import json

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
)
from transformers.utils import logging

from ptp.demo import CHECKPOINT
from ptp.demo.model import build_tokenizer
from ptp.demo.task import make_questions, make_scene
from ptp.demo.train import TOKENIZER_SCENES

FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
MIB = 1 << 20


@pytest.fixture(scope="module")
def model() -> LlavaNextForConditionalGeneration:
    logging.disable_progress_bar()
    loaded, report = LlavaNextForConditionalGeneration.from_pretrained(
        CHECKPOINT, dtype=torch.float32, output_loading_info=True
    )
    assert not any(report.values()), report
    return loaded.eval()


@pytest.fixture(scope="module")
def processor() -> LlavaNextProcessor:
    return LlavaNextProcessor.from_pretrained(CHECKPOINT)


def test_files_and_size() -> None:
    assert {path.name for path in CHECKPOINT.iterdir() if path.is_file()} == FILES
    assert MIB < sum(path.stat().st_size for path in CHECKPOINT.rglob("*") if path.is_file()) < 12 * MIB


def test_no_file_names_the_machine_that_wrote_it() -> None:
    for path in CHECKPOINT.glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        if path.name != "tokenizer.json":  # its vocabulary may hold any piece of text
            for place in ("/home", "/root", "/tmp", "/work", "\\\\"):
                assert place not in text, path.name


def test_shape_is_that_of_llava_next(model: LlavaNextForConditionalGeneration) -> None:
    config = model.config
    assert isinstance(config, LlavaNextConfig)
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert config.vision_config.image_size // config.vision_config.patch_size == 8
    assert config.text_config.num_key_value_heads < config.text_config.num_attention_heads
    assert sum(weight.numel() for weight in model.parameters()) <= 2_500_000
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_special_tokens_agree(model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor) -> None:
    tokenizer = processor.tokenizer
    assert model.config.image_token_index == tokenizer.convert_tokens_to_ids("<image>") == processor.image_token_id
    assert model.config.text_config.vocab_size == len(tokenizer)
    for config in (model.config, model.config.text_config, model.generation_config):
        assert config.bos_token_id == tokenizer.bos_token_id
        assert config.eos_token_id == tokenizer.eos_token_id
        assert config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize(
    "text",
    ["What colour is the cup?", "Grüße, 世界 🚀\n\tتجربة", "".join(map(chr, range(32, 127))), "\x00\x07\u2028 "],
)
def test_any_text_round_trips(text: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
def test_shipped_tokenizer_is_what_the_script_makes() -> None:
    text = [(q.text, q.answer) for i in range(TOKENIZER_SCENES) for q in make_questions("train", i)]
    shipped = json.loads((CHECKPOINT / "tokenizer.json").read_text(encoding="utf-8"))
    assert json.loads(build_tokenizer(text).backend_tokenizer.to_str()) == shipped


def test_a_word_of_the_task_is_a_token() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    assert len(tokenizer.encode("Which digit is on the purple hexagon?")) == 8
    assert len(tokenizer.encode("How many butterflies are there?")) == 6


def test_both_copies_of_the_image_processor_agree(processor: LlavaNextProcessor) -> None:
    alone = AutoImageProcessor.from_pretrained(CHECKPOINT)
    assert type(alone) is type(processor.image_processor)
    assert alone.to_dict() == processor.image_processor.to_dict()


def test_chat_template(processor: LlavaNextProcessor) -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "What colour?"},
    ]
    rendered = processor.apply_chat_template(turns, add_generation_prompt=True)
    assert rendered == "<s>[INST] <image>\nWhat is this? [/INST] A cat.</s>[INST] What colour? [/INST]"


def test_answers_are_right(model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor) -> None:
    """On scenes that no training has seen; the exact figures are in the model card."""
    verdicts = []
    for scene in (make_scene("validation", 10_000 + index) for index in range(8)):
        for question in scene.questions:
            content = [{"type": "image", "image": scene.image}, {"type": "text", "text": question.text}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
            assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
            assert inputs["input_ids"][0, 1] != processor.tokenizer.bos_token_id
            with torch.inference_mode():
                tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            assert tokens[-1] == model.generation_config.eos_token_id
            verdicts.append(processor.decode(tokens, skip_special_tokens=True).strip() == question.answer)
    assert len(verdicts) > 50
    assert sum(verdicts) / len(verdicts) > 0.8

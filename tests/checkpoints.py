"""Tiny random LLaVA-NeXT checkpoints on disk, made by transformers' own classes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    MistralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LANGUAGE_MODELS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of a checkpoint; the defaults differ from the demo's in every respect."""

    tile: int = 56
    patch: int = 14
    vision_layers: int = 12
    vision_hidden: int = 48
    vision_heads: int = 4
    vision_intermediate: int = 96
    hidden: int = 64
    layers: int = 2
    heads: int = 8
    kv_heads: int = 2
    vocab: int = 400
    language_model: str = "llama"
    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


def tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer that encodes any text."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(["What is in the picture? A cat looks at the camera. [INST] [/INST]"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )


def write_checkpoint(folder: Path, geometry: Geometry, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Path:
    """Write a random checkpoint in Hugging Face layout and return its folder."""
    tokens = tokenizer()
    text = LANGUAGE_MODELS[geometry.language_model](
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=2 * geometry.hidden,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        max_position_embeddings=4096,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=geometry.vision_hidden,
        intermediate_size=geometry.vision_intermediate,
        num_hidden_layers=geometry.vision_layers,
        num_attention_heads=geometry.vision_heads,
        image_size=geometry.tile,
        patch_size=geometry.patch,
    )
    pinpoints = [[rows * geometry.tile, columns * geometry.tile] for rows, columns in geometry.grids]
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=(geometry.tile // geometry.patch) ** 2,
    )
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # transformers' init is so small that every attention row would be flat
                fan_in = parameter[0].numel()
                parameter.normal_(0, (1.5 if "q_proj" in name or "k_proj" in name else 0.7) / fan_in**0.5)
    model.generation_config = GenerationConfig(
        bos_token_id=tokens.bos_token_id, eos_token_id=tokens.eos_token_id, pad_token_id=tokens.pad_token_id
    )
    model.to(dtype).save_pretrained(folder)
    LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": geometry.tile},
            crop_size={"height": geometry.tile, "width": geometry.tile},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer=tokens,
        patch_size=geometry.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    return folder

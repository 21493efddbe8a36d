"""The untrained demo model: tokenizer, processor and network, in the classes of transformers."""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<image>"]
VOCABULARY = 1024
TILE = 112
PATCH = 14
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE], [TILE, 3 * TILE]]
HIDDEN = 128

# The style of llava-v1.6-mistral-7b: images before the text of their turn, </s> after each answer.
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}
{{- '[INST] ' }}
{%- if message['content'] is string %}
{{- message['content'] }}
{%- else %}
{%- for part in message['content'] if part['type'] == 'image' %}
{{- '<image>\\n' }}
{%- endfor %}
{%- for part in message['content'] if part['type'] == 'text' %}
{{- part['text'] }}
{%- endfor %}
{%- endif %}
{{- ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{%- if message['content'] is string %}
{{- ' ' + message['content'] + eos_token }}
{%- else %}
{%- for part in message['content'] if part['type'] == 'text' %}
{{- ' ' + part['text'] }}
{%- endfor %}
{{- eos_token }}
{%- endif %}
{%- else %}
{{- raise_exception('roles are user and assistant, not ' + message['role']) }}
{%- endif %}
{%- endfor %}
"""


def build_tokenizer(text: Iterable[tuple[str, str]]) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer: short on the demo's own text, lossless on any UTF-8 text.

    Args:
        text: questions and answers.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    lines = [f"[INST] \n{question} [/INST] {answer}" for question, answer in text]
    tokenizer.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_processor(text: Iterable[tuple[str, str]]) -> LlavaNextProcessor:
    """Return the processor: tokenizer, chat template, and the image processor in its PIL form.

    Args:
        text: questions and answers, for the tokenizer.
    """
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=PINPOINTS,
        ),
        tokenizer=build_tokenizer(text),
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaNextForConditionalGeneration:
    """Return the network with random weights drawn from torch's generator, in FP32.

    Args:
        tokenizer: the result of `build_tokenizer`, for the vocabulary and the special tokens.
    """
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        image_size=TILE,
        patch_size=PATCH,
        hidden_size=HIDDEN,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=3 * HIDDEN,
        projection_dim=HIDDEN,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=HIDDEN,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=3 * HIDDEN,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        **special,
    )
    config = LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=PINPOINTS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=(TILE // PATCH) ** 2,
        tie_word_embeddings=False,
        **special,
    )
    model = LlavaNextForConditionalGeneration(config).to(torch.float32)
    _widen(model)
    model.generation_config = GenerationConfig(do_sample=False, max_new_tokens=32, **special)
    return model


def _widen(model: LlavaNextForConditionalGeneration) -> None:
    """Draw all but the image encoder's weights anew, wider: a matrix keeps the length of what it is applied to.

    transformers' 0.02 suits widths of thousands; at 128, attention stays flat and nothing is learned for long.
    """
    chance = torch.Generator().manual_seed(0)
    for name, weight in model.named_parameters():
        if "vision_tower" in name or (weight.dim() == 1 and "image_newline" not in name):
            continue
        is_embedding = "embed_tokens" in name or "image_newline" in name
        torch.nn.init.normal_(weight, std=0.5 if is_embedding else weight.shape[1] ** -0.5, generator=chance)

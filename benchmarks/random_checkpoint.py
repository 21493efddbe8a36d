"""Random LLaVA-NeXT checkpoints on disk, made by transformers' own classes: tiny ones for tests, and the benchmark's.

    python -m ptp.benchmarks.random_checkpoint FOLDER [--size 7b]

writes the model that `docs/performance.md` measures, CLIP-L/336 with a language model of Qwen2-0.5B's shape (3.2 GB),
and beside it `photograph.jpg`: scikit-image's `retina`, a photograph of 1411×1411 pixels (Mikael Häggström, CC0 1.0).
With `--size 7b` it is LLaVA-NeXT-7B's sizes in FP16, CLIP-L/336 and Mistral-7B (15 GB).
Speed depends on sizes, not on what the weights were trained for.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
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

from ptp.export.weights import empty_model

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}[INST] "
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]"
    "{% else %} {{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
LANGUAGE_MODELS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes of a checkpoint; the defaults differ from the demo's in every respect.

    Attributes:
        tile: pixels on a side of a tile.
        patch: pixels on a side of a patch.
        vision_layers: blocks of the vision encoder; `vision_hidden`, `vision_heads` and `vision_intermediate` are their
            width, heads and MLP.
        hidden: width of the language model; `layers`, `heads`, `kv_heads` and `intermediate` (twice the width if None)
            are its blocks, their heads and MLP.
        vocab: tokens of the language model; the tokenizer knows the first 300.
        tied: the output layer is the embedding.
        language_model: `llama`, `mistral` or `qwen2`.
        grids: (rows, columns) of crops that an image may get.
    """

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
    intermediate: int | None = None
    vocab: int = 400
    tied: bool = False
    language_model: str = "llama"
    grids: tuple[tuple[int, int], ...] = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))


BENCHMARK = Geometry(
    tile=336,
    vision_layers=24,
    vision_hidden=1024,
    vision_heads=16,
    vision_intermediate=4096,
    hidden=896,
    layers=24,
    heads=14,
    intermediate=4864,
    vocab=151936,
    tied=True,
    language_model="qwen2",
)
"""CLIP-L/336 and the language model of Qwen2-0.5B."""

SEVEN_B = replace(
    BENCHMARK,
    hidden=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    intermediate=14336,
    vocab=32064,
    tied=False,
    language_model="mistral",
)
"""CLIP-L/336 and the language model of Mistral-7B: LLaVA-NeXT-7B."""

SHARD_BYTES = 2_000_000_000


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
    config = _write_processor(folder, geometry)
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, _deviation(name, parameter.shape))
    model.generation_config = _generation_config(config)
    model.to(dtype).save_pretrained(folder)
    return folder


def write_large_checkpoint(
    folder: Path, geometry: Geometry, *, seed: int = 0, dtype: torch.dtype, device: str = "cpu"
) -> Path:
    """Write a random checkpoint that need not fit into memory, in files of 2 GB, and return its folder.

    A GPU draws the numbers in seconds (`device`), and others than the CPU does.
    """
    config = _write_processor(folder, geometry)
    config.save_pretrained(folder)
    _generation_config(config).save_pretrained(folder)
    torch.manual_seed(seed)
    files: dict[str, str] = {}
    part: dict[str, torch.Tensor] = {}
    shapes = {
        name: value.shape for name, value in empty_model(LlavaNextForConditionalGeneration, config).state_dict().items()
    }
    for number, (name, shape) in enumerate(shapes.items(), start=1):
        if len(shape) > 1:
            part[name] = torch.empty(shape, device=device).normal_(0, _deviation(name, shape)).to(dtype)
        else:
            part[name] = torch.full(shape, float("norm" in name and name.endswith("weight")), dtype=dtype)
        if number == len(shapes) or sum(tensor.nbytes for tensor in part.values()) > SHARD_BYTES:
            file = f"model-{len(set(files.values())):05d}.safetensors"
            save_file(part, folder / file, metadata={"format": "pt"})
            files |= dict.fromkeys(part, file)
            part.clear()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return folder


def _deviation(name: str, shape: torch.Size) -> float:
    """Return a weight's standard deviation: transformers' is so small that every attention row would be flat."""
    deviation: float = (1.5 if "q_proj" in name or "k_proj" in name else 0.7) / math.prod(shape[1:]) ** 0.5
    return deviation


def _generation_config(config: LlavaNextConfig) -> GenerationConfig:
    text = config.text_config
    return GenerationConfig(
        bos_token_id=text.bos_token_id, eos_token_id=text.eos_token_id, pad_token_id=text.pad_token_id
    )


def _write_processor(folder: Path, geometry: Geometry) -> LlavaNextConfig:
    """Write tokenizer, template and image processor, and return the model's configuration."""
    tokens = tokenizer()
    text = LANGUAGE_MODELS[geometry.language_model](
        vocab_size=geometry.vocab,
        hidden_size=geometry.hidden,
        intermediate_size=geometry.intermediate or 2 * geometry.hidden,
        num_hidden_layers=geometry.layers,
        num_attention_heads=geometry.heads,
        num_key_value_heads=geometry.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=geometry.tied,
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
    return LlavaNextConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pinpoints,
        image_seq_length=(geometry.tile // geometry.patch) ** 2,
        tie_word_embeddings=geometry.tied,
        architectures=["LlavaNextForConditionalGeneration"],
    )


def main() -> None:
    """Write a checkpoint, and the benchmark's photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("0.5b", "7b"), default="0.5b", help="of the language model")
    options = parser.parse_args()
    folder = options.folder
    if options.size == "7b":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        write_large_checkpoint(folder, SEVEN_B, dtype=torch.float16, device=device)
    else:
        write_checkpoint(folder, BENCHMARK)
    with as_file(files("skimage") / "data" / "retina.jpg") as photograph:
        shutil.copyfile(photograph, folder / "photograph.jpg")
    print(folder)


if __name__ == "__main__":
    main()

"""Make the demo checkpoint: `python demo/train.py`, some minutes on one CPU core.

The model memorises the questions and answers of `photos.py`. Some visual tokens are hidden in training, so that
answers survive pruning. A second, throw-away head names the photograph from each tile's CLS embedding: without it
hardly anything would train the CLS attention, which the token and region saliency of PTP read.
"""

import argparse
import math
import os
import random
import time
from pathlib import Path

import torch
from PIL import Image, ImageEnhance
from torch import nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.utils import logging

from ptp.demo import CHECKPOINT
from ptp.demo.batch import encode, run_batch
from ptp.demo.model import build_model, build_processor
from ptp.demo.photos import PHOTOS, load_photo

SEED = 0
STEPS = 900
IMAGES = 6  # per step
QUESTIONS = 5  # per image
LEARNING_RATE = 1.5e-3
WARMUP = 30  # steps
CLS_WEIGHT = 0.1
WORKING_SIDE = 640  # larger photographs are shrunk once, for speed; no tile grid is longer than 336
VARIANTS = 8  # altered files per photograph when accuracy is measured
# Width / height of a training crop; None keeps the photograph's own. Together they reach every tile grid.
ASPECTS = (None, None, None, 1.0, 2.0, 0.5, 3.0, 1 / 3, 1.5, 0.75)


def frame(aspect: float, side: float) -> tuple[int, int]:
    """Return width and height of about side² pixels; whole ratios come out exactly, as some tile grids need."""
    if aspect >= 1:
        short = round(side / math.sqrt(aspect))
        return round(short * aspect), short
    short = round(side * math.sqrt(aspect))
    return short, round(short / aspect)


def augment(image: Image.Image, flip: bool, rng: random.Random) -> Image.Image:
    """Return a slightly different file of the same photograph.

    Args:
        image: the photograph, RGB.
        flip: whether its mirror image may be returned.
        rng: where the choices come from.
    """
    width, height = image.size
    aspect = rng.choice(ASPECTS) or width / height
    stretched = rng.random() < 0.4  # squeeze the content into the shape, or cut the shape out of it
    area = rng.uniform(0.55, 1.0) * width * height
    crop_width, crop_height = frame(width / height if stretched else aspect, math.sqrt(area))
    shrink = min(1.0, width / crop_width, height / crop_height)
    crop_width, crop_height = int(crop_width * shrink), int(crop_height * shrink)
    left, top = rng.randint(0, width - crop_width), rng.randint(0, height - crop_height)
    image = image.crop((left, top, left + crop_width, top + crop_height))
    image = image.resize(frame(aspect, rng.uniform(200, 480)), Image.Resampling.BICUBIC)
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.75, 1.25))
    return ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2))


def load_working_photos() -> list[Image.Image]:
    """Return all photographs, the large ones shrunk."""
    images = [load_photo(photo.file) for photo in PHOTOS]
    for image in images:
        image.thumbnail((WORKING_SIDE, WORKING_SIDE), Image.Resampling.BICUBIC)
    return images


def train(processor: LlavaNextProcessor, steps: int) -> LlavaNextForConditionalGeneration:
    """Return the trained network, in FP32.

    Args:
        processor: the result of `build_processor`.
        steps: optimiser steps; 0 returns the random network.
    """
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    model = build_model(processor.tokenizer)
    naming = nn.Linear(model.config.vision_config.hidden_size, len(PHOTOS))
    images = load_working_photos()
    weights = [*model.parameters(), *naming.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.05, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / WARMUP, 0.5 + 0.5 * math.cos(math.pi * step / max(1, steps)))
    )
    for step in range(steps):
        batch = []
        for index in rng.sample(range(len(PHOTOS)), IMAGES):
            photo = PHOTOS[index]
            image = augment(images[index], photo.flip, rng)
            batch.append(encode(processor, index, image, rng.sample(photo.dialogue, QUESTIONS)))
        keeps = [1.0 if rng.random() < 0.3 else rng.uniform(0.05, 1.0) for _ in batch]
        outcome = run_batch(model, batch, keeps)
        answer_loss = nn.functional.cross_entropy(outcome.logits, outcome.targets)
        cls_loss = nn.functional.cross_entropy(naming(outcome.cls), outcome.tile_photo)
        optimiser.zero_grad()
        torch.autograd.backward(answer_loss + CLS_WEIGHT * cls_loss)
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            print(f"step {step:4d}  answers {answer_loss.item():.3f}  cls {cls_loss.item():.3f}", flush=True)
    return model.eval()


def save(model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, folder: Path) -> None:
    """Write the checkpoint in FP16, in Hugging Face layout.

    Args:
        model: the network; it is FP16 afterwards.
        processor: tokenizer, template and image processor.
        folder: where to; files of the same names are replaced.
    """
    model.half().save_pretrained(folder)
    processor.save_pretrained(folder)
    # transformers 5 keeps these inside processor_config.json; other loaders look for the file of their own.
    processor.image_processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes 0600


@torch.inference_mode()
def measure_greedy(model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor) -> list[str]:
    """Return one line per wrong answer of `generate` on the original photographs.

    Args:
        model: the network, as loaded.
        processor: the processor, as loaded.
    """
    wrong = []
    for photo in PHOTOS:
        image = load_photo(photo.file)
        for question, answer in photo.dialogue:
            content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
            tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            said = processor.decode(tokens, skip_special_tokens=True).strip()
            if said != answer or tokens[-1] != model.generation_config.eos_token_id:
                wrong.append(f"{photo.file}: {question} {said} (not: {answer})")
    return wrong


@torch.inference_mode()
def measure_altered(model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, keep: float) -> float:
    """Return the share of answers that are right, word for word, on altered photographs never seen in training.

    Args:
        model: the network, as loaded.
        processor: the processor, as loaded.
        keep: fraction of visual tokens left visible, chosen by `hide_visual`.
    """
    torch.manual_seed(SEED + 1)
    rng = random.Random(SEED + 1)
    right = []
    for index, image in enumerate(load_working_photos()):
        photo = PHOTOS[index]
        for _ in range(VARIANTS):
            example = encode(processor, index, augment(image, photo.flip, rng), photo.dialogue)
            outcome = run_batch(model, [example], [keep])
            # Every answer token being the likeliest one, given those before it, is what greedy decoding needs.
            misses = (outcome.logits.argmax(-1) != outcome.targets).long()
            right.append(torch.zeros(len(photo.dialogue)).index_add(0, outcome.owner, misses.float()) == 0)
    return torch.cat(right).float().mean().item()


def measure(folder: Path) -> None:
    """Print the accuracy of a checkpoint.

    Args:
        folder: the checkpoint.
    """
    processor = LlavaNextProcessor.from_pretrained(folder)
    model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    wrong = measure_greedy(model, processor)
    total = sum(len(photo.dialogue) for photo in PHOTOS)
    print("\n".join([*wrong, f"original photographs, generate: {total - len(wrong)} of {total} answers right"]))
    for keep in (1.0, 0.5, 0.25, 0.1):
        print(
            f"altered photographs, keep {keep}: {measure_altered(model, processor, keep):.1%} right",
            flush=True,
        )


def main() -> None:
    """Train, save and measure; or measure only."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint and measure it.")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=STEPS, help="optimiser steps; 0 writes random weights")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure what is in the folder")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, and with it every weight, depends on the number of threads
    logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = time.perf_counter()
    if not options.measure:
        processor = build_processor()
        save(train(processor, options.steps), processor, options.out)
        print(f"trained in {(time.perf_counter() - started) / 60:.1f} minutes", flush=True)
    measure(options.out)


if __name__ == "__main__":
    main()

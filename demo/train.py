"""Make the demo checkpoint: `python -m ptp.demo.train`, about an hour and a half on two CPU cores.

Three stages: the image encoder alone, told what each token shows (`encoder`); the language model on its features
(`decoder`); both together for a short while. Each stage's result is kept in the work folder, so that a run that was
stopped goes on after the last whole stage.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.utils import logging

from ptp.demo import CHECKPOINT
from ptp.demo.decoder import Lesson, Outcome, hide, prepare, run_batch
from ptp.demo.encoder import Heads, join_labels, see, to_tensor, train_encoder
from ptp.demo.examples import write_examples
from ptp.demo.measure import measure
from ptp.demo.model import build_model, build_processor
from ptp.demo.optimise import Optimiser
from ptp.demo.pool import Sample, draw_many, draw_practice_sample, draw_sample
from ptp.demo.task import make_questions
from ptp.errors import ConfigError

SEED = 0
SCENES, PRACTICE = 20_000, 8_000
TOKENIZER_SCENES = 3_000  # whose questions the tokenizer is made for
ENCODER_STEPS, DECODER_STEPS, JOINT_STEPS = 3_200, 1_800, 350
IMAGES = 16  # per step of decoder and joint stage
RATE, MATRIX_RATE = 2e-3, 6e-3  # of the decoder
MATRIX_DECAY = 0.8  # in one trial of each, the answers' loss after 250 steps was 0.35, and 0.41 with 0.05
JOINT_RATE, JOINT_MATRIX_RATE, JOINT_MATRIX_DECAY = 5e-4, 2e-3, 0.05
EASY_STEPS, EASY_KEEP = 900, 0.35  # of the decoder's steps show few tokens, for speed: mostly objects
ATTENTION_WEIGHT, ALIGNMENT_WEIGHT = 0.3, 0.3
FEATURE_WEIGHT = 0.2  # of the encoder's own lessons in the joint stage
UNHIDDEN = 0.35  # of the images show all their tokens
LEAST = 0.15  # of an image's tokens that stays visible in the others
FAVOUR = 1.0  # see `decoder.hide`

Scenes = Callable[[], Sequence[Sample]]
"""Draws scenes when they are first needed, and has them from then on."""

draw_training_sample = partial(draw_sample, "train")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the training.

    Attributes:
        name: for the log, and the name of its file.
        steps: optimiser steps.
        run: makes the steps, and yields what is to be logged after each.
    """

    name: str
    steps: int
    run: Callable[[int], Iterator[str]]


def train(work: Path, share: float) -> tuple[LlavaNextForConditionalGeneration, LlavaNextProcessor]:
    """Return the trained network, in FP32, and its processor.

    Args:
        work: folder for the results of the stages.
        share: fraction of the scenes and steps, to try the script out.

    Raises:
        ConfigError: the folder holds a stage that another share made.
    """
    processor = build_processor(
        (question.text, question.answer)
        for index in range(round(TOKENIZER_SCENES * share))
        for question in make_questions("train", index)
    )
    torch.manual_seed(SEED)
    model = build_model(processor.tokenizer)
    heads = Heads(model.config.vision_config.hidden_size)
    whole = nn.ModuleDict({"model": model, "heads": heads})
    count = round(SCENES * share)
    scenes = cache(lambda: list(_draw("scenes", draw_training_sample, range(count))))
    crowded = round(PRACTICE * share)
    stages = (
        Stage(name="encoder", steps=ENCODER_STEPS, run=partial(_train_encoder, model, heads, scenes, crowded)),
        Stage(name="decoder", steps=DECODER_STEPS, run=partial(_train_decoder, model, processor, scenes)),
        # on scenes that neither half has seen: what was learned by heart from the others is worth nothing here
        Stage(name="joint", steps=JOINT_STEPS, run=partial(_train_both, model, heads, processor, count)),
    )
    work.mkdir(parents=True, exist_ok=True)
    for number, stage in enumerate(stages):
        file = work / f"{stage.name}.safetensors"
        if file.exists():
            _check_share(file, share)
            whole.load_state_dict(load_file(file))
            print(f"{stage.name}: taken from {file}", flush=True)
            continue
        if number:  # a stage's chance does not depend on whether the one before it ran now
            torch.manual_seed(SEED + number)
        _run(stage, max(1, round(stage.steps * share)))
        partial_file = file.with_suffix(".partial")
        state = {name: value.contiguous() for name, value in whole.state_dict().items()}
        save_file(state, partial_file, metadata={"share": str(share)})
        partial_file.replace(file)
    return model.eval(), processor


def _check_share(file: Path, share: float) -> None:
    with safe_open(file, "pt") as opened:
        made = (opened.metadata() or {}).get("share")
    if made != str(share):
        raise ConfigError(
            f"{file} is a stage of another training", got=f"share {made}", expected=share, do="use another --work"
        )


def _draw(what: str, draw: Callable[[int], Sample], indices: range) -> Iterable[Sample]:
    started = time.perf_counter()
    for number, sample in enumerate(draw_many(draw, indices), start=1):
        if number % 2000 == 0 or number == len(indices):
            print(f"{number} {what} drawn in {time.perf_counter() - started:.0f} s", flush=True)
        yield sample


def _run(stage: Stage, steps: int) -> None:
    started = time.perf_counter()
    for step, line in enumerate(stage.run(steps), start=1):
        if step % 50 == 0 or step == steps:
            minutes = (time.perf_counter() - started) / 60
            left = minutes / step * (steps - step)
            print(f"{stage.name} {step}/{steps}  {line}  {minutes:.1f} min, {left:.0f} to go", flush=True)


def _train_encoder(
    model: LlavaNextForConditionalGeneration, heads: Heads, scenes: Scenes, practice: int, steps: int
) -> Iterator[str]:
    crowded = list(_draw("practice scenes", draw_practice_sample, range(practice)))
    for loss, right in train_encoder(model.model.vision_tower, heads, crowded, scenes(), steps):
        shares = " ".join(f"{share:.2f}" for share in right)
        yield f"loss {loss:.2f}  right {shares}"


def _optimise(optimiser: Optimiser, steps: int, loss_of: Callable[[], tuple[Tensor, str]]) -> Iterator[str]:
    for _ in range(steps):
        loss, line = loss_of()
        optimiser.step(loss)
        yield line


def _hide_some(lesson: Lesson) -> Tensor:
    keep = 1.0 if torch.rand(()) < UNHIDDEN else float(torch.empty(()).uniform_(LEAST, 1))
    return hide(lesson.shown, keep, FAVOUR)


def _total(outcome: Outcome) -> Tensor:
    return outcome.loss + ATTENTION_WEIGHT * outcome.attention + ALIGNMENT_WEIGHT * outcome.alignment


def _deal(count: int) -> Iterator[list[int]]:
    order: list[int] = []
    while True:
        if len(order) < IMAGES:
            order = torch.randperm(count).tolist()
        yield [order.pop() for _ in range(IMAGES)]


def _tiles(samples: Sequence[Sample]) -> Tensor:
    return to_tensor(torch.from_numpy(np.concatenate([sample.tiles for sample in samples])))


def _train_decoder(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, scenes: Scenes, steps: int
) -> Iterator[str]:
    lessons = [prepare(processor, sample) for sample in scenes()]
    features: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(lessons), IMAGES):
            part = scenes()[start : start + IMAGES]
            seen = see(model.model.vision_tower, _tiles(part)).features[:, 1:].half()
            features += [one.flatten(0, 1) for one in torch.split(seen, [len(sample.tiles) for sample in part])]
    hands = _deal(len(lessons))
    easy = iter([True] * min(EASY_STEPS, steps))

    def loss_of() -> tuple[Tensor, str]:
        hand = next(hands)
        batch = [lessons[i] for i in hand]
        few = next(easy, False)
        visible = [hide(one.shown, EASY_KEEP, FAVOUR) if few else _hide_some(one) for one in batch]
        outcome = run_batch(model, batch, [features[i].float() for i in hand], visible)
        return _total(outcome), outcome.summary

    weights = {name: weight for name, weight in model.named_parameters() if "vision_tower" not in name}
    optimiser = Optimiser(weights, rate=RATE, matrix_rate=MATRIX_RATE, matrix_decay=MATRIX_DECAY, steps=steps)
    yield from _optimise(optimiser, steps, loss_of)


def _train_both(
    model: LlavaNextForConditionalGeneration,
    heads: Heads,
    processor: LlavaNextProcessor,
    first: int,
    steps: int,
) -> Iterator[str]:
    """Train on scenes from number `first` on, each of them once."""
    scenes = list(_draw("fresh scenes", draw_training_sample, range(first, first + steps * IMAGES)))
    lessons = [prepare(processor, sample) for sample in scenes]
    tower = model.model.vision_tower
    hands = _deal(len(scenes))

    def loss_of() -> tuple[Tensor, str]:
        hand = next(hands)
        batch, samples = [lessons[i] for i in hand], [scenes[i] for i in hand]
        seen = see(tower, _tiles(samples))
        facts, attraction = join_labels(samples)
        counts = [len(sample.tiles) for sample in samples]
        features = [one.flatten(0, 1) for one in torch.split(seen.features[:, 1:], counts)]
        outcome = run_batch(model, batch, features, [_hide_some(one) for one in batch])
        own, _ = heads.losses(seen, facts.long(), attraction)
        return _total(outcome) + FEATURE_WEIGHT * own, outcome.summary

    weights = dict(nn.ModuleList([model, heads]).named_parameters())
    optimiser = Optimiser(
        weights, rate=JOINT_RATE, matrix_rate=JOINT_MATRIX_RATE, matrix_decay=JOINT_MATRIX_DECAY, steps=steps
    )
    yield from _optimise(optimiser, steps, loss_of)


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
        path.chmod(0o644 if path.is_file() else 0o755)  # safetensors writes 0600


def main() -> None:
    """Train, save and measure; or measure only."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint and measure it.")
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="folder of the checkpoint")
    parser.add_argument("--work", type=Path, default=Path("demo-training"), help="folder for the stages' results")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of scenes and steps, to try the script out")
    parser.add_argument("--measure", action="store_true", help="train nothing, measure what is in the folder")
    options = parser.parse_args()
    if not 0.003 <= options.share <= 1:  # a step needs 64 tiles of crowded scenes
        parser.error("--share is a fraction from 0.003 to 1")
    if options.share < 1 and options.out == CHECKPOINT and not options.measure:
        parser.error("a part of the training must not replace the shipped checkpoint: give --out")
    torch.set_num_threads(min(2, os.cpu_count() or 1))  # the order of sums, and with it every weight, depends on it
    logging.disable_progress_bar()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    started = time.perf_counter()
    if not options.measure:
        try:
            trained = train(options.work, options.share)
        except ConfigError as error:
            sys.exit(f"error: {error}")
        save(*trained, options.out)
        write_examples(options.out / "evaluation")
        print(f"trained in {(time.perf_counter() - started) / 60:.1f} minutes", flush=True)
    print(measure(options.out), flush=True)


if __name__ == "__main__":
    main()

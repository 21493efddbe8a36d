"""How well the demo checkpoint sees: accuracy by kind of question, of the thumbnail alone, and where CLS looks."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from ptp.demo.decoder import Lesson, prepare, run_batch
from ptp.demo.encoder import see, to_tensor
from ptp.demo.pool import Sample, draw_many, draw_sample
from ptp.demo.task import make_scene

SCENES = 400
SPLIT = "test"
_BATCH = 16
_GENERATED = 20  # scenes whose answers `generate` has to give, too


@torch.inference_mode()
def measure(folder: Path) -> str:
    """Return what the checkpoint can do, as Markdown.

    Args:
        folder: the checkpoint.
    """
    processor = LlavaNextProcessor.from_pretrained(folder)
    model = LlavaNextForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    samples = list(draw_many(partial(draw_sample, SPLIT), range(SCENES)))
    lessons = [prepare(processor, sample) for sample in samples]
    whole = _right(model, samples, lessons, lambda one: torch.ones(len(one.sources), dtype=torch.bool))
    thumbnail = _right(model, samples, lessons, lambda one: one.sources < samples[0].shown[0].size)
    kinds = np.array([question.kind for sample in samples for question in sample.questions])
    lines = [
        f"{len(kinds)} questions about {SCENES} scenes of the split {SPLIT}:",
        "",
        "| kind | questions | all tokens | thumbnail only |",
        "|---|---|---|---|",
    ]
    for kind in [*sorted(set(kinds)), "all"]:
        which = np.ones(len(kinds), bool) if kind == "all" else kinds == kind
        lines.append(f"| {kind} | {which.sum()} | {whole[which].mean():.1%} | {thumbnail[which].mean():.1%} |")
    mass, area = _cls_mass(model, samples)
    asked, same = _generated(model, processor, whole)
    return "\n".join(
        [
            *lines,
            "",
            f"CLS attention on objects: {mass:.1%} of it, on {area:.1%} of the tokens: {mass / area:.1f} times.",
            f"`generate` agrees on {same} of {asked} questions.",
        ]
    )


def _right(
    model: LlavaNextForConditionalGeneration,
    samples: Sequence[Sample],
    lessons: Sequence[Lesson],
    visible: Callable[[Lesson], Tensor],
) -> np.ndarray:
    right = []
    for start in range(0, len(samples), _BATCH):
        part = samples[start : start + _BATCH]
        tiles = to_tensor(torch.from_numpy(np.concatenate([sample.tiles for sample in part])))
        seen = see(model.model.vision_tower, tiles).features[:, 1:]
        features = [one.flatten(0, 1) for one in torch.split(seen, [len(sample.tiles) for sample in part])]
        batch = lessons[start : start + _BATCH]
        right.append(run_batch(model, batch, features, [visible(one) for one in batch]).right)
    return torch.cat(right).numpy()


def _cls_mass(model: LlavaNextForConditionalGeneration, samples: Sequence[Sample]) -> tuple[float, float]:
    """Return the share of CLS attention that falls on tokens that show an object, and the share of such tokens."""
    mass, area = [], []
    for sample in samples:
        saliency = see(model.model.vision_tower, to_tensor(torch.from_numpy(sample.tiles))).saliency
        shown = torch.from_numpy(sample.shown).flatten(1) > 0
        mass.append(float((saliency * shown).sum() / saliency.sum()))
        area.append(float(shown.float().mean()))
    return float(np.mean(mass)), float(np.mean(area))


def _generated(
    model: LlavaNextForConditionalGeneration, processor: LlavaNextProcessor, right: np.ndarray
) -> tuple[int, int]:
    """Return how many questions `generate` was asked, and on how many it is right where `right` says so, or wrong."""
    verdicts = []
    for index in range(_GENERATED):
        scene = make_scene(SPLIT, index)
        for question in scene.questions:
            content = [{"type": "image", "image": scene.image}, {"type": "text", "text": question.text}]
            inputs = processor.apply_chat_template(
                [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
            )
            tokens = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
            verdicts.append(processor.decode(tokens, skip_special_tokens=True).strip() == question.answer)
    return len(verdicts), int((np.array(verdicts) == right[: len(verdicts)]).sum())

"""Answers of transformers' own model on the visual tokens that a pruning method keeps, or on all of them."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ptp.benchmarks.evaluation.greedy import Input, greedy
from ptp.benchmarks.methods import Choice, Method, View, with_newlines
from ptp.benchmarks.methods.from_transformers import view_of_image, with_prompt
from ptp.errors import PromptError
from ptp.export.checkpoint import Checkpoint, find_weights, load_model

BATCH = 8
"""Most questions that are answered at once."""

VIEW_BYTES = 2 << 30
"""Most memory of the views that are kept: thousands of the demo's images, about thirty of llava-v1.6-mistral-7b."""


class TransformersModel:
    """A loaded checkpoint, and what its vision encoder made of the images it has seen.

    An evaluation walks over the same images again for every method and budget. What came first stays: of a walk that
    is longer than the memory, dropping the oldest view would drop each just before it is needed.

    Args:
        checkpoint: its weights are loaded in FP32.
        max_new_tokens: most tokens of an answer.
        view_bytes: most memory of the views that are kept.

    Raises:
        CheckpointError: the weights cannot be loaded.
    """

    def __init__(self, checkpoint: Checkpoint, *, max_new_tokens: int, view_bytes: int = VIEW_BYTES) -> None:
        self.model = load_model(checkpoint, find_weights(checkpoint, "fp32"))
        self._processor = checkpoint.processor
        self._image_token: int = checkpoint.config.image_token_id
        self._end_tokens = checkpoint.prompting(self.model.generation_config, max_prompt=1).eos_token_ids
        self._max_new_tokens = max_new_tokens
        self._views: dict[str, View] = {}
        self._bytes_left = view_bytes

    def view(self, image: Image.Image) -> tuple[str, View]:
        """Return the image's SHA-256 and its view, computed when it is seen for the first time."""
        pixels = np.asarray(image.convert("RGB"))
        name = hashlib.sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
        if name in self._views:
            return name, self._views[name]
        view = view_of_image(self.model, self._processor.image_processor(images=image, return_tensors="pt"))
        size = _size(view)
        if size <= self._bytes_left:
            self._views[name] = view
            self._bytes_left -= size
        return name, view

    def prompt(self, question: str, view: View) -> Tensor:
        """Return the token ids (S,) of a question about an image, an image token for each visual token.

        Raises:
            PromptError: the question contains the image token, or the chat template places no image.
        """
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text = self._processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        tokenizer = self._processor.tokenizer
        # a template that writes the BOS token itself must not get a second one
        has_bos = bool(tokenizer.bos_token) and text.startswith(tokenizer.bos_token)
        ids: list[int] = tokenizer(text, add_special_tokens=not has_bos)["input_ids"]
        if ids.count(self._image_token) != 1:
            raise PromptError("a prompt must hold one image token", got=ids.count(self._image_token))
        place = ids.index(self._image_token)
        return torch.tensor([*ids[:place], *[self._image_token] * len(view.features), *ids[place + 1 :]])

    def input(self, ids: Tensor, view: View, choice: Choice) -> Input:
        """Return the language model's input where a choice stands for the image."""
        image = ids == self._image_token
        positions, rows = with_newlines(view, choice)
        features, kept = view.features.copy(), np.zeros(len(view.features), np.bool_)
        features[positions], kept[positions] = rows, True
        embeds = self.model.get_input_embeddings()(ids).detach()
        embeds[image] = torch.from_numpy(features)
        return Input(embeds=embeds, kept=(~image).masked_scatter(image, torch.from_numpy(kept)))

    def answers(self, inputs: Sequence[Input], *, prunes_after: int) -> list[str]:
        """Return the greedy answers, special tokens and surrounding space left out."""
        found: list[str] = []
        for start in range(0, len(inputs), BATCH):
            tokens = greedy(
                self.model,
                inputs[start : start + BATCH],
                prunes_after=prunes_after,
                max_new_tokens=self._max_new_tokens,
                end_tokens=self._end_tokens,
            )
            found += self._processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return [text.strip() for text in found]


class TransformersAnswerer:
    """A checkpoint under one pruning method and one budget (implements `Answerer`).

    Args:
        model: the loaded checkpoint.
        method: what chooses; None keeps everything.
        budget: visual tokens kept, newline tokens not counted.
    """

    def __init__(self, model: TransformersModel, method: Method | None, budget: int) -> None:
        self._model = model
        self._method = method
        self._budget = budget

    def answer(self, image: Image.Image, questions: Sequence[str]) -> list[str]:
        """See `Answerer.answer`. A random method draws once per image, the same whenever it is asked.

        Raises:
            PromptError: a question contains the image token.
        """
        name, view = self._model.view(image)
        seed = int(name[:16], 16)
        prompts = [self._model.prompt(question, view) for question in questions]
        choices = [self._choose(view, ids, seed) for ids in prompts]
        inputs = [self._model.input(ids, view, choice) for ids, choice in zip(prompts, choices, strict=True)]
        return self._model.answers(inputs, prunes_after=self._method.prunes_after if self._method else 0)

    def _choose(self, view: View, ids: Tensor, seed: int) -> Choice:
        if self._method is None:
            return Choice(positions=view.positions)
        seen = with_prompt(self._model.model, view, ids) if self._method.sees_question else view
        return self._method.choose(seen, self._budget, seed)


def _size(view: View) -> int:
    """Return the bytes of a view's arrays."""
    arrays: list[Any] = [view.features, view.keys, view.hidden, *view.cls_attention.values(), *view.cls_logits.values()]
    return sum(array.nbytes for array in arrays if array is not None)

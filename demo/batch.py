"""Training batches of the demo model: one sequence holds an image once and several independent questions about it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """One question with its answer.

    Args:
        tokens: ids of everything after the image.
        reply: how many of them, at the end, are the answer and its `</s>`.
    """

    tokens: list[int]
    reply: int


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image with several questions, as the model sees them.

    Args:
        photo: number of the photograph.
        pixel_values: (T, 3, S, S) tiles, thumbnail first.
        image_size: height and width of the image before the processor.
        head: token ids before the image.
        dialogues: the questions.
    """

    photo: int
    pixel_values: Tensor
    image_size: tuple[int, int]
    head: list[int]
    dialogues: tuple[Dialogue, ...]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the L tokens of one sequence see each other.

    Args:
        position: (L,) rotary positions; every dialogue starts where the image ends.
        segment: (L,) 0 for the image and what stands before it, 1, 2, … for the dialogues.
        visible: (L,) false for hidden visual tokens.
        predicts: (L,) true where the next token belongs to an answer.
    """

    position: Tensor
    segment: Tensor
    visible: Tensor
    predicts: Tensor


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the model predicts for one batch, on answer tokens only.

    Args:
        logits: (A, V) predictions of all answer tokens.
        targets: (A,) the right token ids.
        owner: (A,) which dialogue of the batch a token belongs to, counted from 0.
        cls: (tiles, H) CLS embeddings of the feature layer.
        tile_photo: (tiles,) number of the photograph each tile was cut from.
    """

    logits: Tensor
    targets: Tensor
    owner: Tensor
    cls: Tensor
    tile_photo: Tensor


def encode(
    processor: LlavaNextProcessor, photo: int, image: Image.Image, dialogue: Sequence[tuple[str, str]]
) -> Example:
    """Return an image and some of its questions as tensors, rendered by the chat template itself.

    Args:
        processor: tokenizer, template and image processor.
        photo: number of the photograph.
        image: the image, RGB.
        dialogue: questions and answers.
    """
    vision = processor.image_processor(image, return_tensors="pt")
    tokenizer = processor.tokenizer
    head: list[int] = []
    dialogues = []
    for question, answer in dialogue:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}])
        head, after = (tokenizer.encode(part) for part in prompt.split(processor.image_token))
        reply = tokenizer.encode(f" {answer}{tokenizer.eos_token}")
        dialogues.append(Dialogue(tokens=after + reply, reply=len(reply)))
    height, width = vision["image_sizes"][0].tolist()
    return Example(
        photo=photo,
        pixel_values=vision["pixel_values"][0],
        image_size=(height, width),
        head=head,
        dialogues=tuple(dialogues),
    )


def hide_visual(image: Tensor, keep: float) -> Tensor:
    """Return which visual tokens stay visible: (M,) booleans.

    The choice is partly blind and partly by content, along a random direction of feature space. A pruner's choice is by
    content too: it takes the whole face or the whole background, never an even sprinkle of both.

    Args:
        image: (M, H) packed visual tokens.
        keep: fraction of them that stays.
    """
    content = image.detach() @ torch.randn(image.shape[1])
    content = (content - content.mean()) / (content.std() + 1e-6)
    order = (torch.rand(len(image)) + torch.rand(1) * content).argsort(descending=True)
    visible = torch.zeros(len(image), dtype=torch.bool)
    visible[order[: max(1, round(keep * len(image)))]] = True
    return visible


def lay_out(example: Example, image: Tensor, keep: float) -> Layout:
    """Return the layout of head, image and dialogues in one sequence.

    Args:
        example: the example.
        image: (M, H) its packed visual tokens.
        keep: fraction of them that stays visible.
    """
    head = len(example.head)
    lead = head + len(image)
    position, segment = [torch.arange(lead)], [torch.zeros(lead, dtype=torch.long)]
    predicts = [torch.zeros(lead, dtype=torch.bool)]
    for number, dialogue in enumerate(example.dialogues, start=1):
        length = len(dialogue.tokens)
        position.append(lead + torch.arange(length))
        segment.append(torch.full((length,), number))
        place = torch.arange(length)
        predicts.append((place >= length - dialogue.reply - 1) & (place < length - 1))
    visible = torch.ones(sum(map(len, segment)), dtype=torch.bool)
    visible[head:lead] = hide_visual(image, keep)
    return Layout(
        position=torch.cat(position), segment=torch.cat(segment), visible=visible, predicts=torch.cat(predicts)
    )


def see_image(
    model: LlavaNextForConditionalGeneration, batch: Sequence[Example]
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Run the image encoder.

    Returns:
        The packed visual tokens of each image, (M, H); the CLS embeddings of all tiles, (tiles, H); and for each tile
        the number of the photograph it was cut from, (tiles,).
    """
    core, config = model.model, model.config
    counts = [
        image_size_to_num_patches(list(e.image_size), config.image_grid_pinpoints, config.vision_config.image_size)
        for e in batch
    ]
    tiles = torch.cat([e.pixel_values[:count] for e, count in zip(batch, counts, strict=True)])  # (tiles, 3, S, S)
    states = core.vision_tower(tiles, output_hidden_states=True).hidden_states[config.vision_feature_layer]
    features = core.multi_modal_projector(states[:, 1:]).split(counts)  # B × (T, N, H)
    sizes = torch.tensor([e.image_size for e in batch])
    packed, _ = core.pack_image_features(features, sizes, config.vision_feature_select_strategy, core.image_newline)
    photo = torch.tensor([e.photo for e in batch]).repeat_interleave(torch.tensor(counts))
    return packed, states[:, 0], photo


def run_batch(model: LlavaNextForConditionalGeneration, batch: Sequence[Example], keeps: Sequence[float]) -> Outcome:
    """Run image encoder and language model on a batch.

    Args:
        model: the network.
        batch: the examples.
        keeps: fraction of visual tokens each example may see; the others are masked and positions stay.
    """
    packed, cls, tile_photo = see_image(model, batch)
    embed = model.get_input_embeddings()
    rows = []
    for example, image in zip(batch, packed, strict=True):
        tokens = [token for dialogue in example.dialogues for token in dialogue.tokens]
        rows.append(torch.cat([embed(torch.tensor(example.head)), image, embed(torch.tensor(tokens))]))
    layouts = [lay_out(e, image, keep) for e, image, keep in zip(batch, packed, keeps, strict=True)]
    pad = nn.utils.rnn.pad_sequence
    segment = pad([layout.segment for layout in layouts], batch_first=True, padding_value=-1)  # (B, L)
    visible = pad([layout.visible for layout in layouts], batch_first=True)
    shares = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])  # (B, query, key)
    mask = (shares.tril() & visible[:, None, :]) | torch.eye(segment.shape[1], dtype=torch.bool)
    hidden = model.model.language_model(
        inputs_embeds=pad(rows, batch_first=True),
        attention_mask=mask[:, None],
        position_ids=pad([layout.position for layout in layouts], batch_first=True),
        use_cache=False,
    ).last_hidden_state
    predicts = pad([layout.predicts for layout in layouts], batch_first=True)
    dialogues = [dialogue for example in batch for dialogue in example.dialogues]
    return Outcome(
        logits=model.lm_head(hidden[predicts]),
        targets=torch.tensor([token for d in dialogues for token in d.tokens[-d.reply :]]),
        owner=torch.arange(len(dialogues)).repeat_interleave(torch.tensor([d.reply for d in dialogues])),
        cls=cls,
        tile_photo=tile_photo,
    )

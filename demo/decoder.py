"""Second half of the demo's training: the language model, on the image encoder's features.

One sequence holds an image once and several independent questions about it. Some visual tokens are hidden, mostly
background, so that answers survive pruning; and the question's attention in the second block, from which PTP reads
relevance, is drawn to the tokens that answer it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaAttention, apply_rotary_pos_emb, repeat_kv

from ptp.demo.pool import FACTS, GLYPH, Sample
from ptp.ptp_graph.reference import NEWLINE, packed_sequence
from ptp.ptp_graph.relevance import attention_relevance

RELEVANCE_BLOCK = 1
"""The block of the language model whose attention PTP reads, counted from 0."""

NAMED = {number: name for number, name in enumerate(FACTS) if name != "neighbour"}
"""The facts that a token has a word for."""


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """One question with its answer.

    Attributes:
        tokens: ids of everything after the image.
        asked: first and last + 1 of the tokens that hold the question.
        reply: how many of them, at the end, are the answer and its `</s>`.
        targets: objects that have to be seen, counted from 0.
        reads: whether their glyphs have to be read.
    """

    tokens: list[int]
    asked: tuple[int, int]
    reply: int
    targets: tuple[int, ...]
    reads: bool


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """One image with its questions; M is the length of its packed sequence.

    Attributes:
        sources: (M,) int64 tile · N + token, or T · N for a newline.
        shown: (M,) int64, 0 or 1 + the object that a token shows.
        words: (M, 5) int64, ids of the words for colour, shape, glyph, picture and number of a token; −1 where there is
            none.
        written: (M,) whether the token holds a glyph of a sign.
        head: ids before the image.
        dialogues: the questions.
    """

    sources: Tensor
    shown: Tensor
    words: Tensor
    written: Tensor
    head: list[int]
    dialogues: tuple[Dialogue, ...]


def prepare(processor: LlavaNextProcessor, sample: Sample) -> Lesson:
    """Return a scene's questions as token ids, rendered by the chat template itself.

    Args:
        processor: tokenizer and template.
        sample: the scene.
    """
    tokenizer = processor.tokenizer
    tiles, side = sample.shown.shape[:2]
    sequence = np.array(packed_sequence(*sample.image_size, sample.grid, side))
    number = {one.box: i for i, one in enumerate(sample.objects)}
    shown = np.append(sample.shown.reshape(-1), 0)  # a newline shows nothing
    sources = np.where(sequence == NEWLINE, tiles * side * side, sequence)
    facts = np.concatenate([sample.facts.reshape(-1, len(FACTS)), np.zeros((1, len(FACTS)), np.int8)])[sources]
    words = [np.array([-1, *_word_ids(tokenizer, name)])[np.maximum(facts[:, i], 0)] for i, name in NAMED.items()]
    head: list[int] = []
    dialogues = []
    for question in sample.questions:
        content = [{"type": "image"}, {"type": "text", "text": question.text}]
        prompt = processor.apply_chat_template([{"role": "user", "content": content}])
        before, after = prompt.split(processor.image_token)
        head, tail = tokenizer.encode(before), tokenizer(after, return_offsets_mapping=True)
        first = after.index(question.text)
        held = [
            i
            for i, (start, end) in enumerate(tail["offset_mapping"])
            if start < first + len(question.text) and end > first
        ]
        reply = tokenizer.encode(f" {question.answer}{tokenizer.eos_token}")
        dialogues.append(
            Dialogue(
                tokens=tail["input_ids"] + reply,
                asked=(held[0], held[-1] + 1),
                reply=len(reply),
                targets=tuple(number[box] for box in question.targets),
                reads=question.kind in ("digit", "letter"),
            )
        )
    return Lesson(
        sources=torch.from_numpy(sources),
        shown=torch.from_numpy(shown[sources]).long(),
        words=torch.from_numpy(np.stack(words, axis=1)),
        written=torch.from_numpy(facts[:, GLYPH] > 0),
        head=head,
        dialogues=tuple(dialogues),
    )


@cache
def _word_ids(tokenizer: PreTrainedTokenizerFast, fact: str) -> tuple[int, ...]:
    """Return the last token of each word that a fact can have, as it stands inside a sentence."""
    return tuple(tokenizer.encode(f" {word}")[-1] for word in FACTS[fact])


def hide(shown: Tensor, keep: float, favour: float) -> Tensor:
    """Return which visual tokens stay visible: (M,) booleans.

    Args:
        shown: (M,) 0 or 1 + the object that a token shows.
        keep: fraction of them that stays.
        favour: how much sooner a token that shows an object stays; above 1 all those come first.
    """
    order = (torch.rand(len(shown)) + favour * (shown > 0)).argsort(descending=True)
    visible = torch.zeros(len(shown), dtype=torch.bool)
    visible[order[: max(1, round(keep * len(shown)))]] = True
    return visible


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the model makes of a batch.

    Attributes:
        logits: (A, V) predictions of all answer tokens.
        targets: (A,) the right token ids.
        owner: (A,) which dialogue of the batch a token belongs to, counted from 0.
        attention: () mean of −log of the share of the questions' relevance that falls on what answers them.
        alignment: () cross-entropy of telling from a projected visual token which words' embeddings describe it.
    """

    logits: Tensor
    targets: Tensor
    owner: Tensor
    attention: Tensor
    alignment: Tensor

    @property
    def loss(self) -> Tensor:
        """Cross-entropy of the answers."""
        return cross_entropy(self.logits, self.targets)

    @property
    def summary(self) -> str:
        """One line for a log."""
        right = self.right.float().mean().item()
        answers, alignment = self.loss.item(), self.alignment.item()
        attention = self.attention.item()
        return f"answers {answers:.3f}  alignment {alignment:.2f}  attention {attention:.2f}  right {right:.3f}"

    @property
    def right(self) -> Tensor:
        """(D,) whether every token of a dialogue's answer is the likeliest one: what greedy decoding needs."""
        misses = (self.logits.argmax(-1) != self.targets).long()
        return torch.zeros(int(self.owner[-1]) + 1, dtype=torch.long).index_add(0, self.owner, misses) == 0


def run_batch(
    model: LlavaNextForConditionalGeneration,
    batch: Sequence[Lesson],
    features: Sequence[Tensor],
    visible: Sequence[Tensor],
) -> Outcome:
    """Run projector and language model.

    Args:
        model: the network.
        batch: the lessons.
        features: for each of them (T · N, H) states of the encoder's feature layer, without CLS.
        visible: for each of them (M,) which visual tokens may be seen; positions stay.
    """
    core, embed = model.model, model.get_input_embeddings()
    counts = [len(one) for one in features]
    projected = core.multi_modal_projector(torch.cat(list(features))).split(counts)
    rows, layouts, visuals, words = [], [], [], []
    for lesson, image, seen in zip(batch, projected, visible, strict=True):
        tokens = [token for dialogue in lesson.dialogues for token in dialogue.tokens]
        # what is hidden from everybody need not be there
        image = torch.cat([image, core.image_newline[None]])[lesson.sources[seen]]
        rows.append(torch.cat([embed(torch.tensor(lesson.head)), image, embed(torch.tensor(tokens))]))
        layouts.append(_lay_out(lesson, seen))
        visuals.append(image)
        words.append(lesson.words[seen])
    segment = pad_sequence([layout.segment for layout in layouts], batch_first=True, padding_value=-1)  # (B, L)
    shares = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])  # (B, query, key)
    allowed = shares.tril()
    position = pad_sequence([layout.position for layout in layouts], batch_first=True)
    taken: list[Tensor] = []
    block = core.language_model.layers[RELEVANCE_BLOCK]
    hook = block.input_layernorm.register_forward_hook(lambda _, __, out: taken.append(out))
    hidden = core.language_model(
        inputs_embeds=pad_sequence(rows, batch_first=True),
        attention_mask=allowed[:, None],
        position_ids=position,
        use_cache=False,
    ).last_hidden_state
    hook.remove()
    predicts = pad_sequence([layout.predicts for layout in layouts], batch_first=True)
    dialogues = [dialogue for lesson in batch for dialogue in lesson.dialogues]
    cosines = core.language_model.rotary_emb(taken[0], position)
    return Outcome(
        logits=model.lm_head(hidden[predicts]),
        targets=torch.tensor([token for d in dialogues for token in d.tokens[-d.reply :]]),
        owner=torch.arange(len(dialogues)).repeat_interleave(torch.tensor([d.reply for d in dialogues])),
        attention=_attention_loss(block.self_attn, taken[0], cosines, allowed, batch, visible),
        alignment=_alignment_loss(embed.weight, torch.cat(visuals), torch.cat(words)),
    )


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """How the L tokens of one sequence see each other.

    Attributes:
        position: (L,) rotary positions, those of the whole sequence; every dialogue starts where the image ends.
        segment: (L,) 0 for the visible image and what stands before it, 1, 2, … for the dialogues.
        predicts: (L,) true where the next token belongs to an answer.
    """

    position: Tensor
    segment: Tensor
    predicts: Tensor


def _lay_out(lesson: Lesson, seen: Tensor) -> _Layout:
    head, end = len(lesson.head), len(lesson.head) + len(seen)
    position = [torch.arange(head), head + seen.nonzero()[:, 0]]
    lead = head + len(position[1])
    segment, predicts = [torch.zeros(lead, dtype=torch.long)], [torch.zeros(lead, dtype=torch.bool)]
    for number, dialogue in enumerate(lesson.dialogues, start=1):
        length = len(dialogue.tokens)
        position.append(end + torch.arange(length))
        segment.append(torch.full((length,), number))
        place = torch.arange(length)
        predicts.append((place >= length - dialogue.reply - 1) & (place < length - 1))
    return _Layout(position=torch.cat(position), segment=torch.cat(segment), predicts=torch.cat(predicts))


def _alignment_loss(embeddings: Tensor, visual: Tensor, words: Tensor) -> Tensor:
    """Return the cross-entropy of the words that describe visual tokens (n, H), among the words of the same kind."""
    losses = [embeddings.new_zeros(())]
    for column in range(words.shape[1]):
        known = words[:, column] >= 0
        if known.any():
            kind, label = torch.unique(words[known, column], return_inverse=True)
            logits = visual[known] @ embeddings[kind].T * embeddings.shape[1] ** -0.5
            losses.append(cross_entropy(logits, label))
    return torch.stack(losses).sum()


def _attention_loss(
    attention: LlamaAttention,
    states: Tensor,
    cosines: tuple[Tensor, Tensor],
    allowed: Tensor,
    batch: Sequence[Lesson],
    visible: Sequence[Tensor],
) -> Tensor:
    """Return the mean of −log of the share of a question's relevance that falls on the tokens of its targets."""
    shape = (*states.shape[:2], -1, attention.head_dim)
    query = attention.q_proj(states).view(shape).transpose(1, 2)
    keys = attention.k_proj(states).view(shape).transpose(1, 2)
    query, keys = apply_rotary_pos_emb(query, keys, *cosines)
    keys = repeat_kv(keys, attention.num_key_value_groups)  # (B, heads, L, d)
    losses = []
    for row, (lesson, seen) in enumerate(zip(batch, visible, strict=True)):
        head, size = len(lesson.head), int(seen.sum())
        shown, written = lesson.shown[seen], lesson.written[seen]
        start = head + size
        for dialogue in lesson.dialogues:
            first, last = start + dialogue.asked[0], start + dialogue.asked[1]
            start += len(dialogue.tokens)
            wanted = torch.isin(shown, torch.tensor(dialogue.targets) + 1)
            if dialogue.reads:
                wanted &= written
            if not wanted.any():
                continue
            relevance = attention_relevance(
                (query[row, :, first:last] * attention.scaling)[None, :, None],
                keys[row][None, :, None],
                allowed[row, first:last][None],
                torch.ones(1, last - first, dtype=torch.bool),
            )[0, head : head + size]
            losses.append(-(relevance[wanted].sum() / relevance.sum()).clamp(min=1e-6).log())
    return torch.stack(losses).mean() if losses else states.new_zeros(())

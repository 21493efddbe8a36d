"""One answer in the making: prefill, then token after token."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ptp.bundle.manifest import PositionPolicy
from ptp.errors import PromptError
from ptp.runtime.backends.base import Array
from ptp.runtime.decoding import Decoder
from ptp.runtime.detokenize import TextStream
from ptp.runtime.sampling import Sampler, Sampling, StopText
from ptp.runtime.tokenize import Prompt
from ptp.runtime.vision import VisualEncoder, VisualTokens

StopReason = Literal["eos", "stop", "length"]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A whole answer.

    Attributes:
        text: the answer, without the stop string that may have ended it.
        token_ids: every token generated, the end token included.
        num_visual_tokens: rows that the image took in the language model's input.
        stop_reason: the model ended it (`eos`), a stop string did, or it reached `max_new_tokens` (`length`).
    """

    text: str
    token_ids: tuple[int, ...]
    num_visual_tokens: int
    stop_reason: StopReason


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """The language model's input for one question.

    Attributes:
        embeds: (S, H), prompt prefix, visual tokens, prompt suffix.
        positions: (S,) int64; the tokens that were pruned leave gaps under the policy `original`.
    """

    embeds: Array
    positions: NDArray[np.int64]

    @property
    def next_position(self) -> int:
        """Position of the first token generated."""
        return int(self.positions[-1]) + 1


def splice(prompt: Prompt, embeds: Array, visual: VisualTokens, policy: PositionPolicy) -> Sequence:
    """Put the visual tokens between the prompt's prefix and suffix.

    Args:
        prompt: the question's tokens.
        embeds: (prefix + suffix, H), their embeddings.
        visual: the image's tokens.
        policy: whether positions are those of the unpruned sequence or consecutive.
    """
    start, rest = len(prompt.prefix), len(prompt.suffix)
    spliced = np.concatenate([embeds[:start], visual.features.astype(embeds.dtype, copy=False), embeds[start:]])
    if policy == "compact":
        return Sequence(embeds=spliced, positions=np.arange(len(spliced)))
    after = start + visual.packed_length
    positions = np.concatenate([np.arange(start), start + visual.positions, np.arange(after, after + rest)])
    return Sequence(embeds=spliced, positions=positions)


def check_length(sequence: Sequence, sampling: Sampling, max_positions: int) -> None:
    """Refuse a sequence whose last generated token would stand beyond the model's positions.

    Raises:
        PromptError: how many positions are needed, and how many there are.
    """
    # the last token is generated and never fed
    needed = sequence.next_position + sampling.max_new_tokens - 1
    if needed > max_positions:
        raise PromptError(
            "the prompt, the image and the answer do not fit into the language model",
            got=f"{sequence.next_position} positions and {sampling.max_new_tokens} new tokens",
            expected=f"at most {max_positions} positions",
            do="lower max_new_tokens or shorten the question",
        )


def check_cache(sequence: Sequence, sampling: Sampling, max_context: int | None) -> None:
    """Refuse a sequence that would outgrow an engine's cache.

    Args:
        sequence: the language model's input.
        sampling: how many tokens may come after it.
        max_context: tokens that the cache has room for; None where nothing but memory is a limit.

    Raises:
        PromptError: how many tokens are needed, and how many there is room for.
    """
    length = len(sequence.positions)
    # the last token is generated and never fed
    if max_context is not None and length + sampling.max_new_tokens - 1 > max_context:
        raise PromptError(
            "the prompt, the image and the answer do not fit into the engine's cache",
            got=f"{length} tokens and {sampling.max_new_tokens} new ones",
            expected=f"at most {max_context} tokens",
            do="lower max_new_tokens, or build the engine with a larger --max-context",
        )


class Generation:
    """Iterates over the pieces of text of one answer as they are generated.

    Args:
        encoder: embeds and decodes tokens.
        decoder: the language model.
        sequence: its input.
        visual: the image's tokens in it.
        sampling: how tokens are chosen, and when to stop.
    """

    def __init__(
        self,
        encoder: VisualEncoder,
        decoder: Decoder,
        sequence: Sequence,
        visual: VisualTokens,
        sampling: Sampling,
    ) -> None:
        self.visual = visual
        self._encoder = encoder
        self._decoder = decoder
        self._sequence = sequence
        self._sampling = sampling
        self._text: list[str] = []
        self._token_ids: list[int] = []
        self._stop_reason: StopReason = "length"
        self._pieces = self._generate()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        piece = next(self._pieces)
        self._text.append(piece)
        return piece

    def answer(self) -> Answer:
        """Return the whole answer, generating what is left of it.

        Raises:
            BackendError: the decoder failed.
        """
        for _ in self:
            pass
        return Answer(
            text="".join(self._text),
            token_ids=tuple(self._token_ids),
            num_visual_tokens=self.visual.count,
            stop_reason=self._stop_reason,
        )

    def _generate(self) -> Iterator[str]:
        stream, stop = TextStream(self._encoder.prompter.tokenizer), StopText(self._sampling.stop)
        for token in self._tokens():
            if piece := stop.push(stream.push(token)):
                yield piece
            if stop.stopped:
                self._stop_reason = "stop"
                return
        if piece := stop.push(stream.finish()) + stop.finish():
            yield piece
        if stop.stopped:
            self._stop_reason = "stop"

    def _tokens(self) -> Iterator[int]:
        """Yield the tokens of the answer, without the end token."""
        sampler = Sampler(self._sampling) if self._sampling.temperature else None
        decoding, tokens = self._decoder.begin(), None
        end_tokens = self._encoder.manifest.prompting.eos_token_ids
        for _ in range(self._sampling.max_new_tokens):
            if tokens is None:
                prediction = decoding.prefill(self._sequence.embeds, self._sequence.positions)
            else:
                prediction = decoding.append(tokens)
            token = sampler.choose(prediction.logits) if sampler else prediction.token
            tokens = np.array([[token]]) if sampler else prediction.tokens
            self._token_ids.append(token)
            if token in end_tokens:
                self._stop_reason = "eos"
                return
            yield token

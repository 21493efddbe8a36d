"""From a question to token ids around the image."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding

from ptp.bundle import Bundle
from ptp.bundle.manifest import Prompting
from ptp.bundle.tokenizer import TOKENIZER
from ptp.chat import Chat, write_chat
from ptp.errors import BundleError, PromptError
from ptp.runtime.tokenizer import BundleTokenizer

MAX_QUESTION_BYTES = 1 << 20
"""Of each text of a conversation; real ones have thousands."""


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids of a prompt, the image token left out.

    Attributes:
        prefix: ids before the image.
        suffix: ids after the image.
        question_mask: (prefix + suffix,) bool, tokens that hold a part of the user's question.
    """

    prefix: list[int]
    suffix: list[int]
    question_mask: NDArray[np.bool_]

    @property
    def ids(self) -> list[int]:
        """All text tokens, prefix then suffix."""
        return self.prefix + self.suffix


class Prompter:
    """Turns questions into token ids as transformers' `LlavaNextProcessor.apply_chat_template` does.

    Args:
        prompting: image token, the text around a question, and the longest prompt.
        tokenizer: the bundle's.
    """

    def __init__(self, prompting: Prompting, tokenizer: BundleTokenizer) -> None:
        self.tokenizer = tokenizer
        self._prompting = prompting

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "Prompter":
        """Return the prompter of a bundle.

        Raises:
            BundleError: `tokenizer.json` is not among the files, cannot be read, or is one that cannot be used.
        """
        path, rows = bundle.path(TOKENIZER), bundle.manifest.language_model.vocab_size
        tokenizer = BundleTokenizer(bundle.read(TOKENIZER), str(path))
        if tokenizer.num_ids > rows:
            raise BundleError(
                f"{path} has tokens without an embedding",
                got=f"id {tokenizer.num_ids - 1}",
                expected=f"ids below vocab_size {rows}",
                do="export the bundle again",
            )
        return cls(bundle.manifest.prompting, tokenizer)

    def __call__(self, question: str | Chat) -> Prompt:
        """Return the token ids of a question about one image.

        Args:
            question: the question, or a conversation that ends with one.

        Raises:
            PromptError: the question is empty, a text of the conversation contains the image token or is too long, or
                the model's chat template has no place for it.
        """
        chat = question if isinstance(question, Chat) else Chat(question=question)
        prompting = self._prompting
        self._check(chat)
        text, span = write_chat(chat, prompting.chat, prompting.image_token)
        encoding = self.tokenizer.encode(text, add_special_tokens=prompting.add_special_tokens)

        images = [i for i, token in enumerate(encoding.ids) if token == prompting.image_token_id]
        if len(images) != 1:
            raise PromptError("the prompt must hold one image token", got=len(images), do="export the bundle again")
        length, longest = len(encoding.ids) - 1, prompting.max_prompt
        if length > longest:
            raise PromptError(
                "the prompt is too long for this bundle",
                got=f"{length} text tokens",
                expected=f"at most {longest}",
                do="shorten the question or export with a larger --max-prompt",
            )
        mask = _tokens_within(encoding, span)
        return Prompt(
            prefix=encoding.ids[: images[0]],
            suffix=encoding.ids[images[0] + 1 :],
            question_mask=np.delete(mask, images[0]),
        )

    def _check(self, chat: Chat) -> None:
        """Refuse texts that no prompt can hold."""
        image_token = self._prompting.image_token
        for text in chat.texts:
            if (size := len(text.encode(errors="surrogatepass"))) > MAX_QUESTION_BYTES:
                raise PromptError(
                    "the question is too long", got=f"{size} bytes", expected=f"at most {MAX_QUESTION_BYTES}"
                )
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise PromptError("the question is not valid Unicode text", got=repr(text[:80]))
            if image_token in text:
                raise PromptError(f"the question contains the image token {image_token}", do="leave it out")
        if not chat.question.strip():
            raise PromptError("the question is empty")


def _tokens_within(encoding: Encoding, span: tuple[int, int]) -> NDArray[np.bool_]:
    """Return (tokens,) bool: those that share a character with a span of the text."""
    mask = np.zeros(len(encoding.ids), np.bool_)
    for index, ((start, end), sequence) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True)):
        # bytes of a character that is split over tokens have empty offsets but for the last
        end = max(end, start + 1)
        mask[index] = sequence is not None and start < span[1] and end > span[0]
    return mask

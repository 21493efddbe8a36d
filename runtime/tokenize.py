"""From a question to token ids around the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from ptp.bundle import Bundle
from ptp.bundle.manifest import Prompting
from ptp.errors import BundleError, PromptError
from ptp.runtime.chat_template import ChatTemplate

CHAT_TEMPLATE = "chat_template.jinja"
TOKENIZER = "tokenizer.json"


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
        prompting: image token, special tokens and the longest prompt.
        template: the chat template.
        tokenizer: the tokenizer; its truncation and padding are switched off.
    """

    def __init__(self, prompting: Prompting, template: ChatTemplate, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self._prompting = prompting
        self._template = template

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> "Prompter":
        """Return the prompter of a bundle.

        Raises:
            BundleError: `tokenizer.json` or `chat_template.jinja` is not among the files or cannot be read.
            PromptError: the chat template is not valid.
        """
        prompting = bundle.manifest.prompting
        try:
            source = bundle.path(CHAT_TEMPLATE).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BundleError(f"{CHAT_TEMPLATE} cannot be read", got=error, do="export the bundle again") from error
        path = bundle.path(TOKENIZER)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise BundleError(f"{path} is not a tokenizer", got=error, do="export the bundle again") from error
        return cls(prompting, ChatTemplate(source, prompting.special_tokens), tokenizer)

    def __call__(self, question: str) -> Prompt:
        """Return the token ids of a question about one image.

        Raises:
            PromptError: the question is empty, contains the image token, or is too long; or the chat template does
                not place exactly one image.
        """
        image_token = self._prompting.image_token
        if not question.strip():
            raise PromptError("the question is empty")
        if any("\ud800" <= character <= "\udfff" for character in question):
            raise PromptError("the question is not valid Unicode text", got=repr(question[:80]))
        if image_token in question:
            raise PromptError(f"the question contains the image token {image_token}", do="leave it out")
        rendered = self._template.render(question)
        bos = self._prompting.special_tokens.get("bos_token")
        # a template that writes the BOS token itself must not get a second one
        add_special_tokens = not (bos and rendered.text.startswith(bos))
        encoding = self.tokenizer.encode(rendered.text, add_special_tokens=add_special_tokens)

        images = [i for i, token in enumerate(encoding.ids) if token == self._prompting.image_token_id]
        if len(images) != 1:
            raise PromptError(
                "the bundle's chat template must place one image", got=len(images), do="correct chat_template.jinja"
            )
        length, longest = len(encoding.ids) - 1, self._prompting.max_prompt
        if length > longest:
            raise PromptError(
                "the prompt is too long for this bundle",
                got=f"{length} text tokens",
                expected=f"at most {longest}",
                do="shorten the question or export with a larger --max-prompt",
            )
        mask = _tokens_within(encoding, rendered.question)
        return Prompt(
            prefix=encoding.ids[: images[0]],
            suffix=encoding.ids[images[0] + 1 :],
            question_mask=np.delete(mask, images[0]),
        )


def _tokens_within(encoding: Encoding, spans: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return (tokens,) bool: those that share a character with one of the spans."""
    mask = np.zeros(len(encoding.ids), np.bool_)
    for index, ((start, end), sequence) in enumerate(zip(encoding.offsets, encoding.sequence_ids, strict=True)):
        # bytes of a character that is split over tokens have empty offsets but for the last
        end = max(end, start + 1)
        mask[index] = sequence is not None and any(start < last and end > first for first, last in spans)
    return mask

"""Generated token ids back to text, piece by piece."""

import re

from ptp.runtime.tokenizer import BundleTokenizer

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte-fallback token of SentencePiece vocabularies (Llama, Mistral)."""

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not a character, or not one yet."""


class TextStream:
    """Turns token ids into text as they come: whole characters only, special tokens left out.

    The pieces and the rest that `finish` returns join to the tokenizer's own decoding of all ids. Only the last piece
    that was shown is decoded again, together with what came after it: where a piece ends, a character does, and
    decoders look no further back. `tokenizers.decoders.DecodeStream` fails on byte tokens that make no character.

    Args:
        tokenizer: the tokenizer whose decoder is used.
    """

    def __init__(self, tokenizer: BundleTokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # of the last piece; empty before the first
        self._waiting: list[int] = []

    def push(self, token: int) -> str:
        """Return the text that this token completes, often none."""
        if token in self._tokenizer.special:
            return ""
        self._waiting.append(token)
        # one bad byte spoils its whole run of byte tokens in the decoder, so a run is decoded when it has ended
        if BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or ""):
            return ""
        text = self._tokenizer.decode(self._shown + self._waiting)
        return "" if text.endswith(REPLACEMENT) else self._emit(text)

    def finish(self) -> str:
        """Return what is left; bytes that make no character become U+FFFD."""
        return self._emit(self._tokenizer.decode(self._shown + self._waiting))

    def _emit(self, text: str) -> str:
        piece = text[len(self._tokenizer.decode(self._shown)) :]
        if piece:
            self._shown = self._waiting
        if self._shown:  # before the first piece, a space that is not shown may be the one that decoders strip
            self._waiting = []
        return piece

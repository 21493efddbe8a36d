"""Generated token ids back to text, piece by piece."""

import re

from tokenizers import Tokenizer

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
"""A byte-fallback token of SentencePiece vocabularies (Llama, Mistral)."""

REPLACEMENT = "\ufffd"
"""What a decoder writes for bytes that are not a character, or not one yet."""


class TextStream:
    """Turns token ids into text as they come: whole characters only, special tokens left out.

    The pieces and the rest that `finish` returns join to the tokenizer's own decoding of all ids. All ids are decoded
    at every step (0.1 ms for a thousand): `tokenizers.decoders.DecodeStream` decodes fewer, and fails on byte tokens
    that make no character.

    Args:
        tokenizer: the tokenizer whose decoder is used.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        self._ids: list[int] = []
        self._emitted = ""

    def push(self, token: int) -> str:
        """Return the text that this token completes, often none."""
        if token in self._special:
            return ""
        self._ids.append(token)
        # one bad byte spoils its whole run of byte tokens in the decoder, so a run is decoded when it has ended
        if BYTE_TOKEN.fullmatch(self._tokenizer.id_to_token(token) or ""):
            return ""
        text = self._decode()
        return "" if text.endswith(REPLACEMENT) else self._emit(text)

    def finish(self) -> str:
        """Return what is left; bytes that make no character become U+FFFD."""
        return self._emit(self._decode())

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._ids)
        return text

    def _emit(self, text: str) -> str:
        piece = text[len(self._emitted) :]
        self._emitted = text
        return piece

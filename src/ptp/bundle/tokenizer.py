"""Which `tokenizer.json` a bundle may hold: the parts of the format whose work is bounded, and no others.

The library `tokenizers` believes its file. Some parts of the format make it end the thread (`Precompiled`), take
exponential time (regular expressions) or multiply a text (`Replace`), so the file is read here before the library sees
it. What a prompt can grow to is the product of the parts' `growth`: most bytes that come out for a byte that goes in.
"""

from collections.abc import Callable
from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from ptp.bundle.tokenizer_parts import (
    MAX_TOKENS,
    ByteLevel,
    Content,
    Decoder,
    DecoderSequence,
    Id,
    Normalizer,
    NormalizerSequence,
    Part,
    PostProcessorSequence,
    PreTokenizer,
    PreTokenizerSequence,
    Replace,
    Template,
)

TOKENIZER = "tokenizer.json"

MAX_TOKEN_BYTES = 1 << 12
MAX_ADDED = 1 << 16
MAX_VALUES = 1 << 22
"""Commas and opening brackets of the file: what bounds the memory that reading it takes."""

MAX_GROWTH = 64
MAX_TEXT_BYTES = 1 << 22
"""What a prompt may become before it is cut into tokens; each byte can be a token of about 200 bytes."""

Unused = Annotated[Any, AfterValidator(lambda _: None)]
"""A setting that counts for nothing here; the library does not get it."""


class AddedToken(Part):
    """A token that is found before the text is cut into words."""

    id: Id
    content: Content
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class Bpe(Part):
    """Byte-pair encoding; the library checks the merges."""

    type: Literal["BPE"]
    dropout: Annotated[float, Field(ge=0, le=0)] | None = None
    unk_token: Content | None = None  # the library copies it for each character that it stands for
    continuing_subword_prefix: Literal[""] | None = None
    end_of_word_suffix: Literal[""] | None = None
    fuse_unk: bool | None = None
    byte_fallback: bool | None = None
    ignore_merges: bool | None = None
    vocab: dict[str, Id] = Field(max_length=MAX_TOKENS)
    merges: list[Any]

    @model_validator(mode="after")
    def _has_ids_and_tokens_for_each_other(self) -> "Bpe":
        if len(set(self.vocab.values())) < len(self.vocab):
            raise ValueError("two tokens of vocab have the same id")
        longest = max((len(token.encode()) for token in self.vocab), default=0)
        if longest > MAX_TOKEN_BYTES:
            raise ValueError(f"a token of vocab has {longest} bytes, at most {MAX_TOKEN_BYTES} are supported")
        if self.unk_token is not None and self.unk_token not in self.vocab:
            raise ValueError("unk_token is not in vocab")
        return self


class TokenizerFile(Part):
    """A whole `tokenizer.json`."""

    version: Literal["1.0"]
    truncation: Unused = None
    padding: Unused = None
    added_tokens: tuple[AddedToken, ...] = Field(max_length=MAX_ADDED)
    normalizer: Annotated[Normalizer | NormalizerSequence, Field(discriminator="type")] | None = None
    pre_tokenizer: Annotated[PreTokenizer | PreTokenizerSequence, Field(discriminator="type")] | None = None
    post_processor: Annotated[ByteLevel | Template | PostProcessorSequence, Field(discriminator="type")] | None = None
    decoder: Annotated[Decoder | DecoderSequence, Field(discriminator="type")] | None = None
    model: Bpe

    @property
    def growth(self) -> int:
        """Most bytes that a byte of a prompt becomes before it is cut into tokens."""
        return prod(part.growth for part in (self.normalizer, self.pre_tokenizer) if part)

    @model_validator(mode="after")
    def _grows_little(self) -> "TokenizerFile":
        decoded = self.decoder.growth if isinstance(self.decoder, Replace | DecoderSequence) else 1
        for what, growth in (("normalizer and pre_tokenizer", self.growth), ("decoder", decoded)):
            if growth > MAX_GROWTH:
                raise ValueError(f"{what} can make a text {growth} times as long, at most {MAX_GROWTH} is supported")
        total = sum(len(token.content.encode()) for token in self.added_tokens) * self.growth
        if total > MAX_TEXT_BYTES:
            raise ValueError(f"added_tokens can have {total} bytes, at most {MAX_TEXT_BYTES} are supported")
        return self

    @model_validator(mode="after")
    def _says_the_ids_that_the_library_gives(self) -> "TokenizerFile":
        """The library numbers what is added by its place in the list, whatever id it has there."""
        vocab, largest, taken = self.model.vocab, -1, set(self.model.vocab.values())
        seen: set[str] = set()
        for token in self.added_tokens:
            if token.content in seen:
                raise ValueError(f"added_tokens has {token.content[:80]!r} twice")
            seen.add(token.content)
            expected = vocab.get(token.content)
            if expected is None:
                expected = max(largest + 1, len(vocab))
                if expected in taken:
                    raise ValueError("added_tokens and the vocabulary share an id")
            if (token.lstrip or token.rstrip) and (token.content.isspace() or (token.normalized and self.normalizer)):
                # each of many neighbours would look through the spaces behind all of them
                raise ValueError(f"added_tokens: lstrip or rstrip of {token.content[:80]!r} is not supported")
            if token.id != expected:
                raise ValueError(f"added_tokens gives {token.content[:80]!r} the id {token.id}, not {expected}")
            largest = max(largest, token.id)
        return self

    @property
    def num_ids(self) -> int:
        """One more than the largest id."""
        return max([*self.model.vocab.values(), *(token.id for token in self.added_tokens)], default=-1) + 1

    @model_validator(mode="after")
    def _adds_tokens_that_there_are(self) -> "TokenizerFile":
        processors = self.post_processor.processors if isinstance(self.post_processor, PostProcessorSequence) else ()
        ids = {*self.model.vocab.values(), *(token.id for token in self.added_tokens)}
        for part in (self.post_processor, *processors):
            for special in part.special_tokens.values() if isinstance(part, Template) else ():
                if missing := sorted(set(special.ids) - ids):
                    raise ValueError(f"post_processor adds the id {missing[0]}, which is no token")
        return self

    def check_normalized(self, normalize: Callable[[str], str]) -> None:
        """Refuse added tokens that are the same once normalized: which of them the library finds is left to chance.

        Args:
            normalize: the library's normalizer.

        Raises:
            ValueError: two are the same.
        """
        seen: set[str] = set()
        for token in self.added_tokens:
            if token.normalized:
                text = normalize(token.content)
                if text in seen:
                    raise ValueError(f"added_tokens has {text[:80]!r} twice once normalized")
                seen.add(text)


def read_tokenizer(text: str | bytes) -> TokenizerFile:
    """Return what a `tokenizer.json` says.

    Args:
        text: the file's content. The library is given `model_dump_json()` instead, which is what was looked at.

    Raises:
        ValueError: one line: what is not JSON, not as the schema says, or could take too much work.
    """
    data = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if (values := sum(data.count(mark) for mark in b",[{")) > MAX_VALUES:
        raise ValueError(f"it has about {values} values, at most {MAX_VALUES} are supported")
    try:
        return TokenizerFile.model_validate_json(data)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where, what = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        raise ValueError(f"{where[:120]}: {what[:300]}" if where else what[:300]) from error

"""The parts of a `tokenizer.json` that a bundle may have: each does work that grows with the text, and no faster.

The classes below are the schema of what stands around the model: normalizers, pre-tokenizers, post-processors and
decoders. Those that are not here can end the thread (`Precompiled`), or were never needed.
"""

from math import prod
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from ptp.bundle.manifest import Model
from ptp.bundle.patterns import takes_linear_time

MAX_TOKENS = 1 << 20
MAX_PARTS = 16
MAX_CONTENT_BYTES = 256
"""Of an added token, and of a text that a part looks for or writes."""


def _is_none(value: object) -> bool:
    return value is None


def _is_short(text: str) -> str:
    if not 0 < (size := len(text.encode())) <= MAX_CONTENT_BYTES:
        raise ValueError(f"has {size} bytes, not 1 to {MAX_CONTENT_BYTES}")
    return text


def _is_linear(pattern: str) -> str:
    if not takes_linear_time(pattern):
        raise ValueError(f"{pattern[:80]!r} is not a regular expression that is known to take linear time")
    return pattern


Content = Annotated[str, AfterValidator(_is_short)]
Character = Annotated[str, Field(min_length=1, max_length=1)]
Id = Annotated[int, Field(ge=0, lt=MAX_TOKENS)]


class Part(Model):
    """A part of a tokenizer."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @property
    def growth(self) -> int:
        """Most bytes that come out for a byte that goes in."""
        return 1


class Pattern(Part):
    """A text, or a regular expression that takes linear time and matches no empty text."""

    String: Content | None = Field(default=None, exclude_if=_is_none)
    Regex: Annotated[str, AfterValidator(_is_linear)] | None = Field(default=None, exclude_if=_is_none)

    @property
    def shortest(self) -> int:
        """Bytes of the shortest match."""
        return 1 if self.String is None else len(self.String.encode())

    @model_validator(mode="after")
    def _is_one(self) -> "Pattern":
        if (self.String is None) == (self.Regex is None):
            raise ValueError("is not either a String or a Regex")
        return self


class Unicode(Part):
    """A normalization form, or another change of characters; how much a text can grow is Unicode's (UAX #15)."""

    type: Literal["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"]

    @property
    def growth(self) -> int:
        """See `Part`."""
        return {"NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2}.get(self.type, 1)


class StripSpaces(Part):
    """Removes spaces at the ends."""

    type: Literal["Strip"]
    strip_left: bool
    strip_right: bool


class Prepend(Part):
    """Puts a text before each piece between two added tokens."""

    type: Literal["Prepend"]
    prepend: Content

    @property
    def growth(self) -> int:
        """See `Part`."""
        return 1 + len(self.prepend.encode())


class Replace(Part):
    """Replaces each match of a pattern; a normalizer or a decoder."""

    type: Literal["Replace"]
    pattern: Pattern
    content: Content | Literal[""]

    @property
    def growth(self) -> int:
        """See `Part`."""
        return max(1, -(-len(self.content.encode()) // self.pattern.shortest))


class ByteLevel(Part):
    """GPT-2's bytes as characters; a pre-tokenizer, post-processor or decoder."""

    type: Literal["ByteLevel"]
    add_prefix_space: bool
    trim_offsets: bool
    use_regex: bool = True

    @property
    def growth(self) -> int:
        """See `Part`."""
        return 4 if self.add_prefix_space else 2


class Metaspace(Part):
    """SentencePiece's ▁ for spaces; a pre-tokenizer or a decoder."""

    type: Literal["Metaspace"]
    replacement: Character
    prepend_scheme: Literal["always", "first", "never"] = "always"
    split: bool = True
    add_prefix_space: bool | None = Field(default=None, exclude_if=_is_none)  # of older files
    str_rep: Character | None = Field(default=None, exclude_if=_is_none)

    @property
    def growth(self) -> int:
        """See `Part`."""
        return len(self.replacement.encode()) + (self.prepend_scheme != "never")


class Split(Part):
    """Cuts at each match of a pattern."""

    type: Literal["Split"]
    pattern: Pattern
    behavior: Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"]
    invert: bool


class Digits(Part):
    """Cuts between digits and others."""

    type: Literal["Digits"]
    individual_digits: bool


class Punctuation(Part):
    """Cuts at punctuation."""

    type: Literal["Punctuation"]
    behavior: Literal["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"] = "Isolated"


class Whitespace(Part):
    """Cuts at spaces."""

    type: Literal["Whitespace", "WhitespaceSplit"]


class Joined(Part):
    """`ByteFallback` makes bytes of byte tokens, `Fuse` one text of all."""

    type: Literal["ByteFallback", "Fuse"]


class Strip(Part):
    """Removes a character from the beginning of each token; one may begin an answer, so there is no `stop`."""

    type: Literal["Strip"]
    content: Character
    start: Annotated[int, Field(ge=0, le=1)]
    stop: Annotated[int, Field(ge=0, le=0)]


class Tagged(Part):
    """Says which sequence or special token a piece of a template is."""

    id: Content
    type_id: Annotated[int, Field(ge=0, lt=1 << 32)]


class Piece(Part):
    """The text's place in a template, or a special token's."""

    Sequence: Tagged | None = Field(default=None, exclude_if=_is_none)
    SpecialToken: Tagged | None = Field(default=None, exclude_if=_is_none)

    @model_validator(mode="after")
    def _is_one(self) -> "Piece":
        if (self.Sequence is None) == (self.SpecialToken is None):
            raise ValueError("is not either a Sequence or a SpecialToken")
        return self


class Special(Part):
    """The ids of a special token of a template."""

    id: str
    ids: tuple[Id, ...] = Field(min_length=1, max_length=MAX_PARTS)
    tokens: tuple[Content, ...] = Field(max_length=MAX_PARTS)

    @model_validator(mode="after")
    def _has_a_token_for_each_id(self) -> "Special":
        if len(self.tokens) != len(self.ids):
            raise ValueError("tokens and ids differ in number")
        return self


class Template(Part):
    """Puts special tokens around the text."""

    type: Literal["TemplateProcessing"]
    single: tuple[Piece, ...] = Field(max_length=MAX_PARTS)
    pair: Annotated[Any, AfterValidator(lambda _: ())]
    special_tokens: Annotated[dict[str, Special], Field(max_length=MAX_PARTS)]

    @model_validator(mode="after")
    def _holds_the_text_once(self) -> "Template":
        if [piece.Sequence.id for piece in self.single if piece.Sequence] != ["A"]:
            raise ValueError("single does not hold the text once")
        for piece in self.single:
            if piece.SpecialToken and piece.SpecialToken.id not in self.special_tokens:
                raise ValueError(f"{piece.SpecialToken.id[:80]!r} is not one of special_tokens")
        return self


Normalizer = Unicode | StripSpaces | Prepend | Replace


class NormalizerSequence(Part):
    """Normalizers, one after the other."""

    type: Literal["Sequence"]
    normalizers: tuple[Annotated[Normalizer, Field(discriminator="type")], ...] = Field(max_length=MAX_PARTS)

    @property
    def growth(self) -> int:
        """See `Part`."""
        return prod(part.growth for part in self.normalizers)


PreTokenizer = ByteLevel | Metaspace | Split | Digits | Punctuation | Whitespace


class PreTokenizerSequence(Part):
    """Pre-tokenizers, one after the other."""

    type: Literal["Sequence"]
    pretokenizers: tuple[Annotated[PreTokenizer, Field(discriminator="type")], ...] = Field(max_length=MAX_PARTS)

    @property
    def growth(self) -> int:
        """See `Part`."""
        return prod(part.growth for part in self.pretokenizers)


class PostProcessorSequence(Part):
    """Post-processors, one after the other."""

    type: Literal["Sequence"]
    processors: tuple[Annotated[ByteLevel | Template, Field(discriminator="type")], ...] = Field(max_length=MAX_PARTS)


Decoder = ByteLevel | Metaspace | Replace | Joined | Strip


class DecoderSequence(Part):
    """Decoders, one after the other."""

    type: Literal["Sequence"]
    decoders: tuple[Annotated[Decoder, Field(discriminator="type")], ...] = Field(max_length=MAX_PARTS)

    @property
    def growth(self) -> int:
        """See `Part`."""
        return prod(part.growth for part in self.decoders if isinstance(part, Replace))

    @model_validator(mode="after")
    def _replaces_in_tokens(self) -> "DecoderSequence":
        """What was shown of an answer must not change with its next token."""
        joined = False
        for part in self.decoders:
            if joined and not isinstance(part, Strip | Joined):
                raise ValueError(f"{part.type} behind a part that joins the tokens is not supported")
            joined = joined or part.type in ("Fuse", "ByteLevel")
        return self

"""Files like those that a stranger's bundle can bring: the demo's `tokenizer.json` with something changed."""

import json
from typing import Any

from ptp.demo import CHECKPOINT

DEMO: dict[str, Any] = json.loads((CHECKPOINT / "tokenizer.json").read_text())
SIZE = len(DEMO["model"]["vocab"])

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CASED = "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]%s[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]%s"
PATTERNS = {
    "llama 3": LLAMA3,
    "qwen 2": LLAMA3.replace("{1,3}", ""),
    "gpt 2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "possessive": r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+",
    "marks": r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": f"{_CASED % ('*', '+')}|{_CASED % ('+', '*')}"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "deepseek": r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "digits": r"\p{N}{1,3}",
    "ideographs": "[一-龥぀-ゟ゠-ヿ]+",
    "spaces": " {2,}",
}
SLOW_PATTERNS = (
    *("(a+)+$", r"\s+$", "(a|a)*b", "(?:a+)+", "a+a+", "a*a*b", "a{1,9}a{1,9}b", "a{2}+", "a{2}{3}", ".*b"),
    *("a*", "", "a|", "|a", "a||b", r"(a)\1", "(?=a)b", r"x(?!y)", r"\s*[\r\n]+|x", "[[:alpha:]]+", "[]", "(?i:a"),
    *("a+?b", "(?<=a+)b", r"\Ga", "a{999}b", "b" * 5000),
)
"""Expressions that could take more than linear time, match an empty text, or are none."""


def split(pattern: dict[str, str], **change: Any) -> dict[str, Any]:
    return {"pre_tokenizer": {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False} | change}


def normalizers(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": parts}}


def replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def decoders(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"decoder": {"type": "Sequence", "decoders": parts}}


def model(**change: Any) -> dict[str, Any]:
    return {"model": DEMO["model"] | change}


def vocab(**change: Any) -> dict[str, Any]:
    return model(vocab=DEMO["model"]["vocab"] | change)


def added(*contents: str, **change: Any) -> dict[str, Any]:
    form = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    more = [{"id": SIZE + i, "content": content} | form | change for i, content in enumerate(contents)]
    return {"added_tokens": [*DEMO["added_tokens"], *more]}


def template(**change: Any) -> dict[str, Any]:
    form = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    return {"post_processor": form | change}


PREPEND = {"type": "Prepend", "prepend": "▁"}
METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

ACCEPTED: dict[str, dict[str, Any]] = {
    "as it is": {},
    "llama's normalizers": normalizers(PREPEND, replace(" ", "▁")) | {"pre_tokenizer": None},
    "a text is deleted": normalizers(replace("at", "")),
    "grows 64 times": normalizers(replace("a", "b" * 32)),
    "NFC": {"normalizer": {"type": "NFC"}},
    "NFKC, lower case": normalizers({"type": "NFKC"}, {"type": "Lowercase"}),
    "metaspace": {"pre_tokenizer": METASPACE, "decoder": METASPACE},
    "metaspace of older files": {
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True, "str_rep": "▁"}
    },
    "no pre-tokenizer": {"pre_tokenizer": None},
    "an empty sequence": {"pre_tokenizer": {"type": "Sequence", "pretokenizers": []}},
    "digits, punctuation": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Punctuation", "behavior": "Contiguous"},
                {"type": "Digits", "individual_digits": True},
                BYTE_LEVEL,
            ],
        }
    },
    "split at a text": split({"String": " "}, behavior="MergedWithPrevious"),
    "llama's decoder": decoders(replace("▁", " "), {"type": "ByteFallback"}, {"type": "Fuse"}, STRIP),
    "no decoder": {"decoder": None},
    "template": template(),
    "pair is not looked at": template(pair=7),
    "truncation and padding are not looked at": {"truncation": {"max_length": -1}, "padding": 10**12},
    "an added token": added("<x>", "the cat"),
    "normalized and single words": added("Xy", normalized=True, single_word=True),
    "stripping": added("<x>", lstrip=True, rstrip=True),
    "a token of spaces": added("  ", "\n"),
    "unk_token": model(unk_token="<pad>", fuse_unk=True, byte_fallback=True, ignore_merges=None) | {"normalizer": None},
    "brackets in a token": vocab(**{'"[{' * 40: SIZE, "\\": SIZE + 1}),
    "dropout of 0": model(dropout=0, continuing_subword_prefix="", end_of_word_suffix=None),
    "merges in the older form": model(merges=[" ".join(pair) for pair in DEMO["model"]["merges"]]),
    **{f"pattern of {name}": split({"Regex": pattern}) for name, pattern in PATTERNS.items()},
}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "grows": (normalizers(*[replace("a", "a" * 60)] * 6), "can make a text 93312000000 times as long, at most 64"),
    "grows with the pre-tokenizer": (normalizers(replace("a", "b" * 33)), "can make a text 66 times as long"),
    "prepends much": (normalizers(*[{"type": "Prepend", "prepend": "x" * 9}] * 2), "can make a text 200 times"),
    "prepends nothing": (normalizers({"type": "Prepend", "prepend": ""}), "has 0 bytes, not 1 to 256"),
    "prepends megabytes": (normalizers({"type": "Prepend", "prepend": "x" * (1 << 20)}), "has 1048576 bytes"),
    "replaces nothing": (normalizers(replace("", "x")), "has 0 bytes, not 1 to 256"),
    "grows by a regular expression": (
        normalizers({"type": "Replace", "pattern": {"Regex": "a"}, "content": "b" * 65}),
        "can make a text 130 times as long",
    ),
    "panics": ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}, "'Precompiled'"),
    "a sequence in a sequence": (normalizers({"type": "Sequence", "normalizers": []}), "'Sequence'"),
    "many normalizers": (normalizers(*[{"type": "NFC"}] * 17), "at most 16 items"),
    "split at nothing": (split({"String": ""}), "has 0 bytes, not 1 to 256"),
    "split twice": (split({"String": "a", "Regex": "a"}), "is not either a String or a Regex"),
    "splits words of lengths": ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "'FixedLength'"),
    "metaspace of two characters": ({"pre_tokenizer": METASPACE | {"replacement": "▁▁"}}, "at most 1 character"),
    "decoder grows": (decoders(*[replace("a", "a" * 60)] * 2), "decoder can make a text 3600 times as long"),
    "decoder panics": (decoders(STRIP | {"stop": 1}), "less than or equal to 0"),
    "decoder strips much": (decoders(STRIP | {"start": 1 << 40}), "less than or equal to 1"),
    "decoder changes what was shown": (decoders({"type": "Fuse"}, replace("ab", "c")), "behind a part that joins"),
    "template without a text": (template(single=[]), "does not hold the text once"),
    "template with two texts": (template(single=[{"Sequence": {"id": "A", "type_id": 0}}] * 2), "the text once"),
    "template with a second text": (template(single=[{"Sequence": {"id": "B", "type_id": 0}}]), "the text once"),
    "template names nothing": (template(special_tokens={}), "'<s>' is not one of special_tokens"),
    "template of many tokens": (
        template(special_tokens={"<s>": {"id": "<s>", "ids": [1] * 17, "tokens": ["<s>"] * 17}}),
        "at most 16 items",
    ),
    "template of an id without a token": (
        template(special_tokens={"<s>": {"id": "<s>", "ids": [SIZE], "tokens": ["<s>"]}}),
        f"post_processor adds the id {SIZE}, which is no token",
    ),
    "template of a large id": (
        template(special_tokens={"<s>": {"id": "<s>", "ids": [1 << 20], "tokens": ["<s>"]}}),
        "less than 1048576",
    ),
    "added token is empty": (added(""), "has 0 bytes, not 1 to 256"),
    "added token is long": (added("x" * 257), "has 257 bytes, not 1 to 256"),
    "added token twice": (added("<x>", "<x>"), "added_tokens has '<x>' twice"),
    "added token with a gap": (added("<x>", id=5000), f"gives '<x>' the id 5000, not {SIZE}"),
    "added token with an id of another": (added("<x>", id=7), f"gives '<x>' the id 7, not {SIZE}"),
    "added token with an id of the vocabulary": (
        vocab(zz=SIZE + 1) | added("<y>", "<x>", id=SIZE + 1),
        "added_tokens and the vocabulary share an id",
    ),
    "added spaces that strip": (added(" \t", rstrip=True), "lstrip or rstrip of ' \\t' is not supported"),
    "added token that may become spaces": (
        normalizers(replace("x", " ")) | added("x", lstrip=True, normalized=True),
        "lstrip or rstrip of 'x' is not supported",
    ),
    "added tokens are normalized alike": (
        normalizers(replace("A", "a")) | added("Ab", "ab", normalized=True),
        "added_tokens has 'ab' twice once normalized",
    ),
    "added tokens are long": (
        added(*(f"{i:0256}" for i in range(8200))),
        "added_tokens can have 4198438 bytes, at most 4194304",
    ),
    "many added tokens": (added(*map(str, range(1 << 16))), "at most 65536 items"),
    "random": (model(dropout=0.5), "less than or equal to 0"),
    "prefix": (model(continuing_subword_prefix="##"), "should be ''"),
    "unk_token is no token": (model(unk_token="nope"), "unk_token is not in vocab"),
    "unk_token is long": (model(unk_token="z" * 257), "has 257 bytes, not 1 to 256"),
    "template of a long token": (
        template(special_tokens={"<s>": {"id": "<s>", "ids": [1], "tokens": ["s" * 257]}}),
        "has 257 bytes, not 1 to 256",
    ),
    "large id": (vocab(zz=2**32), "less than 1048576"),
    "negative id": (vocab(zz=-1), "greater than or equal to 0"),
    "two tokens of an id": (vocab(zz=5), "two tokens of vocab have the same id"),
    "a long token": (vocab(**{"z" * 4097: SIZE}), "a token of vocab has 4097 bytes, at most 4096"),
    "merge is no token": (model(merges=[["q", "zzzz"]]), "Token `zzzz` out of vocabulary"),
    "merge is no pair": (model(merges=[["q", "u", "u"]]), ""),
    "another model": ({"model": {"type": "WordPiece", "vocab": {}}}, "model.type: Input should be 'BPE'"),
    "another version": ({"version": "2.0"}, "version: Input should be '1.0'"),
    "what is not known": ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
    "many values": ({"truncation": [[]] * (1 << 21)}, "values, at most 4194304 are supported"),
    **{
        f"pattern {pattern[:20]!r}": (split({"Regex": pattern}), "is not a regular expression that is known to take")
        for pattern in SLOW_PATTERNS
    },
}


def written(change: dict[str, Any]) -> str:
    """Return the text of a changed file."""
    return json.dumps(DEMO | change)

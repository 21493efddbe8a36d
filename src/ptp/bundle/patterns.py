r"""Which regular expressions a tokenizer may have: those whose time grows with the text, and no faster.

The library `tokenizers` gives an expression to a backtracking engine, for which `(a+)+$` takes exponential time and
`\s+$` quadratic time. An expression is used if it cannot backtrack: alternatives of sets of characters, in which
nothing can fail any more behind the first unbounded repetition. Well-known parts of other forms are used, too.
"""

import re
from math import prod

MAX_PATTERN = 4096
"""Most characters of a regular expression."""

MAX_WAYS = 64
"""Most ways in which the bounded repetitions of one alternative can match, and the largest bound of a repetition."""

KNOWN_ENDS = (r"\s*[\r\n]+|\s+(?!\S)|\s+", r"\s+(?!\S)|\s+")
"""How the expressions of GPT-2, Llama 3 and their relatives end: what one alternative gives back, another consumes."""

_SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
)
KNOWN_BEGINNINGS = (f"{_WORDS[0]}{_SUFFIX}|{_WORDS[1]}{_SUFFIX}", "|".join(_WORDS))
"""How those of GPT-4o, Llama 4 and Mistral's Tekken begin, for the same reason."""

_ESCAPE = r"\\(?:[pP]\{\^?[A-Za-z_]+\}|[sSdDwWrntfv]|[^\w\s])"
_SET = rf"(?:{_ESCAPE}|\[\^?(?:{_ESCAPE}|[^\[\]\\])+\]|[^\\\[\](){{}}|.^$*+?])"
_ITEM = re.compile(
    rf"(?P<group>\(\?i?:{_SET}+(?:\|{_SET}+)*\)(?P<optional>\?\+?)?)"
    rf"|{_SET}(?:(?P<sign>[?*+])\+?|\{{(?P<low>\d{{1,3}})(?P<comma>,(?P<high>\d{{1,3}})?)?\}}(?![?*+{{]))?"
)


def takes_linear_time(pattern: str) -> bool:
    """Return whether the time that a regular expression takes is known to grow with the text and no faster."""
    if not 0 < len(pattern) <= MAX_PATTERN:
        return False
    rest = f"|{pattern}|"
    for known in KNOWN_BEGINNINGS:
        if rest.startswith(f"|{known}|"):
            rest = rest[len(known) + 1 :]
    for known in KNOWN_ENDS:
        if rest.endswith(f"|{known}|"):
            rest = rest[: -len(known) - 1]
            break
    at = 1
    while at < len(rest):
        end = _end_of_alternative(rest, at)
        if end is None or rest[end] != "|":
            return False
        at = end + 1
    return True


def _end_of_alternative(pattern: str, at: int) -> int | None:
    """Return where the alternative ends that begins at a place of an expression; None if it could backtrack."""
    ways, unbounded, consumes = [1], False, False
    while item := _ITEM.match(pattern, at):
        at = item.end()
        high: int | None
        if item["group"]:
            low, high = 0 if item["optional"] else 1, 1
            ways.append(item["group"].count("|") + 1)
        elif item["low"]:
            low = int(item["low"])
            high = int(item["high"] or 0) or None if item["comma"] else low
        else:
            low = 1 if item["sign"] in (None, "+") else 0
            high = None if item["sign"] in ("*", "+") else 1
        if unbounded and low > 0:
            return None
        if not unbounded:
            if max(low, high or 0) > MAX_WAYS or (high is not None and high < low):
                return None
            ways.append((low if high is None else high) - low + 1)
        unbounded, consumes = unbounded or high is None, consumes or low > 0
    return at if consumes and prod(ways) <= MAX_WAYS else None

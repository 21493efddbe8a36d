"""Render a chat template for one image and one question, and find the question in the result."""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from functools import reduce, wraps
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from ptp.errors import PromptError

SENTINEL = "\uf8f1\uf8f2\uf8f1"
"""Stands for the question while its place is looked for: private-use characters, which no template contains."""

MAX_SOURCE = 1 << 16
MAX_TEXT = 1 << 20
"""Characters of a template and of a prompt; real ones have thousands and, with the question, tens of thousands."""

STEP = 64
MAX_WORK = 1 << 24
"""Work that a rendering may do: a step is a call, an operator or an item of a loop, long operands count more."""

WIDE = re.compile(r"\d{4}|\*")
"""A width in a format that makes a long text of a short one."""

LOOP = "items of a loop"  # no template can name this filter
_work_left: ContextVar[int] = ContextVar("_work_left", default=MAX_WORK)


@dataclass(frozen=True, kw_only=True)
class Rendered:
    """A rendered prompt.

    Attributes:
        text: the prompt, image token included.
        question: where the user's question stands in it, (start, end) in characters; more than one if repeated.
    """

    text: str
    question: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A chat template in the dialect of transformers (`apply_chat_template`).

    The template comes with a checkpoint, so it runs in jinja's sandbox, with bounds on its length, on the work it
    does and on what it writes. What remains: the width in `'{:>999999999}'.format(1)`, values nested in each other, and
    comparisons and slices of long texts are not charged.

    Args:
        source: text of `chat_template.jinja`.
        special_tokens: names the template may use (`bos_token`, …) and their texts.

    Raises:
        PromptError: the template is not valid jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        if len(source) > MAX_SOURCE:
            raise PromptError(
                "the bundle's chat template is too long", got=len(source), expected=f"at most {MAX_SOURCE}"
            )
        environment = _Sandbox()
        _work_left.set(MAX_WORK)  # constants are computed while compiling
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
            got = str(error) or type(error).__name__
            raise PromptError("the bundle's chat template is not valid", got=got) from error
        self._special_tokens = special_tokens

    def render(self, question: str) -> Rendered:
        """Return the prompt of a user's message with one image and this question.

        Raises:
            PromptError: the template refuses the message or leaves the question out.
        """
        now = datetime.now()  # one time for both renderings
        parts = self._render(SENTINEL, now.strftime).split(SENTINEL)
        text = self._render(question, now.strftime)
        places = len(parts) - 1
        if not places:
            raise PromptError("the bundle's chat template leaves the question out", do="correct chat_template.jinja")
        # templates may trim the question, so its length is what the rest of the text leaves
        length, rest = divmod(len(text) - sum(map(len, parts)), places)
        spans, start = [], 0
        for part in parts[:-1]:
            start += len(part)
            spans.append((start, start + length))
            start += length
        expected = "".join(part + text[slice(*span)] for part, span in zip(parts, spans, strict=False)) + parts[-1]
        if rest or length <= 0 or expected != text:
            raise PromptError("the bundle's chat template changes with the question", got=repr(question[:80]))
        return Rendered(text=text, question=tuple(spans))

    def _render(self, question: str, strftime: Callable[[str], str]) -> str:
        content = [{"type": "image"}, {"type": "text", "text": question}]
        _work_left.set(MAX_WORK)
        try:
            pieces = self._template.generate(
                messages=[{"role": "user", "content": content}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                strftime_now=strftime,
                **self._special_tokens,
            )
            return _joined(pieces)
        except Exception as error:  # a stranger's template can raise anything
            got = str(error) or type(error).__name__  # MemoryError has no text
            raise PromptError("the bundle's chat template cannot be rendered", got=got) from error


def _spend(amount: int) -> None:
    left = _work_left.get() - amount
    _work_left.set(left)
    if left < 0:
        raise jinja2.TemplateError("it works too long or makes too large a value")


def _size(value: Any) -> int:
    if isinstance(value, int):
        return max(1, abs(value))
    return max(1, len(value)) if isinstance(value, str | list | tuple | dict | range) else 1


def _spend_on(*operands: Any) -> None:
    """Charge an operation whose result and time are at most the product of its operands' sizes."""
    _spend(max(STEP, math.prod(map(_size, operands))))


def _charged(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)  # with jinja's marks of what the filter is passed
    def call(*args: Any, **kwargs: Any) -> Any:
        _spend_on(*args, *kwargs.values())
        return function(*args, **kwargs)

    return call


def _items(iterable: Iterable[Any]) -> Iterator[Any]:
    for item in iterable:
        _spend(STEP)
        yield item


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, in which every operator, call, filter and turn of a loop is charged, constants too."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        del self.globals["lipsum"]  # makes text out of a number
        self.filters["tojson"] = _to_json
        self.filters = {name: _charged(function) for name, function in self.filters.items()}
        self.filters[LOOP] = pass_context(lambda _, iterable: _items(iterable))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Charging().visit(super()._parse(source, name, filename))
        return tree

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Return joined text, as a block or a macro makes it."""
        return _joined(pieces)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator."""
        if operator == "+":
            _spend(STEP + _size(left) + _size(right))
        elif operator == "%" and isinstance(left, str) and WIDE.search(left):
            raise jinja2.TemplateError(f"it formats with {left[:40]!r}")
        else:
            _spend_on(left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the result of a function, method or macro."""
        _spend_on(getattr(__obj, "__self__", None), *args, *kwargs.values())
        return super().call(__context, __obj, *args, **kwargs)


class _Charging(NodeTransformer):
    """Puts a template's loops and `~` where they can be charged."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        """Iterate through `_items`."""
        if node.recursive:
            raise jinja2.TemplateSyntaxError("recursive loops are not supported", node.lineno)
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, LOOP, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        """Write `a ~ b` as `a|string + b|string`."""
        self.generic_visit(node)
        texts = [nodes.Filter(x, "string", [], [], None, None, lineno=node.lineno) for x in node.nodes]
        return reduce(lambda left, right: nodes.Add(left, right, lineno=node.lineno), texts)  # type: ignore[arg-type, return-value]


def _joined(pieces: Iterable[str]) -> str:
    parts, length = [], 0
    for piece in pieces:
        parts.append(piece)
        length += len(piece)
        if length > MAX_TEXT:
            raise jinja2.TemplateError(f"it writes more than {MAX_TEXT} characters")
    return "".join(parts)


class _Generation(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text for training; here it is only its content."""

    tags = {"generation"}  # noqa: RUF012  jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the statements between the tags."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja's own filter escapes HTML characters
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)

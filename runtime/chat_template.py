"""Render a chat template for one image and one question, and find the question in the result."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ptp.errors import PromptError

SENTINEL = "\uf8f1\uf8f2\uf8f1"
"""Stands for the question while its place is looked for: private-use characters, which no template contains."""

MAX_SOURCE = 1 << 16
MAX_TEXT = 1 << 20
"""Characters of a template and of a prompt; real ones have thousands and, with the question, tens of thousands."""


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

    The template comes with a checkpoint, so it runs in jinja's sandbox, with bounds on its length, on what it
    multiplies and on what it writes. What remains is time: nested loops that write nothing are not bounded.

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
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, MemoryError, OverflowError) as error:
            raise PromptError("the bundle's chat template is not valid", got=error) from error
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
        try:
            pieces = self._template.generate(
                messages=[{"role": "user", "content": content}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                strftime_now=strftime,
                **self._special_tokens,
            )
            text = ""
            for piece in pieces:
                text += piece
                if len(text) > MAX_TEXT:
                    raise jinja2.TemplateError(f"more than {MAX_TEXT} characters")
            return text
        except Exception as error:  # a stranger's template can raise anything
            raise PromptError("the bundle's chat template cannot be rendered", got=error) from error


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with bounded arithmetic: an operator that is listed here is not folded when compiling either."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Return the result of an operator, or refuse operands that could make it large."""
        numbers = isinstance(left, int | float) and isinstance(right, int | float)
        if operator == "**" or not numbers or max(abs(left), abs(right)) > MAX_TEXT:
            raise SecurityError(f"{operator} is limited to numbers up to {MAX_TEXT}, and ** is not allowed")
        return super().call_binop(context, operator, left, right)


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

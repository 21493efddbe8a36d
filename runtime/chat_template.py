"""Render a chat template for one image and one question, and find the question in the result."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ptp.errors import PromptError

SENTINEL = "\uf8f1\uf8f2\uf8f1"
"""Stands for the question while its place is looked for: private-use characters, which no template contains."""


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

    The template comes with a checkpoint, so it runs in jinja's sandbox.

    Args:
        source: text of `chat_template.jinja`.
        special_tokens: names the template may use (`bos_token`, …) and their texts.

    Raises:
        PromptError: the template is not valid jinja.
    """

    def __init__(self, source: str, special_tokens: dict[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
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
            return self._template.render(
                messages=[{"role": "user", "content": content}],
                tools=None,
                documents=None,
                add_generation_prompt=True,
                strftime_now=strftime,
                **self._special_tokens,
            )
        except Exception as error:  # a stranger's template can raise anything
            raise PromptError("the bundle's chat template cannot be rendered", got=error) from error


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

"""Write a chat template down as plain text, so that no runtime has to run it."""

from collections.abc import Callable
from typing import Any, get_args

from ptp.bundle.manifest import ChatFormat, NextTurn, SystemPrompt, Trim
from ptp.chat import Chat, write_chat
from ptp.errors import CheckpointError, PromptError

QUESTION, ANSWER, SYSTEM, DATE = (f"\uf8f3{mark}\uf8f3" for mark in "\uf8f4\uf8f5\uf8f6\uf8f7")
"""Stand for texts while their places are looked for: private-use characters, which no template contains."""

TEXTS = (
    "What is in the picture?",
    "  spaces around \n",
    "a\n\nb",
    "猫はどこ? 😀",
    "{{ bos_token }}",
    "USER: x ASSISTANT:",
    "[INST] <s> &lt;",
)
"""Compared with the template's own text: what a template may trim, escape or treat as a word of its own."""

CLOCK = "{%- macro strftime_now(form) -%}" + DATE + "{%- endmacro -%}"
"""Stands before a template: what it takes for today's date would be the export's for ever."""

Render = Callable[[Chat], str]


def chat_format(processor: Any, source: str, name: str) -> ChatFormat:
    """Return a template's text around the image and the question, and around what may stand beside them.

    Args:
        processor: transformers' processor, which renders templates and has the image token.
        source: the template.
        name: of the checkpoint, for messages.

    Raises:
        CheckpointError: the template does not place one image and then the question, or writes the date.
    """
    render: Render = _Renderer(processor, source, name)
    form = _one_question(render, processor.image_token, name)
    form = form.model_copy(update={"system": _system(render, form, processor.image_token)})
    return form.model_copy(update={"next_turn": _next_turn(render, form, processor.image_token)})


def adds_special_tokens(form: ChatFormat, token: str, bos: str | None) -> bool:
    """Return whether the tokenizer is to add its special tokens: a text that begins with BOS must not get a second one.

    Args:
        form: of every prompt.
        token: stands for the image.
        bos: the text of the tokenizer's BOS token.
    """
    return not (bos and write_chat(Chat(question=QUESTION), form, token)[0].startswith(bos))


def _one_question(render: Render, token: str, name: str) -> ChatFormat:
    text = render(Chat(question=QUESTION))
    head, *rest = text.split(QUESTION)
    problem = None
    if text.count(token) != 1:
        problem = f"places {text.count(token) or 'no'} image{'s' * (text.count(token) > 1)}"
    elif not rest:
        problem = "leaves the question out"
    elif len(rest) > 1:
        problem = f"writes the question {len(rest)} times"
    elif token in rest[0]:
        problem = "places the image behind the question"
    elif DATE in text:
        problem = "writes the date"
    if problem:
        raise _refusal(name, problem)
    before_image, before_question = head.split(token)
    forms = [
        ChatFormat(trim=trim, before_image=before_image, before_question=before_question, after_question=rest[0])
        for trim in get_args(Trim)
    ]
    rendered = {question: render(Chat(question=question)) for question in TEXTS}
    for form in forms:
        if all(write_chat(Chat(question=x), form, token)[0] == text for x, text in rendered.items()):
            return form
    wrong = next(x for x, text in rendered.items() if write_chat(Chat(question=x), forms[0], token)[0] != text)
    raise _refusal(name, f"changes the question {wrong!r}")


def _system(render: Render, form: ChatFormat, token: str) -> SystemPrompt | None:
    """Return the text around a system prompt; None where the template has no such place."""
    try:
        before, found, after = render(Chat(question=QUESTION, system=SYSTEM)).partition(SYSTEM)
    except CheckpointError:
        return None
    before_image, image, _ = after.partition(token)
    if not found or not image:
        return None
    for trim in get_args(Trim):
        system = SystemPrompt(trim=trim, before_system=before, before_image=before_image)
        chats = [Chat(question=QUESTION, system=text) for text in TEXTS]
        if _agrees(render, form.model_copy(update={"system": system}), token, chats):
            return system
    return None


def _next_turn(render: Render, form: ChatFormat, token: str) -> NextTurn | None:
    """Return the text around an answer and the question after it; None where turns are not written alike."""
    try:
        text = render(Chat(question=QUESTION, history=((SYSTEM, ANSWER),)))
    except CheckpointError:
        return None
    before_answer, found, rest = text.partition(SYSTEM)[2].partition(ANSWER)
    before_question, again, _ = rest.partition(QUESTION)
    if not found or not again:
        return None
    systems = [None, *([SYSTEM] if form.system else [])]
    for trim in get_args(Trim):
        turn = NextTurn(trim=trim, before_answer=before_answer, before_question=before_question)
        chats = [
            Chat(question=QUESTION, system=system, history=((QUESTION, x), (x, ANSWER), (x, x))[:turns])
            for x in TEXTS
            for turns in (1, 3)
            for system in systems
        ]
        if _agrees(render, form.model_copy(update={"next_turn": turn}), token, chats):
            return turn
    return None


def _agrees(render: Render, form: ChatFormat, token: str, chats: list[Chat]) -> bool:
    """Return whether the template writes conversations as the form does."""
    try:
        return all(write_chat(chat, form, token)[0] == render(chat) for chat in chats)
    except (CheckpointError, PromptError):
        return False


class _Renderer:
    """Renders conversations with a checkpoint's own template; the same one once."""

    def __init__(self, processor: Any, source: str, name: str) -> None:
        self._processor = processor
        self._source = CLOCK + source
        self._name = name
        self._known: dict[Chat, str] = {}

    def __call__(self, chat: Chat) -> str:
        if chat not in self._known:
            try:
                self._known[chat] = self._processor.apply_chat_template(
                    _messages(chat), chat_template=self._source, add_generation_prompt=True
                )
            except Exception as error:  # a stranger's template can raise anything
                raise _refusal(self._name, "cannot be rendered", got=error) from error
        return self._known[chat]


def _messages(chat: Chat) -> list[dict[str, Any]]:
    """Return a conversation in transformers' form; the image stands before the first question."""
    turns = [turn for question, answer in chat.history for turn in (("user", question), ("assistant", answer))]
    turns.append(("user", chat.question))
    if chat.system is not None:
        turns.insert(0, ("system", chat.system))
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns
    ]
    messages[chat.system is not None]["content"].insert(0, {"type": "image"})
    return messages


def _refusal(name: str, problem: str, *, got: object = None) -> CheckpointError:
    return CheckpointError(
        f"the chat template of {name} {problem}",
        got=got,
        expected="one image and then the user's text, from content parts of type image and text",
        do="correct chat_template.jinja",
    )

"""Write a chat template down as plain text, for runtimes that do not render templates."""

from typing import Any

from ptp.bundle.manifest import SingleTurn

SENTINEL = "\uf8f3\uf8f4\uf8f3"
"""Stands for the question while its place is looked for: private-use characters, which no template contains."""

QUESTIONS = (
    "What is in the picture?",
    "  spaces around \n",
    "a\n\nb",
    "猫はどこ? 😀",
    "{{ bos_token }}",
    "USER: x ASSISTANT:",
)
"""Compared with the template's own text: what a template may trim, escape or treat as a word of its own."""

CLOCK = "strftime_now"
"""What a template calls to write the date, which would be the export's for ever."""


def single_turn(processor: Any) -> SingleTurn | None:
    """Return the template's text around the image and the question of one user message.

    Args:
        processor: transformers' processor, with the template and the image token.

    Returns:
        None where the template does not place one image and then the question as it is, or writes the date.
    """
    token = processor.image_token
    try:
        parts = _render(processor, SENTINEL).split(SENTINEL)
        rendered = {question: _render(processor, question) for question in QUESTIONS}
    except Exception:  # a stranger's template can raise anything; the Python runtime will say what
        return None
    if CLOCK in str(processor.chat_template) or len(parts) != 2 or token in parts[1] or parts[0].count(token) != 1:
        return None
    before_image, before_question = parts[0].split(token)
    if any(text != f"{parts[0]}{question}{parts[1]}" for question, text in rendered.items()):
        return None
    return SingleTurn(before_image=before_image, before_question=before_question, after_question=parts[1])


def _render(processor: Any, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return text

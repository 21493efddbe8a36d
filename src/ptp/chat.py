"""The text of a conversation about one image, as the model's chat template writes it."""

from dataclasses import dataclass

from ptp.bundle.manifest import ChatFormat, Trim
from ptp.errors import PromptError


@dataclass(frozen=True, kw_only=True)
class Chat:
    """A conversation about one image that ends with a question.

    Attributes:
        question: what is asked now.
        system: the system prompt; None for the template's own, if it has one.
        history: earlier questions about the image and their answers.
    """

    question: str
    system: str | None = None
    history: tuple[tuple[str, str], ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text in it that a user wrote, or a model."""
        system = () if self.system is None else (self.system,)
        return (*system, *(text for turn in self.history for text in turn), self.question)


def write_chat(chat: Chat, form: ChatFormat, image_token: str) -> tuple[str, tuple[int, int]]:
    """Return the prompt's text, image token included, and where the question stands in it: (start, end) in characters.

    Raises:
        PromptError: the chat template has no place for a system prompt or for earlier turns.
    """
    before_image = form.before_image
    if chat.system is not None:
        if form.system is None:
            raise PromptError("this model's chat template takes no system prompt", do="leave it out")
        system = trimmed(chat.system, form.system.trim)
        before_image = f"{form.system.before_system}{system}{form.system.before_image}"
    text = f"{before_image}{image_token}{form.before_question}"
    for question, answer in chat.history:
        if form.next_turn is None:
            raise PromptError("this model's chat template takes one question", do="leave the earlier turns out")
        text += trimmed(question, form.trim) + form.next_turn.before_answer
        text += trimmed(answer, form.next_turn.trim) + form.next_turn.before_question
    start, question = len(text), trimmed(chat.question, form.trim)
    return f"{text}{question}{form.after_question}", (start, start + len(question))


def trimmed(text: str, trim: Trim) -> str:
    """Return a text without the white space that the chat template removes from it."""
    return {"none": text, "both": text.strip(), "end": text.rstrip()}[trim]

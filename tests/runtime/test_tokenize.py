"""Prompts equal transformers' `LlavaNextProcessor.apply_chat_template`, token for token."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ptp.bundle.manifest import Prompting
from ptp.chat import Chat
from ptp.errors import PromptError
from ptp.export.chat_format import adds_special_tokens, chat_format
from ptp.runtime.tokenize import Prompt, Prompter
from ptp.runtime.tokenizer import BundleTokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
CORPUS = ["What is in the picture? USER: ASSISTANT: [INST] [/INST] user assistant", "猫はどこにいますか 😀 где кот"]

PARTS = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}TEXT{% endfor %}"
)
TEMPLATES = {
    # as in llava-hf/llava-v1.6-mistral-7b-hf: no BOS in the template, {% generation %} around the assistant
    "mistral": "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' }}"
    + PARTS.replace("TEXT", "{{ part['text'] }}")
    + "{{ ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' }}{% generation %}"
    "{{ message['content'][0]['text'] }}{% endgeneration %}{{ '</s> ' }}{% else %}"
    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "mistral with BOS": "{{ bos_token }}{% for message in messages %}{{ '[INST] ' }}"
    + PARTS.replace("TEXT", "{{ part['text'] | trim }}")
    + "{{ ' [/INST]' }}{% endfor %}",
    "vicuna": "{% for message in messages %}{{ message['role'].upper() + ': ' }}"
    + PARTS.replace("TEXT", "{{ part['text'] + ' ' }}")
    + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content %}{{ '<|im_start|>' + message['role'] + '\n\n' }}"
    + PARTS.replace("TEXT", "{{ part['text'] }}").replace("message['content']", "message.content")
    + "{{ '<|im_end|>' }}{% endset %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content | trim }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n\n' }}{% endif %}",
    "chatml": "{% for message in messages %}\n  {% if loop.first %}\n<|im_start|>system\nYou are kind.<|im_end|>\n"
    "  {% endif %}\n<|im_start|>{{ message.role }}\n"
    + PARTS.replace("TEXT", "{{ part.text }}")
    + "<|im_end|>\n{% endfor %}\n{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}",
}
QUESTIONS = [
    "What is in the picture?",
    "image",
    "USER: user ASSISTANT [INST] assistant",  # the template's own words
    "  spaces around\n",
    "猫はどこにいますか?",
    "где кот 😀 ü é 👩‍👩‍👧",
    "a\nb\n\nc",
    "{{ bos_token }} {% if %}",  # text, never template
]


def byte_level() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return raw


def metaspace() -> Tokenizer:
    """Return a tokenizer of Llama's kind: ▁ for spaces, byte fallback, BOS from the post-processor."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        limit_alphabet=60,
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS[:1], trainer)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return raw


def legacy_llama() -> Tokenizer:
    """Return the older form: a normalizer that replaces spaces, and a stripping image token."""
    raw = metaspace()
    raw.pre_tokenizer = None
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.add_special_tokens([AddedToken("<image>", lstrip=True, rstrip=True, normalized=False)])
    return raw


TOKENIZERS = {"byte-level": byte_level, "metaspace": metaspace, "legacy": legacy_llama}


def processor(tokenizer: Tokenizer, template: str) -> LlavaNextProcessor:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112]]
        ),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def prompter(tokenizer: Tokenizer, template: str, max_prompt: int = 512) -> Prompter:
    chat = chat_format(processor(tokenizer, template), template, "the checkpoint")
    prompting = Prompting(
        image_token="<image>",
        image_token_id=tokenizer.token_to_id("<image>"),
        add_special_tokens=adds_special_tokens(chat, "<image>", "<s>"),
        eos_token_ids=(2,),
        max_prompt=max_prompt,
        chat=chat,
    )
    return Prompter(prompting, BundleTokenizer(tokenizer.to_str(), "tokenizer.json"))


def oracle(tokenizer: Tokenizer, template: str, chat: Chat) -> tuple[list[int], list[int]]:
    def said(role: str, text: str) -> dict:
        return {"role": role, "content": [{"type": "text", "text": text}]}

    messages = [] if chat.system is None else [said("system", chat.system)]
    for question, answer in chat.history:
        messages += [said("user", question), said("assistant", answer)]
    messages.append(said("user", chat.question))
    image = {"type": "image", "image": Image.new("RGB", (60, 50))}
    messages[chat.system is not None]["content"].insert(0, image)
    ids = processor(tokenizer, template).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )["input_ids"]
    ids = list(ids[0]) if isinstance(ids[0], list) else list(ids)
    image_id = tokenizer.token_to_id("<image>")
    images = [i for i, token in enumerate(ids) if token == image_id]
    assert len(images) > 1
    assert all(b == a + 1 for a, b in pairwise(images))
    return ids[: images[0]], ids[images[-1] + 1 :]


def question_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    ids = [token for token, mine in zip(prompt.ids, prompt.question_mask, strict=True) if mine]
    return tokenizer.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_ids_and_question_equal_transformers(tokenizer: str, template: str, question: str) -> None:
    raw = TOKENIZERS[tokenizer]()
    prompt = prompter(raw, TEMPLATES[template])(question)
    asked = Chat(question=question)
    assert (prompt.prefix, prompt.suffix) == oracle(TOKENIZERS[tokenizer](), TEMPLATES[template], asked)
    assert prompt.question_mask.shape == (len(prompt.ids),)
    assert question_text(prompt, raw).strip() == question.strip()
    marked = np.flatnonzero(prompt.question_mask)
    assert marked[0] >= len(prompt.prefix)
    assert np.array_equal(marked, np.arange(marked[0], marked[-1] + 1))
    assert not prompt.question_mask[-1]


def test_bos_is_written_once() -> None:
    for template in ("mistral", "mistral with BOS"):
        prompt = prompter(metaspace(), TEMPLATES[template])("What?")
        assert prompt.ids.count(1) == 1
        assert prompt.prefix[0] == 1


CHATS = {
    "system": Chat(question="why?", system=" You are <brief>. "),
    "second question": Chat(question=" why? ", history=(("What is it?", "A cat.\n"),)),
    "all": Chat(question="猫?", system="Be kind.", history=(("a", "b"), (" c ", "d"), ("e", "f"))),
}


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("template", ["vicuna", "chatml", "llama3", "mistral with BOS"])
def test_conversations_equal_transformers(template: str, chat: str) -> None:
    raw = byte_level()
    prompt = prompter(raw, TEMPLATES[template])(CHATS[chat])
    assert (prompt.prefix, prompt.suffix) == oracle(byte_level(), TEMPLATES[template], CHATS[chat])
    assert question_text(prompt, raw).strip() == CHATS[chat].question.strip()


def test_a_system_prompt_is_refused_where_the_template_has_no_place_for_it() -> None:
    with pytest.raises(PromptError, match="takes no system prompt; leave it out"):
        prompter(byte_level(), TEMPLATES["mistral"])(CHATS["system"])


def test_earlier_turns_are_refused_where_the_template_has_no_place_for_them() -> None:
    template = "<image>{{ messages[-1].content[-1].text }}"
    with pytest.raises(PromptError, match="takes one question; leave the earlier turns out"):
        prompter(byte_level(), template)(CHATS["second question"])


@pytest.mark.parametrize(
    ("chat", "problem"),
    [
        (Chat(question="why", system="an <image>"), "contains the image token"),
        (Chat(question="why", history=(("a", "\ud800"),)), "not valid Unicode"),
        (Chat(question="é" * (1 << 19) + "a"), "is too long; got 1048577 bytes; expected at most 1048576"),
        (Chat(question="a" * ((1 << 20) + 1)), "is too long; got 1048577 bytes"),
        (Chat(question=" ", history=(("a", "b"),)), "is empty"),
    ],
)
def test_texts_that_no_prompt_can_hold_are_refused(chat: Chat, problem: str) -> None:
    with pytest.raises(PromptError, match=problem):
        prompter(byte_level(), TEMPLATES["vicuna"])(chat)


def test_truncation_and_padding_of_the_file_are_ignored() -> None:
    raw = byte_level()
    expected = prompter(byte_level(), TEMPLATES["vicuna"])(QUESTIONS[0])
    raw.enable_truncation(5)
    raw.enable_padding(length=100)
    assert prompter(raw, TEMPLATES["vicuna"])(QUESTIONS[0]).ids == expected.ids


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_empty_questions_are_refused(question: str) -> None:
    with pytest.raises(PromptError, match="question is empty"):
        prompter(byte_level(), TEMPLATES["vicuna"])(question)


def test_image_token_in_the_question_is_refused() -> None:
    with pytest.raises(PromptError, match="contains the image token <image>"):
        prompter(byte_level(), TEMPLATES["vicuna"])("What is <image>?")


def test_longest_prompt_is_exact() -> None:
    length = len(prompter(byte_level(), TEMPLATES["vicuna"])(QUESTIONS[0]).ids)
    assert len(prompter(byte_level(), TEMPLATES["vicuna"], length)(QUESTIONS[0]).ids) == length
    with pytest.raises(PromptError, match=f"got {length} text tokens; expected at most {length - 1}"):
        prompter(byte_level(), TEMPLATES["vicuna"], length - 1)(QUESTIONS[0])

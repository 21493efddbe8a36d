"""Prompts equal transformers' `LlavaNextProcessor.apply_chat_template`, token for token."""

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaNextProcessor, PreTrainedTokenizerFast
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ptp.bundle.manifest import Prompting
from ptp.errors import PromptError
from ptp.runtime.chat_template import ChatTemplate
from ptp.runtime.tokenize import Prompt, Prompter

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


def prompter(tokenizer: Tokenizer, template: str, max_prompt: int = 512) -> Prompter:
    prompting = Prompting(
        image_token="<image>",
        image_token_id=tokenizer.token_to_id("<image>"),
        special_tokens={"bos_token": "<s>", "eos_token": "</s>"},
        eos_token_ids=(2,),
        max_prompt=max_prompt,
    )
    return Prompter(prompting, ChatTemplate(template, prompting.special_tokens), tokenizer)


def oracle(tokenizer: Tokenizer, template: str, question: str) -> tuple[list[int], list[int]]:
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )
    processor = LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112]]
        ),
        tokenizer=fast,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    image = Image.new("RGB", (60, 50))
    content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
    ids = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True
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
    assert (prompt.prefix, prompt.suffix) == oracle(TOKENIZERS[tokenizer](), TEMPLATES[template], question)
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


def test_a_repeated_question_is_marked_in_both_places() -> None:
    template = "<image>{{ messages[0].content[1].text }} | {{ messages[0].content[1].text }} |"
    raw = byte_level()
    assert question_text(prompter(raw, template)("why"), raw) == "whywhy"


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


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ messages[0].content[1].text }}", "must place one image; got 0"),
        ("<image><image>{{ messages[0].content[1].text }}", "must place one image; got 2"),
        ("<image>", "leaves the question out"),
        ("<image>{{ messages[0].content[1].text | length }}", "leaves the question out"),
        ("<image>{{ messages[0].content[1].text }}{{ messages[0].content[1].text | length }}", "changes with"),
        ("{{ raise_exception('no thanks') }}", "cannot be rendered; got no thanks"),
        ("{{ messages.append(1) }}", "cannot be rendered"),
        ("{{ ''.__class__.__mro__ }}<image>", "cannot be rendered|leaves the question out"),
        ("{{ nothing.at.all }}", "cannot be rendered"),
        ("{% for %}", "is not valid"),
    ],
)
def test_unusable_templates_are_refused(template: str, problem: str) -> None:
    with pytest.raises(PromptError, match=problem):
        prompter(byte_level(), template)("What is it, then, on the table?")


def test_templates_may_write_json_and_the_date() -> None:
    template = (
        "{{ strftime_now('%Y') | length }} {{ {'a': '<é>'} | tojson }} {{ [2, 1] | tojson(indent=1) }}"
        "<image>{{ messages[0].content[1].text }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}!{% endfor %}"
    )
    rendered = ChatTemplate(template, {}).render("why")
    assert rendered.text == '4 {"a": "<é>"} [\n 2,\n 1\n]<image>why!!'
    assert [rendered.text[slice(*span)] for span in rendered.question] == ["why"]


@pytest.mark.parametrize(
    "source",
    [
        "{{ 10**(10**8) }}",
        "{{ ('x' * 10**9) | length }}",
        "{{ 'x' * 1000000000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{% for i in range(2000) %}{% for j in range(2000) %}{{ messages }}{% endfor %}{% endfor %}",
        "x" * ((1 << 16) + 1),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in [1] recursive %}{{ loop([i]) }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{% if f(n - 1) or f(n - 1) %}{% endif %}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
        "{% set s = 'x'.ljust(60000) %}{{ s.replace(' ', s) | length }}",
        "{{ 'x' | center(9000000000) | length }}",
        "{{ lipsum(n=99999) | length }}",
    ],
)
def test_templates_that_would_exhaust_the_machine_are_refused(source: str) -> None:
    with pytest.raises(PromptError) as error:
        ChatTemplate("{{ messages[0].content[1].text }}" + source, {}).render("hi")
    assert not str(error.value).endswith("got ")


def test_a_template_may_count() -> None:
    source = "{% for m in messages %}{{ loop.index0 % 2 * 3 }}{{ m.content[1].text }}{% endfor %}"
    assert ChatTemplate(source, {}).render("hi").text == "0hi"


def test_templates_may_do_what_templates_do() -> None:
    source = (
        "{{ '=' * 5 }}{{ '%s!' % 'a' }}{{ 'a' ~ 1 ~ none }}{{ ([0] * 2) | length }}{{ 2 ** 3 }}"
        "{% set n = namespace(i=0) %}{% for i in range(3) if i %}{% set n.i = n.i + i %}{{ loop.last }}{% endfor %}"
        "{% macro m(x) %}<{{ x | upper }}>{% endmacro %}{{ m('b') }}{% filter trim %} {{ n.i }} {% endfilter %}"
        "{{ messages[0].content[1].text }}"
    )
    assert ChatTemplate(source, {}).render("hi").text == "=====a!a1None28FalseTrue<B>3hi"


def test_work_is_counted_for_each_rendering() -> None:
    template = ChatTemplate("{% for i in range(50000) %}{% endfor %}{{ messages[0].content[1].text }}", {})
    for _ in range(4):
        assert template.render("hi").text == "hi"

"""The text around image and question is what the template itself writes; a template that is no such text is refused."""

import re
import shutil

import pytest
from checkpoints import tokenizer
from transformers import LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ptp.bundle.manifest import ChatFormat
from ptp.chat import Chat, write_chat
from ptp.cli import main
from ptp.errors import CheckpointError
from ptp.export.chat_format import adds_special_tokens, chat_format

IMAGE = "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}"
TEXT = "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}"
PLAIN = {
    "mistral": "{% for message in messages %}[INST] " + IMAGE + TEXT + " [/INST]{% endfor %}",
    "BOS": "{{ bos_token }}{% for message in messages %}USER: " + IMAGE + TEXT + " ASSISTANT:{% endfor %}",
    "chatml": "{% for message in messages %}\n  {% if loop.first %}\n<|im_start|>system\nYou are kind.<|im_end|>\n"
    "  {% endif %}\n<|im_start|>{{ message.role }}\n" + IMAGE + TEXT + "<|im_end|>\n{% endfor %}\n"
    "{% if add_generation_prompt %}\n<|im_start|>assistant\n{% endif %}",
}
OTHERS = {
    "{% for message in messages %}USER: {{ message['content'] }}{% endfor %}": "places no image",
    PLAIN["mistral"].replace(
        "part['text']", "part['text'] | replace('{{', '((')"
    ): "changes the question '{{ bos_token }}'",
    PLAIN["mistral"].replace("part['text']", "part['text'] | lower"): "changes the question 'What is in the picture?'",
    "{% for message in messages %}" + TEXT + IMAGE + "{% endfor %}": "places the image behind the question",
    "{% for message in messages %}" + TEXT + "{% endfor %}": "places no image",
    PLAIN["mistral"].replace("[INST] ", "<image>[INST] "): "places 2 images",
    PLAIN["mistral"] + "{{ messages[0].content[1].text }}": "writes the question 2 times",
    "{% for message in messages %}" + IMAGE + "{% endfor %}": "leaves the question out",
    "<image>{{ messages[0].content[1].text | length }}": "leaves the question out",
    "<image>{{ messages[0].content[1].text }}{{ messages[0].content[1].text | length }}": "changes the question",
    "{{ strftime_now('%Y') }}" + PLAIN["mistral"]: "writes the date",
    "{{ raise_exception('no thanks') }}": "cannot be rendered; got no thanks",
    "{{ messages.append(1) }}": "cannot be rendered",
    "{{ nothing.at.all }}": "cannot be rendered",
    "{% for %}": "cannot be rendered",
}


def processor(template: str) -> LlavaNextProcessor:
    return LlavaNextProcessor(
        image_processor=LlavaNextImageProcessorPil(
            size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=[[56, 112]]
        ),
        tokenizer=tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )


def form_of(template: str) -> ChatFormat:
    return chat_format(processor(template), template, "a/model")


def rendered(template: str, *messages: tuple[str, list[dict]]) -> str:
    turns = [{"role": role, "content": content} for role, content in messages]
    return processor(template).apply_chat_template(turns, add_generation_prompt=True)


@pytest.mark.parametrize("name", PLAIN)
def test_it_is_what_the_template_writes(name: str) -> None:
    form = form_of(PLAIN[name])
    for question in ("Where is the cat?", " 猫 \n", "[INST] {{ x }}"):
        content = [{"type": "image"}, {"type": "text", "text": question}]
        text, (start, end) = write_chat(Chat(question=question), form, "<image>")
        assert text == rendered(PLAIN[name], ("user", content))
        assert text[start:end] == question


@pytest.mark.parametrize(
    ("filters", "trim"), [("", "none"), (" | trim", "both"), (".rstrip()", "end"), (" | trim | trim", "both")]
)
def test_it_says_what_the_template_trims(filters: str, trim: str) -> None:
    template = PLAIN["mistral"].replace("part['text']", f"part['text']{filters}")
    form = form_of(template)
    assert form.trim == trim
    content = [{"type": "image"}, {"type": "text", "text": " \u2003\x1c why \x1f\n"}]
    assert write_chat(Chat(question=content[1]["text"]), form, "<image>")[0] == rendered(template, ("user", content))


def test_a_system_prompt_has_a_place_only_where_the_template_writes_it() -> None:
    assert form_of(PLAIN["chatml"]).system is not None
    only_users = PLAIN["chatml"].replace("in messages %}", "in messages if message.role != 'system' %}")
    assert form_of(only_users).system is None
    assert (
        form_of("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN["BOS"]).system
        is None
    )


def test_turns_have_a_place_only_where_all_are_written_alike() -> None:
    assert form_of(PLAIN["chatml"]).next_turn is not None
    numbered = PLAIN["mistral"].replace("[INST] ", "[INST {{ loop.index }}] ")
    assert form_of(numbered).next_turn is None
    assert form_of("<image>{{ messages[-1].content[-1].text }}").next_turn is None


@pytest.mark.parametrize("template", OTHERS)
def test_other_templates_are_refused(template: str) -> None:
    with pytest.raises(CheckpointError, match=re.escape(f"the chat template of a/model {OTHERS[template]}")) as refused:
        form_of(template)
    assert str(refused.value).endswith("correct chat_template.jinja")


def test_a_template_may_ask_for_the_date_where_it_does_not_write_it() -> None:
    assert form_of("{% set today = strftime_now('%Y') %}" + PLAIN["mistral"]).before_image == "[INST] "


def test_a_template_is_refused_by_a_dry_run(tiny_checkpoint, tmp_path, capsys) -> None:
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    with pytest.raises(SystemExit) as ended:
        main(["export", "--model", str(folder), "--keep", "0.5", "--dry-run"])
    assert ended.value.code == 1
    assert "the chat template of model places no image" in capsys.readouterr().err


@pytest.mark.parametrize(("bos", "added"), [("<s>", False), ("<bos>", True), (None, True), ("", True)])
def test_a_text_that_begins_with_bos_gets_no_second_one(bos: str | None, added: bool) -> None:
    assert adds_special_tokens(form_of(PLAIN["BOS"]), "<image>", bos) is added

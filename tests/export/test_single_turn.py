"""A template's text around image and question is what the template itself writes; where it is not, there is none."""

import pytest
from checkpoints import tokenizer
from transformers import LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from ptp.export.single_turn import single_turn
from ptp.runtime.chat_template import ChatTemplate

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
    "trimmed": PLAIN["mistral"].replace("part['text']", "part['text'] | trim"),
    "escaped": PLAIN["mistral"].replace("part['text']", "part['text'] | replace('{{', '((')"),
    "question first": "{% for message in messages %}" + TEXT + IMAGE + "{% endfor %}",
    "no image": "{% for message in messages %}" + TEXT + "{% endfor %}",
    "two images": PLAIN["mistral"].replace("[INST] ", "<image>[INST] "),
    "twice": PLAIN["mistral"] + "{{ messages[0].content[1].text }}",
    "no question": "{% for message in messages %}" + IMAGE + "{% endfor %}",
    "date": "{{ strftime_now('%Y') }}" + PLAIN["mistral"],
    "refuses": "{{ raise_exception('no') }}",
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


@pytest.mark.parametrize("name", PLAIN)
def test_it_is_what_the_runtime_renders(name: str) -> None:
    turn = single_turn(processor(PLAIN[name]))
    assert turn is not None
    template = ChatTemplate(PLAIN[name], {"bos_token": "<s>"})
    for question in ("Where is the cat?", " 猫 \n", "[INST] {{ x }}"):
        text = f"{turn.before_image}<image>{turn.before_question}{question}{turn.after_question}"
        assert text == template.render(question).text


@pytest.mark.parametrize("name", OTHERS)
def test_other_templates_have_none(name: str) -> None:
    assert single_turn(processor(OTHERS[name])) is None

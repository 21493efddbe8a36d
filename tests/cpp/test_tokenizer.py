"""Token ids, offsets and text equal those of the library `tokenizers`."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints import tokenizer as checkpoint_tokenizer
from tokenizer_files import ACCEPTED, REFUSED, written
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from ptp.bundle.manifest import ChatFormat, Prompting
from ptp.bundle.tokenizer import MAX_TEXT_BYTES
from ptp.demo import CHECKPOINT
from ptp.errors import PromptError
from ptp.runtime.detokenize import TextStream
from ptp.runtime.tokenize import Prompter
from ptp.runtime.tokenizer import BundleTokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "What is in the picture? It's what you'll see: we've 1234 cats, they're 12,345. USER: ASSISTANT: [INST] [/INST]",
    "猫はどこにいますか 😀 где кот Straße naïve मराठी العربية",
] * 3
TEXTS = [
    "What is in the picture?",
    "  spaces   around\t\n\n and \r\n lines \u00a0\u3000\u2003x\u180ey\u0085z ",
    "It's WE'LL they'RE don'ſ I'd 'S 'tis",
    "猫はどこにいますか? где кот 😀 ü é 👩‍👩‍👧 e\u0301 मराठी العربية ᚠᛇᚻ 𐍈",
    "12345678901 3.14 ½ ٣٤ Ⅷ x2y",
    "a<image>b <s>[INST] </s></s> <|im_start|>user\n<|im_end|>  <image>  c",
    "\x00\x01\x1b[31m\x7f\u200b\ufeff\ufffd",
    "<0x41> ▁▁ ▁a Ġ Ċ",
    " ",
    "",
    "!!!??? ...---$$$ {}[]() #@&*",
    "ǅ ŉ ﬁ İı ß ẞ",
]
QUESTIONS = [text for text in TEXTS if text.strip() and "<image>" not in text]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pattern: str | None = None) -> Tokenizer:
    """GPT-2's kind; with a pattern, Llama 3's and Qwen 2's."""
    raw = Tokenizer(models.BPE(ignore_merges=pattern is not None))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if pattern:
        raw.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False),
    )
    return raw


def llama3() -> Tokenizer:
    raw = byte_level(LLAMA3)
    raw.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single="<s> $A </s>", pair="$A $B", special_tokens=[("<s>", 1), ("</s>", 2)]),
        ]
    )
    raw.add_tokens([AddedToken("<plain>", normalized=False), AddedToken("we", normalized=True)])
    return raw


def metaspace() -> Tokenizer:
    """Llama's kind: ▁ for spaces, byte fallback, BOS from the post-processor."""
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


def without_bytes() -> Tokenizer:
    """Unknown characters become one token; the decoder is Metaspace's own."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    raw.train_from_iterator(
        CORPUS[:1], trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    raw.decoder = decoders.Metaspace()
    return raw


def legacy_llama() -> Tokenizer:
    """The older form: a normalizer that replaces spaces, a token that is normalized, a stripping image token."""
    raw = metaspace()
    raw.pre_tokenizer = None
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.add_special_tokens(
        [AddedToken("<image>", lstrip=True, rstrip=True, normalized=False), AddedToken("cats", normalized=True)]
    )
    return raw


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "demo": lambda: Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json")),
    "checkpoints": lambda: checkpoint_tokenizer().backend_tokenizer,
    "gpt2": byte_level,
    "llama3": llama3,
    "qwen2": lambda: byte_level(LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")),
    "metaspace": metaspace,
    "without bytes": without_bytes,
    "legacy": legacy_llama,
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request, tmp_path: Path) -> tuple[Tokenizer, Path]:
    raw, path = TOKENIZERS[request.param](), tmp_path / "tokenizer.json"
    raw.save(str(path))
    return raw, path


@pytest.mark.parametrize("special", [False, True])
def test_ids_and_offsets(probe, tokenizer, special: bool) -> None:
    raw, path = tokenizer
    found = probe("encode", tokenizer=path, texts=TEXTS, special=special)
    for text, answer in zip(TEXTS, found, strict=True):
        expected = raw.encode(text, add_special_tokens=special)
        assert answer["ids"] == expected.ids, repr(text)
        own = [(i, tuple(x)) for i, x in enumerate(answer["offsets"]) if expected.sequence_ids[i] is not None]
        assert own == [(i, x) for i, x in enumerate(expected.offsets) if expected.sequence_ids[i] is not None], repr(
            text
        )


def test_a_long_text(probe, tokenizer) -> None:
    raw, path = tokenizer
    text = " ".join(TEXTS * 40).replace("\n", "x")
    assert (
        probe("encode", tokenizer=path, texts=[text], special=False)[0]["ids"]
        == raw.encode(text, add_special_tokens=False).ids
    )


@pytest.mark.parametrize("trim", ["none", "both", "end"])
def test_prompts_equal_the_python_runtime(probe, tokenizer, trim: str) -> None:
    raw, path = tokenizer
    prompting = Prompting(
        image_token="<image>",
        image_token_id=raw.token_to_id("<image>"),
        add_special_tokens=trim == "end",
        eos_token_ids=(2,),
        max_prompt=60,
        chat=ChatFormat(trim=trim, before_image="<s>[INST] ", before_question="\n", after_question=" [/INST]"),
    )
    prompter = Prompter(prompting, BundleTokenizer(raw.to_str(), "tokenizer.json"))
    questions = [*QUESTIONS, "", " \u3000\n", "an <image>", "\x1f\u2003 why? \x1c\t", "a" * ((1 << 20) + 1)]
    answers = probe("tokenize", tokenizer=path, questions=questions, **prompting.model_dump(exclude={"eos_token_ids"}))
    for question, answer in zip(questions, answers, strict=True):
        if "error" in answer:
            with pytest.raises(PromptError) as refused:
                prompter(question)
            assert answer["error"] == str(refused.value)
            continue
        expected = prompter(question)
        assert answer["ids"] == expected.ids, repr(question)
        assert answer["prefix"] == len(expected.prefix)
        assert answer["mask"] == expected.question_mask.tolist(), repr(question)
    assert sum("error" not in answer for answer in answers) > 3


def test_text_comes_back_in_the_same_pieces(probe, tokenizer) -> None:
    raw, path = tokenizer
    lists = [raw.encode(text, add_special_tokens=True).ids for text in TEXTS]
    count = raw.get_vocab_size()
    lists += [[(i * step + 7) % count for i in range(60)] for step in (1, 17, 91, 131)]  # also bytes that are no text
    expected = []
    for ids in lists:
        stream = TextStream(BundleTokenizer(raw.to_str(), "tokenizer.json"))
        expected.append([*(stream.push(i) for i in ids), stream.finish()])
    assert probe("decode", tokenizer=path, ids=lists) == expected


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"model": {"type": "WordPiece", "vocab": {}}}, "model.type: only BPE is supported"),
        ({"normalizer": {"type": "NFC"}}, "normalizer.type: 'NFC' is not one of Sequence, Prepend, Replace"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre_tokenizer.type: 'Whitespace' is not one of"),
        (
            {
                "pre_tokenizer": {
                    "type": "Split",
                    "pattern": {"Regex": "(a+)+$"},
                    "behavior": "Isolated",
                    "invert": False,
                }
            },
            "pre_tokenizer.pattern: is not one that this version knows",
        ),
        ({"decoder": {"type": "WordPiece"}}, "decoder.type: 'WordPiece' is not one of"),
        ({"post_processor": {"type": "BertProcessing"}}, "post_processor.type: 'BertProcessing' is not one of"),
        ({"surprise": 1}, "surprise: is not known to this version"),
        ({"added_tokens": [{"id": 1}]}, "added_tokens.content: is missing"),
    ],
)
def test_what_is_not_in_the_subset_is_refused(probe, tmp_path: Path, change: dict, problem: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(byte_level().to_str()) | change))
    error = probe.refusal("encode", tokenizer=path, texts=["a"], special=False)
    assert str(error).startswith(f"this version cannot use tokenizer.json; got {problem}")


@pytest.mark.parametrize("stop", [["</s>"], ["end", "en"], ["aab", "b c"], ["é"], []])
def test_stop_texts(probe, stop: list[str]) -> None:
    from ptp.runtime.sampling import StopText

    for pieces in (["a", "a", "a", "b c"], ["the e", "n", "d"], ["x</", "s", "y"], ["caf", "é!"], ["e", "n"]):
        text, shown = StopText(stop), []
        for piece in pieces:
            shown.append(text.push(piece))
            if text.stopped:
                break
        else:
            shown.append(text.finish())
        assert probe("stop", stop=stop, pieces=pieces) == {"shown": shown, "stopped": text.stopped}


PATTERNS = ("pattern of llama 3", "pattern of qwen 2")
NOT_IN_THE_SUBSET = {
    *("NFC", "NFKC, lower case", "metaspace of older files", "digits, punctuation", "split at a text", "no decoder"),
    "normalized and single words",
    *(name for name in ACCEPTED if name.startswith("pattern of ") and name not in PATTERNS),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_python_accepts_gives_the_same_ids_or_is_not_supported(probe, tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(written(ACCEPTED[name]))
    texts = [*TEXTS, "a" * 50, " the cat  <x> <x>  x", "what WHAT at the cat  \n\n"]
    if name in NOT_IN_THE_SUBSET:
        error = probe.refusal("encode", tokenizer=path, texts=texts, special=True)
        assert str(error).startswith("this version cannot use tokenizer.json; got ")
        return
    python = BundleTokenizer(Path(path).read_bytes(), str(path))
    found = [python.encode(text, add_special_tokens=True) for text in texts]
    answers = probe("encode", tokenizer=path, texts=texts, special=True)
    assert [answer["ids"] for answer in answers] == [expected.ids for expected in found]
    streams = [TextStream(python) for _ in texts]
    assert probe("decode", tokenizer=path, ids=[x.ids for x in found]) == [
        [*map(stream.push, x.ids), stream.finish()] for stream, x in zip(streams, found, strict=True)
    ]


@pytest.mark.parametrize("name", REFUSED)
def test_what_python_refuses_is_refused(probe, tmp_path: Path, name: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(written(REFUSED[name][0]))
    error = probe.refusal("encode", tokenizer=path, texts=["a"], special=True)
    assert str(error).startswith(("this version cannot use tokenizer.json; got ", "tokenizer.json is not a tokenizer"))
    assert len(str(error)) < 600


def test_the_longest_prompt_is_that_of_python(probe, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(written(ACCEPTED["grows 64 times"]))
    text = "c" * (MAX_TEXT_BYTES // 64 + 1)
    with pytest.raises(PromptError) as refused:
        BundleTokenizer(Path(path).read_bytes(), str(path)).encode(text, add_special_tokens=False)
    assert str(probe.refusal("encode", tokenizer=path, texts=[text], special=False)) == str(refused.value)
    assert probe("encode", tokenizer=path, texts=[text[1:]], special=False)


def test_a_file_that_is_nested_deeply_is_refused(probe, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(written({"truncation": json.loads("[" * 40 + "]" * 40)}))
    error = probe.refusal("encode", tokenizer=path, texts=["a"], special=True)
    assert str(error).startswith("tokenizer.json is not a tokenizer; got it is nested too deeply")

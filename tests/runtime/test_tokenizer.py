"""Tokenizers of strangers: those whose work is bounded run as in the library, the others are refused in one line."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fake_bundle import FakeBundle
from tokenizer_files import (
    ACCEPTED,
    PATTERNS,
    REFUSED,
    SIZE,
    SLOW_PATTERNS,
    added,
    decoders,
    normalizers,
    replace,
    written,
)
from tokenizers import Tokenizer

from ptp.bundle import Bundle
from ptp.bundle.patterns import takes_linear_time
from ptp.bundle.tokenizer import MAX_GROWTH, MAX_TEXT_BYTES, read_tokenizer
from ptp.bundle.writer import file_entry
from ptp.errors import BackendError, BundleError, PromptError
from ptp.runtime import tokenizer as module
from ptp.runtime.detokenize import TextStream
from ptp.runtime.tokenizer import BundleTokenizer
from ptp.runtime.vision import VisualEncoder

TEXTS = [
    "What is the cat at? It's Ab AB aB, 12345.",
    "  spaces \t\n\n x  <x> the cat</s> ",
    "猫 e\u0301 ﬁ ﷺ İ 😀\u00a0▁▁a",
    "aaaa" * 9,
    "",
]


class Panic(BaseException):
    """As pyo3's PanicException, which is no `Exception`."""


class Broken:
    """A library whose calls fail; `calls` counts them."""

    class normalizer:
        normalize_str = str

    error: ClassVar[BaseException] = Panic("index out of bounds")
    calls: ClassVar[list[Any]] = []

    def encode(self, text: str, **_: Any) -> Any:
        self.calls.append(text)
        raise self.error

    decode = encode


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> type[Broken]:
    monkeypatch.setattr(Broken, "calls", [])
    monkeypatch.setattr(module.Tokenizer, "from_str", lambda _: Broken(), raising=False)
    return Broken


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_accepted_gives_the_ids_of_the_library(name: str) -> None:
    text = written(ACCEPTED[name])
    bounded = BundleTokenizer(text, "tokenizer.json")
    data = json.loads(text) | {"truncation": None, "padding": None}
    if name == "pair is not looked at":
        data["post_processor"]["pair"] = []
    library = Tokenizer.from_str(json.dumps(data))
    for special in (False, True):
        for sample in TEXTS:
            found, expected = (tokenizer.encode(sample, add_special_tokens=special) for tokenizer in (bounded, library))
            assert found.ids == expected.ids
            assert found.offsets == expected.offsets
            assert bounded.decode(found.ids) == library.decode(expected.ids)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_refused_in_one_line(capfd: pytest.CaptureFixture[str], name: str) -> None:
    change, problem = REFUSED[name]
    with pytest.raises(BundleError) as error:
        BundleTokenizer(written(change), "tokenizer.json")
    assert str(error.value).startswith("this version cannot use tokenizer.json; got ")
    assert problem in str(error.value)
    assert str(error.value).endswith("; export the bundle again")
    assert len(str(error.value)) < 600
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "data",
    [b"\xff", b"NaN", b"9" * 5000, b'"\\ud800"', b"[" * 100_000, b'{"model":' * 5000, b"", b"[[],[]]", b'{"a":1}x'],
)
def test_what_is_no_json_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(BundleError, match=r"^this version cannot use tokenizer\.json; got "):
        BundleTokenizer(data, "tokenizer.json")


def with_tokenizer(folder: Path, text: str) -> Bundle:
    """Return a bundle that lists another tokenizer."""
    bundle = FakeBundle(folder, script=[]).bundle
    (folder / "tokenizer.json").write_text(text)
    files = bundle.manifest.files | {"tokenizer.json": file_entry(folder / "tokenizer.json")}
    return Bundle(folder=folder, manifest=bundle.manifest.model_copy(update={"files": files}))


def test_a_bundle_with_such_a_tokenizer_is_not_loaded(tmp_path) -> None:
    bundle = with_tokenizer(tmp_path, written(REFUSED["grows"][0]))
    with pytest.raises(BundleError, match=r"^this version cannot use .*tokenizer\.json; got normalizer and"):
        VisualEncoder(bundle, lambda *_: pytest.fail("a graph was loaded"))


def test_tokens_without_an_embedding_are_refused(tmp_path) -> None:
    bundle = with_tokenizer(tmp_path, written({}))
    rows = bundle.manifest.language_model.vocab_size
    with pytest.raises(BundleError, match=f"has tokens without an embedding; got id {SIZE - 1}; .* below .* {rows}"):
        VisualEncoder(bundle, lambda *_: pytest.fail("a graph was loaded"))


@pytest.mark.parametrize("name", [name for name in ACCEPTED if "is not looked at" not in name])
def test_no_text_grows_by_more_than_was_counted(name: str) -> None:
    """What comes out of normalizer and pre-tokenizer, piece by piece, for texts that grow most."""
    read = read_tokenizer(written(ACCEPTED[name]))
    library = Tokenizer.from_str(read.model_dump_json())
    assert read.growth <= MAX_GROWTH
    for sample in [*TEXTS, "a", "ﷺ" * 20, "İ" * 20, "\u0344" * 20, " " * 20, "é" * 20, "a " * 20]:
        grown = library.normalizer.normalize_str(sample) if library.normalizer else sample
        pieces = library.pre_tokenizer.pre_tokenize_str(grown) if library.pre_tokenizer else [(grown, None)]
        assert sum(len(piece.encode()) for piece, _ in pieces) <= read.growth * len(sample.encode())


def test_the_longest_prompt_is_what_may_grow_to_the_bound(broken: type[Broken]) -> None:
    text = written(normalizers(replace("a", "b" * 32)))
    tokenizer, longest = BundleTokenizer(text, "tokenizer.json"), MAX_TEXT_BYTES // 64
    with pytest.raises(PromptError, match=f"too long for this tokenizer; got {longest + 1} bytes; expected at most "):
        tokenizer.encode("é" + "a" * (longest - 1), add_special_tokens=False)
    assert not broken.calls
    with pytest.raises(PromptError, match="cannot be cut into tokens"):
        tokenizer.encode("a" * longest, add_special_tokens=False)
    assert len(broken.calls) == 1


@pytest.mark.parametrize("error", [Panic("at normalizer.rs"), Exception("no unk"), MemoryError(), RecursionError()])
def test_whatever_the_library_raises_is_one_line(broken: type[Broken], monkeypatch, error: BaseException) -> None:
    monkeypatch.setattr(broken, "error", error)
    tokenizer = BundleTokenizer(written({}), "tokenizer.json")
    words = str(error) or type(error).__name__
    with pytest.raises(PromptError, match=f"^the prompt cannot be cut into tokens; got {words}$"):
        tokenizer.encode("a", add_special_tokens=False)
    with pytest.raises(BackendError, match=f"^the tokenizer cannot decode the answer; got {words}$"):
        tokenizer.decode([1])


def test_who_interrupts_is_heard(broken: type[Broken], monkeypatch) -> None:
    monkeypatch.setattr(broken, "error", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        BundleTokenizer(written({}), "tokenizer.json").encode("a", add_special_tokens=False)


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_patterns_of_real_tokenizers_take_linear_time(pattern: str) -> None:
    assert takes_linear_time(pattern)
    assert not takes_linear_time(f"(?:{pattern})+$")


@pytest.mark.parametrize("pattern", SLOW_PATTERNS)
def test_other_patterns_may_not(pattern: str) -> None:
    assert not takes_linear_time(pattern)


def test_known_ends_are_no_beginnings() -> None:
    assert not takes_linear_time(r"\s+(?!\S)|\s+|x")


def test_the_ids_of_a_long_answer_are_not_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, decoded = BundleTokenizer(written({}), "tokenizer.json"), 0
    decode = tokenizer.decode

    def count(ids: list[int]) -> str:
        nonlocal decoded
        decoded += len(ids)
        return decode(ids)

    monkeypatch.setattr(tokenizer, "decode", count)
    ids = tokenizer.encode("the cat and the dog " * 50, add_special_tokens=False).ids
    stream = TextStream(tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == decode(ids)
    assert decoded < 4 * len(ids)


@pytest.mark.parametrize(
    "change",
    [
        ACCEPTED["llama's decoder"],
        decoders(replace("Ġ", " "), {"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        ACCEPTED["metaspace"],
        ACCEPTED["no decoder"],
        added("é<x>", " x"),
    ],
)
def test_pieces_join_to_the_whole_with_every_decoder(change: dict) -> None:
    tokenizer = BundleTokenizer(written(change), "tokenizer.json")
    for step in (1, 7, 36, 101, 224, 263):
        ids = [(4 + i * step) % 529 for i in range(200)] + [224, 224, 4, 224]
        stream = TextStream(tokenizer)
        assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)

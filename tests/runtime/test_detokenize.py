"""Streamed text joins to the tokenizer's own decoding and never breaks a character."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from ptp.runtime.detokenize import REPLACEMENT, TextStream
from ptp.runtime.tokenizer import BundleTokenizer

SPECIAL = ["<unk>", "<s>", "</s>"]
TEXTS = ["I see a cat.", "猫 is 你好", "👩‍👩‍👧 😀😀", " é\n\n ß", "где кот?"]


def byte_level() -> Tokenizer:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        ["I see a cat. 猫"],
        trainers.BpeTrainer(
            vocab_size=280,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return raw


def llama() -> Tokenizer:
    vocabulary = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"Iseacat.猫", "▁a", "▁cat"]
    ids = {token: index for index, token in enumerate(dict.fromkeys(vocabulary))}
    raw = Tokenizer(models.BPE(vocab=ids, merges=[("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    raw.add_special_tokens(SPECIAL)
    return raw


TOKENIZERS = {"byte-level": byte_level(), "llama": llama()}


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(BundleTokenizer(tokenizer.to_str(), "tokenizer.json"))
    return [*(stream.push(token) for token in ids), stream.finish()]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_text_comes_back_whole(name: str, text: str) -> None:
    ids = TOKENIZERS[name].encode(text).ids
    streamed = pieces(TOKENIZERS[name], ids)
    assert "".join(streamed) == TOKENIZERS[name].decode(ids) == text.removeprefix(" " if name == "llama" else "")
    assert REPLACEMENT not in "".join(streamed)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data())
def test_any_ids_join_to_the_plain_decoding(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    ids = data.draw(
        st.lists(st.integers(0, tokenizer.get_vocab_size() - 1) | st.sampled_from([1, 2, 259]), max_size=20)
    )
    assert "".join(pieces(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_text_is_shown_as_soon_as_it_is_whole() -> None:
    ids = TOKENIZERS["byte-level"].encode("a😀b").ids
    assert pieces(TOKENIZERS["byte-level"], ids) == ["a", "", "", "", "😀", "b", ""]


def test_special_tokens_are_not_text() -> None:
    ids = [1, *TOKENIZERS["llama"].encode("a cat").ids, 2]
    assert pieces(TOKENIZERS["llama"], ids) == ["", *pieces(TOKENIZERS["llama"], ids[1:-1])[:-1], "", ""]


def test_half_a_character_at_the_end_is_replaced() -> None:
    ids = TOKENIZERS["byte-level"].encode("a😀").ids[:-1]
    assert pieces(TOKENIZERS["byte-level"], ids)[-1] == REPLACEMENT

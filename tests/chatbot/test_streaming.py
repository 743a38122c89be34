"""Streams of ids and text: joined, the pieces are what the whole would have been."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatbot.streaming import sentences, text_deltas, until_stop

Decode = Callable[[Sequence[int]], str]
MANY = settings(max_examples=150, deadline=None)
# Characters of one to four bytes; emoji of several code points; the replacement character as real text.
SAMPLES = (
    "plain words, with  spaces\n\n",
    "é",
    "你好，世界",
    "😀",
    "👩‍👩‍👧",
    "🇨🇭",
    "ไทย",
    " .",
    " n't",
    "\ufffd",
    "\x00",
)
LETTERS = "abcdefghilnoprstuw.,"
BYTES = range(3, 259)  # the ids of the byte tokens in the byte-fallback vocabulary
samples = st.lists(st.one_of(st.sampled_from(SAMPLES), st.text(max_size=8)), max_size=8).map("".join)


def decoder(tokenizer: Any) -> Decode:
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.fixture(scope="session")
def byte_fallback() -> Any:
    """Words with a leading ▁, and bytes for everything else, as SentencePiece models have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = [("▁", "a"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("i", "n"), ("▁", "▁")]
    tokens = ["▁", *LETTERS, *(a + b for a, b in merges)]
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *tokens]
    ids = {token: id_ for id_, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.BPE(ids, merges, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


@pytest.fixture(scope="session")
def tokenizers(smollm2: Path, tiny_chat_model: Path, byte_fallback: Any) -> dict[str, tuple[Decode, Any, int]]:
    """name -> (decode, encode, vocabulary size)."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    real, tiny = (AutoTokenizer.from_pretrained(folder) for folder in (smollm2, tiny_chat_model))
    pieces = PreTrainedTokenizerFast(tokenizer_object=byte_fallback)
    return {
        name: (decoder(each), lambda text, each=each: each(text, add_special_tokens=False)["input_ids"], len(each))
        for name, each in {"smollm2": real, "tiny": tiny, "byte-fallback": pieces}.items()
    }


KINDS = ("smollm2", "tiny", "byte-fallback")


@pytest.mark.parametrize("kind", KINDS[:2])
@MANY
@given(data=st.data())
def test_random_ids_stream_to_what_decoding_them_at_once_gives(kind: str, data: Any, tokenizers: Any) -> None:
    decode, _, size = tokenizers[kind]
    ids = data.draw(st.lists(st.integers(0, size - 1), max_size=40))
    assert "".join(text_deltas(ids, decode)) == decode(ids)


@MANY
@given(data=st.data())
def test_byte_fallback_ids_that_make_whole_characters_stream_exactly(data: Any, tokenizers: Any) -> None:
    decode, _, size = tokenizers["byte-fallback"]
    whole = st.one_of(
        st.integers(BYTES.stop, size - 1).map(lambda id_: [id_]), st.characters(codec="utf-8").map(_bytes)
    )
    ids = [id_ for group in data.draw(st.lists(whole, max_size=20)) for id_ in group]
    assert "".join(text_deltas(ids, decode)) == decode(ids)


@MANY
@given(data=st.data())
@example(data=None)
def test_broken_bytes_cost_no_other_text(data: Any, tokenizers: Any) -> None:
    """With byte fallback a broken byte unmakes characters shown already, so equality is out of reach here."""
    decode, _, size = tokenizers["byte-fallback"]
    no_ascii = st.integers(0, size - 1).filter(lambda id_: id_ not in BYTES[:128])
    ids = data.draw(st.lists(no_ascii, max_size=40)) if data else [*_bytes("你"), BYTES[0x80], size - 1, BYTES[0xFF]]
    shown = "".join(text_deltas(ids, decode))
    assert _vocabulary_only(shown) == _vocabulary_only(decode([id_ for id_ in ids if id_ not in BYTES]))


@pytest.mark.parametrize("kind", KINDS)
@MANY
@given(text=samples)
def test_no_piece_ends_within_a_character(kind: str, text: str, tokenizers: Any) -> None:
    decode, encode, _ = tokenizers[kind]
    ids = encode(text)
    pieces = list(text_deltas(ids, decode))
    assert "".join(pieces) == decode(ids)
    if "\ufffd" not in decode(ids):  # SmolLM2's vocabulary lacks some bytes
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["😀😀👍🏽", "你好，世界。", "a 👩‍👩‍👧 of Zürich"])
def test_emoji_and_chinese_come_as_soon_as_they_are_whole(kind: str, text: str, tokenizers: Any) -> None:
    decode, encode, _ = tokenizers[kind]
    ids = encode(text)
    pieces = list(text_deltas(ids, decode))
    assert "".join(pieces) == text
    for n in range(len(ids)):
        if not decode(ids[:n]).endswith("\ufffd"):
            assert "".join(pieces[:n]) == decode(ids[:n])


def test_the_cost_of_a_token_does_not_grow_with_the_answer() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return "x" * len(ids)

    assert "".join(text_deltas(range(1000), decode)) == "x" * 1000
    assert longest < 10


def _bytes(text: str) -> list[int]:
    return [BYTES[byte] for byte in text.encode()]


def _vocabulary_only(text: str) -> str:
    return "".join(char for char in text if char in LETTERS)


# Stop strings -------------------------------------------------------------------------------------------------------

few_letters = st.text("ab\n:", max_size=24)
stop_lists = st.lists(st.text("ab\n:", min_size=1, max_size=4), max_size=4)


def run(stream: Generator[str, None, str | None]) -> tuple[str, str | None]:
    """What came out, joined, and the return value."""
    out = ""
    while True:
        try:
            out += next(stream)
        except StopIteration as end:
            return out, end.value


def cut(text: str, at: Iterable[int]) -> list[str]:
    """`text` in pieces, some of them empty."""
    places = [0, *sorted(min(place, len(text)) for place in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


def first_complete(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Read letter by letter until a stop string stands at the end; of several, the longest."""
    for end in range(1, len(text) + 1):
        ended = [stop for stop in stops if text[:end].endswith(stop)]
        if ended:
            stop = max(ended, key=len)
            return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=500, deadline=None)
@given(few_letters, stop_lists, st.lists(st.integers(0, 24), max_size=12))
@example("abcd", ["abcd", "bc"], [])
@example("ab:", ["ab", "ab:"], [])
def test_the_stop_that_is_complete_first_ends_the_text_whatever_the_pieces(
    text: str, stops: list[str], at: list[int]
) -> None:
    assert run(until_stop(cut(text, at), stops)) == first_complete(text, stops)


@MANY
@given(few_letters, st.text("ab\n:", min_size=1, max_size=4), st.lists(st.integers(0, 24), max_size=12))
def test_a_single_stop_is_a_partition(text: str, stop: str, at: list[int]) -> None:
    before, found, _ = text.partition(stop)
    assert run(until_stop(cut(text, at), [stop])) == (before, found or None)


def test_nothing_is_read_after_the_stop() -> None:
    read = []

    def pieces() -> Iterable[str]:
        for piece in ("one", " sto", "p", " two"):
            read.append(piece)
            yield piece

    assert run(until_stop(pieces(), ["stop"])) == ("one ", "stop")
    assert read == ["one", " sto", "p"]


def test_what_begins_a_stop_is_held_back_and_released_at_the_end() -> None:
    assert list(until_stop(["Hello\n", "Hum"], ["\nHuman:"])) == ["Hello", "", "\nHum"]


def test_what_turns_out_to_begin_no_stop_is_released_at_once() -> None:
    assert list(until_stop(["Hello\nHum", "an", "ist", " you"], ["\nHuman:"])) == ["Hello", "", "\nHumanist", " you"]


@pytest.mark.parametrize("stops", [[], [""]])
def test_without_stops_everything_passes_at_once(stops: list[str]) -> None:
    assert list(until_stop(["a", "b"], stops)) == ["a", "b"]


# Sentences ----------------------------------------------------------------------------------------------------------

prose = st.text("ab .!?\n。", max_size=60)


@MANY
@given(prose, st.lists(st.integers(0, 60), max_size=20), st.integers(1, 20))
def test_sentences_are_the_same_text_whatever_the_pieces(text: str, at: list[int], minimum: int) -> None:
    found = list(sentences(cut(text, at), minimum))
    assert "".join(found) == text
    assert found == list(sentences([text], minimum))


@MANY
@given(prose, st.integers(1, 20))
def test_all_but_the_last_piece_are_long_enough_and_end_a_sentence(text: str, minimum: int) -> None:
    for piece in list(sentences(list(text), minimum))[:-1]:
        assert len(piece) >= minimum
        assert piece[-1] in "\n。" or piece[-2] in ".!?"


def test_a_sentence_comes_out_as_soon_as_it_is_whole() -> None:
    stream = sentences(iter(["The bridge was opened. ", "It is long", ". ", "Very."]), minimum=5)
    assert list(stream) == ["The bridge was opened. ", "It is long. ", "Very."]


def test_the_minimum_itself_is_enough() -> None:
    assert list(sentences(["abc. abc. "], minimum=5)) == ["abc. ", "abc. "]


def test_a_number_ends_no_sentence() -> None:
    assert list(sentences(["It is 3.14 metres long. Yes."], minimum=1)) == ["It is 3.14 metres long. ", "Yes."]

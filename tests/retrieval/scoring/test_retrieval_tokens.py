"""What the words of a text are, in several languages and scripts, and how long it takes to find them."""

from __future__ import annotations

import time

import pytest

from retrieval.scoring.tokens import STOP_WORDS, Tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The bridges were opened in 1932.", ["bridg", "open", "1932"]),
        ("Don't! O'Brien's 'quoted' rock'n'roll ’tis Brien’s", ["dont", "obrien", "quot", "rocknrol", "tis", "brien"]),
        ("café Zürich naïve Straße", ["cafe", "zurich", "naiv", "strass"]),
        ("cafe\u0301 ＦＵＬＬ ﬁne x²", ["cafe", "full", "fine", "x2"]),
        ("snake_case well-known 3.14 C++ v2", ["snake", "case", "well", "known", "3", "14", "c", "v2"]),
        ("東京タワー is 高", ["東京", "京タ", "タワ", "ワー", "高"]),
        ("ｶﾞｷﾞ 한국어", ["ガギ", "한국", "국어"]),
        ("สวัสดี", ["สว", "วั", "ัส", "สด", "ดี"]),
        ("東京2020 and東", ["東京", "2020", "東"]),
        ("हिन्दी में", ["हिन्दी", "में"]),
        ("soft\u00adhyphen", ["softhyphen"]),
        ("", []),
        ("!?… '' \u0301", []),
    ],
)
def test_english_tokens(text: str, tokens: list[str]) -> None:
    assert Tokenizer().tokens(text) == tokens


def test_other_languages() -> None:
    assert Tokenizer("french").tokens("L’eau, l'école") == ["l", "eau", "l", "écol"]
    assert Tokenizer("german").tokens("Häuser und Haus") == ["haus", "und", "haus"]
    assert Tokenizer("none").tokens("The Bridges don't") == ["the", "bridges", "don", "t"]
    assert Tokenizer("none").tokens("Cafe\u0301 CAFÉ café") == ["café"] * 3
    assert Tokenizer("arabic").tokens("الكِتَاب") == Tokenizer("arabic").tokens("الكتاب")


def test_stop_words_are_as_the_tokenizer_makes_words() -> None:
    assert all(Tokenizer().tokens(word) == [] for word in STOP_WORDS)


@pytest.mark.parametrize(
    "piece",
    [
        *("a", "a ", "'", "a'", "_", "Σ", "東", "ﷺ", "İ", "\u200d", "\ud800"),
        *("\u0301\u0316", "a\u0301", "\u0e48\u0e38", "\u1100\u1161"),
    ],
)
def test_time_is_linear_whatever_the_text(piece: str) -> None:
    text = "é" + piece * (400_000 // len(piece))
    started = time.process_time()
    tokens = Tokenizer().tokens(text)
    assert time.process_time() - started < 3
    assert all(0 < len(token) <= 64 for token in tokens)

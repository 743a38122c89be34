"""BM25 over segments, against bm25s and the formula itself; and any text at all."""

from __future__ import annotations

import json
import math
import random
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.scoring.lexical import (
    MAX_QUERY_TERMS,
    Lexical,
    LexicalSegment,
    LexicalSettings,
    LexicalWriter,
    parse_query,
)
from retrieval.scoring.tokens import Tokenizer

PLAIN = LexicalSettings(language="none")
CRANFIELD = Path(__file__).resolve().parents[4] / "shared/data/retrieval/cranfield"


def write(folder: Path, texts: Sequence[str], held: LexicalSettings = PLAIN) -> LexicalSegment:
    folder.mkdir()
    writer = LexicalWriter(held)
    for start in range(0, len(texts), 1000):
        writer.add(texts[start : start + 1000])
    assert writer.write(folder) == ["lexical.bin"]
    return LexicalSegment(folder)


def spread(folder: Path, texts: Sequence[str], num: int, held: LexicalSettings = PLAIN) -> list[LexicalSegment]:
    """The texts in `num` segments of unequal size, in order."""
    cuts = [len(texts) * i * i // (num * num) for i in range(num + 1)]
    return [write(folder / f"{num}-{i}", texts[cuts[i] : cuts[i + 1]], held) for i in range(num)]


def by_formula(texts: Sequence[str], query: Mapping[str, float], held: LexicalSettings) -> list[float]:
    """BM25 of each text, straight from the formula."""
    tokens = [Tokenizer(held.language).tokens(text) for text in texts]
    average = sum(map(len, tokens)) / max(len(tokens), 1)
    totals = []
    for each in tokens:
        total = 0.0
        for term, weight in query.items():
            df, tf = sum(term in other for other in tokens), each.count(term)
            if tf:
                idf = math.log(1 + (len(tokens) - df + 0.5) / (df + 0.5))
                total += weight * idf * tf / (tf + held.k1 * (1 - held.b + held.b * len(each) / average))
        totals.append(total)
    return totals


def zipfian(num: int, vocabulary: int = 400, seed: int = 0) -> list[str]:
    """Texts whose words are as unequally frequent as those of a language."""
    draw = random.Random(seed)
    weights = [1 / (rank + 1) for rank in range(vocabulary)]
    words = [f"w{rank}" for rank in range(vocabulary)]
    return [" ".join(draw.choices(words, weights, k=draw.randint(1, 40))) for _ in range(num)]


# Scores -------------------------------------------------------------------------------------------------------------


def test_scores_by_hand(tmp_path: Path) -> None:
    lexical = Lexical([write(tmp_path / "s", ["a b", "a a a c", "d"])], PLAIN)  # average length 7/3
    found = lexical.search("a", 10)
    idf = math.log(1 + 1.5 / 2.5)
    three = idf * 3 / (3 + 0.9 * (0.6 + 0.4 * 4 * 3 / 7))
    one = idf * 1 / (1 + 0.9 * (0.6 + 0.4 * 2 * 3 / 7))
    assert found.ids.tolist() == [1, 0]
    assert found.scores.tolist() == pytest.approx([three, one])
    assert lexical.upper_bound("a") == pytest.approx(idf)
    assert lexical.upper_bound("a unknown") == pytest.approx(idf)
    assert len(lexical.search("unknown", 10).ids) == 0


@pytest.mark.parametrize("held", [PLAIN, LexicalSettings(0.0, 0.0, "none"), LexicalSettings(2.0, 1.0, "none")])
def test_scores_and_ranking_are_those_of_bm25s(tmp_path: Path, held: LexicalSettings) -> None:
    bm25s = pytest.importorskip("bm25s")
    texts = zipfian(2000)
    rival = bm25s.BM25(method="lucene", k1=held.k1, b=held.b)
    rival.index([text.split() for text in texts], show_progress=False)
    lexical = Lexical(spread(tmp_path, texts, 4, held), held)
    starts = np.cumsum([0] + [segment.num_passages for segment in lexical._segments])
    for query in zipfian(40, seed=1):
        # bm25s counts a repeated word of the query as often as it stands there, too
        scores = rival.get_scores([word for word in query.split() if word in rival.vocab_dict])
        found = lexical.search(query, 20)
        numbers = starts[found.segments] + found.ids
        np.testing.assert_allclose(found.scores, np.sort(scores)[::-1][:20], rtol=1e-4)
        np.testing.assert_allclose(found.scores, scores[numbers], rtol=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=12).map(" ".join), max_size=30),
    words=st.lists(st.sampled_from("abcdefghz"), max_size=6),
    cut=st.integers(0, 30),
    k=st.integers(1, 12),
    hidden=st.sets(st.integers(0, 29)),
)
def test_search_is_the_formula(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], words: list[str], cut: int, k: int, hidden: set[int]
) -> None:
    folder = tmp_path_factory.mktemp("lexical")
    cut = min(cut, len(texts))
    segments = [write(folder / "0", texts[:cut]), write(folder / "1", texts[cut:])]
    lexical = Lexical(segments, PLAIN)
    query = parse_query(" ".join(words), settings=PLAIN)
    scores = by_formula(texts, query, PLAIN)
    hidden = {i for i in hidden if i < len(texts)}
    deleted = [
        np.array(sorted(i for i in hidden if i < cut), dtype=np.uint32),
        np.array(sorted(i - cut for i in hidden if i >= cut), dtype=np.uint32),
    ]
    found = lexical.search(query, k, deleted=deleted)
    numbers = [int(i) + cut * int(segment) for segment, i in zip(found.segments, found.ids, strict=True)]
    expected = sorted((-score, i) for i, score in enumerate(scores) if score > 0 and i not in hidden)
    assert found.scores.tolist() == pytest.approx([-score for score, _ in expected[:k]], rel=1e-5)
    assert [scores[i] for i in numbers] == pytest.approx([-score for score, _ in expected[:k]], rel=1e-5)
    assert not hidden & set(numbers)
    assert len(set(numbers)) == len(numbers)
    given_ids = [np.arange(cut)[::-1], np.arange(len(texts) - cut)]
    own = lexical.score(query, given_ids)
    assert [*own[0][::-1].tolist(), *own[1].tolist()] == pytest.approx(scores, rel=1e-5)
    assert all(score <= lexical.upper_bound(query) * (1 + 1e-6) for score in scores)


def test_segments_change_nothing(tmp_path: Path) -> None:
    texts = zipfian(6000)
    whole, parts = Lexical(spread(tmp_path, texts, 1), PLAIN), Lexical(spread(tmp_path, texts, 7), PLAIN)
    starts = np.cumsum([0] + [segment.num_passages for segment in parts._segments])
    for query in [*zipfian(30, seed=2), "w0 w1 w2", "w0", "w399 w0"]:
        for k in (1, 10, 100):
            one, many = whole.search(query, k), parts.search(query, k)
            assert one.ids.tolist() == (starts[many.segments] + many.ids).tolist()
            assert one.scores.tolist() == many.scores.tolist()  # to the last bit


def test_search_finds_what_scoring_everything_finds(tmp_path: Path) -> None:
    # The shortcuts of the search, and ties, against exhaustive scores of the same arithmetic.
    texts = zipfian(5000, vocabulary=60)
    lexical = Lexical(spread(tmp_path, texts, 3), PLAIN)
    everything = [np.arange(segment.num_passages) for segment in lexical._segments]
    rng = np.random.default_rng(0)
    for query in zipfian(30, vocabulary=60, seed=3):
        scores = lexical.score(query, everything)
        for masks in (None, [rng.random(len(ids)) < 0.5 for ids in everything], [ids[5:8] for ids in everything]):
            shown = [np.ones(len(ids), dtype=bool) for ids in everything]
            for number, mask in enumerate(masks or []):
                shown[number] = np.isin(everything[number], mask) if mask.dtype != bool else mask
            ranked = sorted(
                (-float(score), number, i)
                for number, each in enumerate(scores)
                for i, score in enumerate(each)
                if shown[number][i] and score > 0
            )
            found = lexical.search(query, 15, masks)
            assert [(-s, n, i) for n, i, s in zip(*(x.tolist() for x in found), strict=True)] == ranked[:15]


def test_equal_scores_come_in_order(tmp_path: Path) -> None:
    lexical = Lexical(spread(tmp_path, ["same words here"] * 3000, 3), PLAIN)
    found = lexical.search("words here", 800)
    pairs = list(zip(found.segments.tolist(), found.ids.tolist(), strict=True))
    assert len(pairs) == 800
    assert pairs == sorted(pairs)
    assert pairs[0] == (0, 0)


def test_words_repeated_beyond_255_count_255_times(tmp_path: Path) -> None:
    lexical = Lexical([write(tmp_path / "s", ["a " * 255 + "b " * 745, "a " * 1000, "c"])], PLAIN)
    scores = lexical.score("a", [np.array([0, 1])])[0].tolist()
    assert scores[0] == scores[1] > 0


def test_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    lexical = Lexical(spread(tmp_path, zipfian(4000), 2), PLAIN)
    queries = zipfian(30, seed=4)
    expected = [lexical.search(query, 10).ids.tolist() for query in queries]
    wrong: list[str] = []

    def work() -> None:
        for _ in range(5):
            for query, ids in zip(queries, expected, strict=True):
                if lexical.search(query, 10).ids.tolist() != ids:
                    wrong.append(query)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_real_texts_find_their_own_passage(tmp_path: Path) -> None:
    if not CRANFIELD.is_dir():
        pytest.skip("needs ../shared/data/retrieval/cranfield")
    lines = (CRANFIELD / "corpus.jsonl").read_text().splitlines()
    texts = [record["text"] for record in map(json.loads, lines) if len(record["text"]) > 200][:600]
    english = LexicalSettings()
    lexical = Lexical(spread(tmp_path, texts, 3, english), english)
    starts = np.cumsum([0] + [segment.num_passages for segment in lexical._segments])
    best = [lexical.search(text[:200], 1) for text in texts]
    right = sum(int(starts[f.segments[0]] + f.ids[0]) == i for i, f in enumerate(best))
    assert right >= 0.98 * len(texts)


# Files --------------------------------------------------------------------------------------------------------------


def test_the_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    texts = zipfian(500)
    first, second = LexicalWriter(PLAIN), LexicalWriter(PLAIN)
    first.add(texts)
    for text in texts:
        second.add([text])
    for name, writer in (("a", first), ("b", second)):
        (tmp_path / name).mkdir()
        writer.write(tmp_path / name)
    assert (tmp_path / "a/lexical.bin").read_bytes() == (tmp_path / "b/lexical.bin").read_bytes()


def test_many_passages_and_words(tmp_path: Path) -> None:
    # More than one run of the writer in passages (65,536) and terms (524,288), more terms than it remembers words.
    num = 80_000
    texts = [f"every n{i} m{i % 977} o{i % 13} p q r s" for i in range(num)]
    segment = write(tmp_path / "s", texts)
    started = [time.perf_counter()]
    for _ in range(5):
        LexicalSegment(tmp_path / "s")
        started.append(time.perf_counter())
    assert min(np.diff(started)) < 0.01  # opening does not depend on the size
    assert (segment.num_passages, segment.total_length) == (num, 8 * num)
    terms = [b"every", b"n79999", b"n65536", b"n0", b"m976", b"o12", b"nothing", b"n", b"zzz", b"", b"p"]
    found = {term: segment.docs[part].tolist() for term, part in zip(terms, segment.find(terms), strict=True)}
    assert found[b"every"] == found[b"p"] == list(range(num))
    assert (found[b"n79999"], found[b"n65536"], found[b"n0"]) == ([79_999], [65_536], [0])
    assert found[b"m976"] == list(range(976, num, 977))
    assert found[b"o12"] == list(range(12, num, 13))
    assert not found[b"nothing"] + found[b"n"] + found[b"zzz"] + found[b""]


def test_terms_with_the_same_beginning(tmp_path: Path) -> None:
    texts = ["abcdefgh", "abcdefghi", "abcdefghj abcdefghij", "abcdefg", "日本語", "日本人"]
    segment = write(tmp_path / "s", texts)
    for i, text in enumerate(texts[:4]):
        term = text.split()[0].encode()
        assert segment.docs[segment.find([term])[0]].tolist() == [i]
    assert [part.stop - part.start for part in segment.find([b"abcdefghz", b"abcdef", "日本".encode()])] == [0, 0, 2]


@pytest.mark.parametrize("texts", [[], [""], ["", "the of", "..."], ["", "word", ""]])
def test_little_or_nothing(tmp_path: Path, texts: list[str]) -> None:
    english = LexicalSettings()
    segment = write(tmp_path / "s", texts, english)
    assert segment.num_passages == len(texts)
    for segments in ([segment], [segment, segment], []):
        lexical = Lexical(segments, english)
        assert lexical.search("word", 3).ids.tolist() == [1 for _ in segments if "word" in texts]
        assert lexical.search("", 3).ids.tolist() == lexical.search("the", 3).ids.tolist() == []
        assert lexical.upper_bound("the") == 0


def test_files_that_are_not_ours(tmp_path: Path) -> None:
    write(tmp_path / "s", ["some text"])
    path = tmp_path / "s/lexical.bin"
    whole = path.read_bytes()
    for data, message in (
        (whole[:-1], "build the index again"),
        (whole + b"\0", "build the index again"),
        (whole[:40], "build the index again"),
        (b"x" * len(whole), "not of version"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            LexicalSegment(tmp_path / "s")


# Arguments ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be(tmp_path: Path) -> None:
    lexical = Lexical([write(tmp_path / "s", ["a", "b"])], PLAIN)
    with pytest.raises(ValueError, match="k is 0"):
        lexical.search("a", 0)
    with pytest.raises(ValueError, match="2 allowed for 1 segments"):
        lexical.search("a", 1, [None, None])
    with pytest.raises(ValueError, match="mask of shape"):
        lexical.search("a", 1, [np.ones(3, dtype=bool)])
    with pytest.raises(ValueError, match="passages 2 to 2"):
        lexical.search("a", 1, None, [np.array([2])])
    with pytest.raises(ValueError, match="k1 is -1"):
        LexicalSettings(k1=-1)
    with pytest.raises(ValueError, match=r"b is 1\.5"):
        LexicalSettings(b=1.5)
    with pytest.raises(ValueError, match=r"no stemmer for the language 'klingon'; known: none, .*english"):
        LexicalWriter(LexicalSettings(language="klingon"))


def test_queries_and_what_was_said_before() -> None:
    assert parse_query("bridge, Bridges! tower") == {"bridg": 2.0, "tower": 1.0}
    mixed = parse_query("and the tower?", "Who built the bridge? The bridge!")
    assert mixed == pytest.approx({"tower": 0.6, "built": 0.4, "bridg": 0.8})
    assert parse_query("tower", "  ") == {"tower": 1.0}
    long = parse_query(" ".join(f"x{i}" for i in range(100_000)) + " twice twice")
    assert len(long) == MAX_QUERY_TERMS
    assert next(iter(long.items())) == ("twice", 2.0)


def test_weights_scale_scores(tmp_path: Path) -> None:
    lexical = Lexical([write(tmp_path / "s", ["a b", "b c", "c a a"])], PLAIN)
    single = lexical.score({"a": 1.0}, [np.arange(3)])[0] * 0.85 + lexical.score({"c": 1.0}, [np.arange(3)])[0] * 0.15
    np.testing.assert_allclose(lexical.score({"a": 0.85, "c": 0.15}, [np.arange(3)])[0], single, rtol=1e-6)
    assert lexical.search({"a": 0.0}, 3).ids.tolist() == []


@settings(max_examples=150, deadline=None)
@given(text=st.text(), language=st.sampled_from(["english", "none", "german", "arabic"]))
def test_any_text_can_be_written_and_found(tmp_path_factory: pytest.TempPathFactory, text: str, language: str) -> None:
    held = LexicalSettings(language=language)
    tokenizer = Tokenizer(language)
    tokens = tokenizer.tokens(text)
    assert all(token and len(token) <= 64 and " " not in token for token in tokens)
    lexical = Lexical([write(tmp_path_factory.mktemp("any") / "s", ["other", text], held)], held)
    found = lexical.search(text, 2)
    assert (1 in found.ids.tolist()) == bool(tokens)

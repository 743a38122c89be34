"""What a screener thinks of each passage: kept with it, through every change of an index."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings, read_manifest
from retrieval.index.store import Store
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.screening import screened
from retrieval.writing.updating import update_index

SENTENCES = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))


class LengthScreener:
    """A text of n characters scores n / 1000, one with 'garden' cannot be judged. Counts what it was given."""

    name, fingerprint, encoder = "length", "1", "hash"

    def __init__(self, fingerprint: str = "1") -> None:
        self.fingerprint = fingerprint
        self.seen: list[str] = []

    def screen(self, texts: Sequence[str], vectors: NDArray[np.float32], encoder: str) -> NDArray[np.float32]:
        assert encoder == "hash"
        np.testing.assert_array_equal(vectors, HashEncoder().encode(texts))
        self.seen += texts
        return np.array([np.nan if "garden" in text else len(text) / 1000 for text in texts], dtype=np.float32)


def scores(index: Path) -> dict[str, float | None]:
    return {passage.id: passage.injection for _, passage in Store(index).live_passages()}


def expected(index: Path) -> dict[str, float | None]:
    store = Store(index)
    texts = {passage.id: store.segments[place[0]].text(place[1]) for place, passage in store.live_passages()}
    return {name: None if "garden" in text else pytest.approx(len(text) / 1000) for name, text in texts.items()}


@pytest.fixture
def docs(corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus, tmp_path / "docs"))


def test_a_build_screens_every_passage_once(docs: Path, tmp_path: Path) -> None:
    screener = LengthScreener()
    build_index([docs], tmp_path / "index", "hash", SENTENCES, screener=screener)
    assert len(screener.seen) == 60
    assert scores(tmp_path / "index") == expected(tmp_path / "index")
    hit = Retriever.open(tmp_path / "index").search(["castle number4"], 1)[0][0]
    assert hit.passage.injection is not None
    assert hit.passage.injection > 0.03


def test_without_a_screener_nobody_has_judged(index: Path) -> None:
    assert set(scores(index).values()) == {None}
    assert read_manifest(index).screener is None


def test_an_index_can_be_screened_later_and_only_what_is_new_is(docs: Path, tmp_path: Path) -> None:
    index, screener = tmp_path / "index", LengthScreener()
    build_index([docs], index, "hash", SENTENCES)
    manifest = screened(index, read_manifest(index), screener)
    again = screened(index, manifest, screener)
    assert again == manifest
    assert len(screener.seen) == 60
    other = screened(index, manifest, LengthScreener("2"))
    assert other.screener != manifest.screener
    assert other.segments[0].screened_file != manifest.segments[0].screened_file


def test_neighbours_shown_together_have_the_worst_score(docs: Path, tmp_path: Path) -> None:
    build_index([docs], tmp_path / "index", "hash", SENTENCES, screener=LengthScreener())
    alone = scores(tmp_path / "index")
    hit = Retriever.open(tmp_path / "index", reach=2).search(["tower number1"], 1)[0][0]
    assert hit.passage.text.count(".") > 1
    parts = [score for name, score in alone.items() if name.startswith(f"{hit.passage.source}#")]
    assert hit.passage.injection == max(score for score in parts if score is not None)


def test_every_change_keeps_the_scores(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index([docs], index, "hash", SENTENCES, screener=LengthScreener())
    delete_documents(index, [str(docs / "doc03.txt")])
    assert scores(index) == expected(index)
    (docs / "doc05.txt").write_text("A new mill.\n\nIt turns.\n")
    screener = LengthScreener()
    update_index(index, screener=screener)
    assert sorted(screener.seen) == ["Doc05. A new mill.", "Doc05. It turns."]
    assert scores(index) == expected(index)
    compact_index(index, LengthScreener())
    assert scores(index) == expected(index)
    assert len(list(index.glob("screened-*"))) == 1  # what the old segment had is swept


def test_damaged_scores_are_refused(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index([docs], index, "hash", SENTENCES, screener=LengthScreener())
    (file,) = index.glob("screened-*")
    content = bytearray(file.read_bytes())
    content[5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged \(screened-\w+\.f32: SHA-256"):
        Store(index)


@pytest.mark.parametrize("bad", [np.full(60, 1.5, np.float32), np.zeros((60, 1), np.float32), np.zeros(3, np.float32)])
def test_what_is_no_probability_ends_the_build(docs: Path, tmp_path: Path, bad: NDArray[np.float32]) -> None:
    class Broken(LengthScreener):
        def screen(self, texts: Sequence[str], vectors: NDArray[np.float32], encoder: str) -> NDArray[np.float32]:
            return bad

    with pytest.raises(ValueError, match="screener 'length' gave no probability"):
        build_index([docs], tmp_path / "index", "hash", SENTENCES, screener=Broken())
    assert not (tmp_path / "index" / "manifest.json").exists()

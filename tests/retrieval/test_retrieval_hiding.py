"""Searching as if passages were not there: against the hits that stay, an index without them, and the best cosine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from retrieval.encoders import HashEncoder
from retrieval.hiding import Without, without
from retrieval.index.manifest import IndexSettings
from retrieval.index.store import Store
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.several import SeveralIndexes
from retrieval.types import Hit, Searcher
from retrieval.writing.building import build_index
from retrieval.writing.removal import delete_documents

QUERY = "when was the bridge opened"


@pytest.fixture(scope="module")
def index(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the corpus that no test changes."""
    folder = tmp_path_factory.mktemp("hiding") / "index"
    build_index([corpus], folder, "hash", calibrate=False)
    return folder


def ids(hits: list[Hit]) -> list[str]:
    return [hit.passage.id for hit in hits]


class Plain:
    """A searcher that knows nothing of hidden passages."""

    floor = 0.3

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    def search(self, queries: list[str], k: int, contexts: list[str] | None = None) -> list[list[Hit]]:
        return self._searcher.search(queries, k, contexts)


@pytest.mark.parametrize("num_hidden", [0, 1, 3, 6])
def test_what_is_left_comes_in_its_order_and_only_it_counts_for_the_confidence(index: Path, num_hidden: int) -> None:
    retriever = Retriever.open(index)
    whole = retriever.search([QUERY], 30)[0]
    hidden = ids(whole)[:num_hidden]
    (left,) = retriever.without(hidden).search([QUERY], 5)
    assert ids(left) == [name for name in ids(whole) if name not in hidden][:5]
    assert not num_hidden or set(ids(left)).isdisjoint(hidden)
    query = HashEncoder().encode([QUERY])[0]
    cosines = {
        p.id: float(s.vectors[i] @ query) for s in Store(index).segments for i in range(len(s)) for p in [s.passage(i)]
    }
    best = max(cosine for name, cosine in cosines.items() if name not in hidden)
    assert left[0].confidence == pytest.approx(best, abs=1e-5), "without a calibration it is the best cosine"


def test_it_is_as_if_the_documents_were_deleted(corpus: Path, index: Path, tmp_path: Path) -> None:
    documents = list(
        dict.fromkeys(name.rpartition("#")[0] for name in ids(Retriever.open(index).search([QUERY], 3)[0]))
    )
    hidden = [p.id for _, p in Store(index).live_passages() if p.id.rpartition("#")[0] in documents]
    (left,) = Retriever.open(index).without(hidden).search([QUERY], 3)
    build_index([corpus], tmp_path / "less", "hash", calibrate=False)
    delete_documents(tmp_path / "less", documents)
    (deleted,) = Retriever.open(tmp_path / "less").search([QUERY], 3)
    assert left[0].confidence == pytest.approx(deleted[0].confidence, abs=1e-6)
    assert ids(left)[0] == ids(deleted)[0]


def test_no_neighbour_that_is_shown_beside_a_hit_is_hidden(tmp_path: Path) -> None:
    lines = [f"The stone bridge number {n} of the town was opened in 18{n:02}." for n in range(10, 15)]
    (tmp_path / "bridges.txt").write_text(" ".join(lines))
    settings = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))
    build_index([tmp_path / "bridges.txt"], tmp_path / "index", "hash", settings=settings, calibrate=False)
    wide = Retriever.open(tmp_path / "index", reach=4)
    asked = "when was the stone bridge number 12 of the town opened"
    (whole,) = wide.search([asked], 1)
    assert whole[0].passage.text == " ".join(lines), "all are near one another"
    (left,) = wide.without([p.id for _, p in Store(tmp_path / "index").live_passages() if p.text == lines[1]]).search(
        [asked], 1
    )
    assert left[0].passage.text == " ".join(lines[2:])


def test_conditions_and_hidden_passages_hold_together_and_nothing_changes_for_the_first_one(index: Path) -> None:
    retriever = Retriever.open(index)
    before = ids(retriever.search([QUERY], 4)[0])
    fewer = retriever.without(before[:1]).without(before[1:2])
    assert ids(fewer.search([QUERY], 2)[0]) == before[2:4]
    assert ids(retriever.search([QUERY], 4)[0]) == before


def test_several_indexes_leave_them_out_each_in_its_way(index: Path) -> None:
    retriever = Retriever.open(index)
    names = ids(retriever.search([QUERY], 3)[0])
    both = without(SeveralIndexes([retriever, Plain(retriever)]), names[:1])
    assert isinstance(both, SeveralIndexes)
    assert names[0] not in ids(both.search([QUERY], 6)[0])
    assert names[1] in ids(both.search([QUERY], 6)[0])


def test_a_searcher_that_cannot_hide_keeps_its_confidence(index: Path) -> None:
    retriever = Retriever.open(index)
    whole = retriever.search([QUERY], 3)[0]
    other = without(Plain(retriever), ids(whole)[:1])
    assert isinstance(other, Without)
    (left,) = other.search([QUERY], 2)
    assert ids(left) == ids(whole)[1:]
    np.testing.assert_allclose([hit.confidence for hit in left], whole[0].confidence)
    assert other.floor == Plain.floor

"""Build, update, delete, compact: what an index holds after each, and what it costs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.documents import find_files
from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings
from retrieval.index.store import Store
from retrieval.passages import SplitSettings, embedding_text
from retrieval.retriever import Retriever
from retrieval.scoring.fusion import UNRELATED
from retrieval.writing.building import build_index
from retrieval.writing.compaction import merged_segments
from retrieval.writing.pool import VectorPool
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.runners import RunInProcesses
from retrieval.writing.shards import Shard, write_shard
from retrieval.writing.updating import update_index

Content = dict[str, tuple[str, str, int, int, bytes]]


def content(index: Path) -> Content:
    """By passage id all that is stored of it, its vector checked against its text."""
    store = Store(index)
    found: Content = {}
    for (number, i), passage in store.live_passages():
        vector = store.segments[number].vectors[i]
        np.testing.assert_allclose(vector, HashEncoder().encode([embedding_text(passage)])[0], atol=1e-6)
        assert passage.id not in found
        found[passage.id] = (passage.text, passage.title, passage.start, passage.end, vector.tobytes())
    assert len(found) == len(store) == store.manifest.num_passages
    documents = {passage.rpartition("#")[0] for passage in found}
    assert store.manifest.num_documents == len(documents)
    return found


class Counting(HashEncoder):
    """Remembers what it was asked to encode."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += [text for text in texts if text not in UNRELATED]
        return super().encode(texts)


@pytest.fixture
def docs(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the corpus that a test may change."""
    return Path(shutil.copytree(corpus, tmp_path / "docs"))


def build(docs: Path, index: Path, encoder: HashEncoder | None = None) -> None:
    build_index([docs], index, encoder or HashEncoder(), calibrate=False)


def test_an_update_encodes_only_what_is_new(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    before = content(index)
    (docs / "doc03.txt").write_text("The harbour was closed in 1999.\n")
    (docs / "doc05.txt").unlink()
    (docs / "new.txt").write_text("An opera house was opened in 2001.\n")
    encoder = Counting()
    report = update_index(index, encoder=encoder)
    assert (report.num_read, report.num_unchanged, report.num_removed, report.num_new_passages) == (2, 18, 1, 2)
    assert encoder.texts == ["Doc03. The harbour was closed in 1999.", "New. An opera house was opened in 2001."]
    after = content(index)
    changed = {f"{docs}/doc03.txt#0", f"{docs}/doc05.txt#0", f"{docs}/new.txt#0"}
    assert {name: held for name, held in after.items() if name not in changed} == {
        name: held for name, held in before.items() if name not in changed
    }
    assert after[f"{docs}/doc03.txt#0"][0] == "The harbour was closed in 1999."
    assert f"{docs}/doc05.txt#0" not in after

    again = update_index(index, encoder=encoder)
    assert (again.num_read, again.num_unchanged, again.num_removed, len(encoder.texts)) == (0, 20, 0, 2)


def test_of_a_changed_file_only_new_passages_are_encoded(tmp_path: Path) -> None:
    docs, index = tmp_path / "docs", tmp_path / "index"
    docs.mkdir()
    paragraphs = [
        " ".join(f"Sentence {i} of paragraph {n} is long enough to stand." for i in range(6)) for n in range(9)
    ]
    (docs / "long.txt").write_text("\n\n".join(paragraphs))
    build(docs, index)
    sentences = [f"Another sentence {i} stands in this paragraph now, and it is long enough too." for i in range(3)]
    paragraphs[4] = " ".join(sentences)
    (docs / "long.txt").write_text("\n\n".join(paragraphs))
    encoder = Counting()
    update_index(index, encoder=encoder)
    assert encoder.texts == [f"Long. {paragraphs[4]}"]
    rebuilt = tmp_path / "rebuilt"
    build(docs, rebuilt)
    assert content(index) == content(rebuilt)


def test_building_again_encodes_nothing(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    before = content(index)
    encoder = Counting()
    build(docs, index, encoder)
    assert encoder.texts == []
    assert content(index) == before


def test_an_update_from_a_folder_of_the_sources_leaves_the_rest(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    (docs / "part").mkdir()
    for name in ("one", "two"):
        (docs / "part" / f"{name}.txt").write_text(f"This is {name}.")
    build(docs, index)
    (docs / "part" / "one.txt").unlink()
    (docs / "doc00.txt").unlink()
    assert update_index(index, [docs / "part"]).num_removed == 1
    assert f"{docs}/doc00.txt#0" in content(index)
    assert update_index(index).num_removed == 1
    assert f"{docs}/doc00.txt#0" not in content(index)


def test_a_source_file_that_is_gone_is_removed_but_a_missing_folder_is_an_error(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build_index([docs, tmp_path / "extra.txt"], index, "hash", calibrate=False) if (
        (tmp_path / "extra.txt").write_text("Extra words.")
    ) else None
    (tmp_path / "extra.txt").unlink()
    assert update_index(index).num_removed == 1
    held = content(index)
    shutil.rmtree(docs)
    with pytest.raises(ValueError, match="does not exist"):
        update_index(index)
    assert content(index) == held


def test_a_changed_file_that_cannot_be_read_keeps_its_passages(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    before = content(index)
    (docs / "doc07.txt").write_bytes(b"\0\1\2" * 100)
    report = update_index(index)
    assert [source for source, _ in report.skipped] == [f"{docs}/doc07.txt"]
    assert content(index) == before


def test_relative_sources_want_the_same_folder(docs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_index(["docs"], "index", "hash", calibrate=False)
    assert "docs/doc00.txt#0" in content(tmp_path / "index")
    monkeypatch.chdir(docs)
    with pytest.raises(ValueError, match=r"was built from docs in .*; run this there, or name the documents"):
        update_index(tmp_path / "index")


def test_deleted_documents_are_gone_at_once_and_stay_away(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    retriever = Retriever.open(index)  # opened before
    query = "The castle number4"
    assert retriever.search([query], 1)[0][0].passage.source == f"{docs}/doc04.txt"
    report = delete_documents(index, [f"{docs}/doc04.txt", f"{docs}/doc1*"])
    assert (report.num_removed, report.num_documents) == (11, 9)
    sources = {hit.passage.source for hit in retriever.search([query], 50)[0]}
    assert sources == {f"{docs}/doc{i:02}.txt" for i in (0, 1, 2, 3, 5, 6, 7, 8, 9)}
    assert update_index(index).num_read == 0
    (docs / "doc04.txt").write_text("Another castle.")
    assert update_index(index).num_read == 0
    assert update_index(index, [docs / "doc04.txt"]).num_read == 1
    assert content(index)[f"{docs}/doc04.txt#0"][0] == "Another castle."


def test_deleting_what_is_not_there_changes_nothing(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    before = (index / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="'nowhere' fits no document of index"):
        delete_documents(index, [f"{docs}/doc04.txt", "nowhere"])
    assert (index / "manifest.json").read_bytes() == before


def test_everything_can_be_deleted(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    delete_documents(index, [str(docs)])
    retriever = Retriever.open(index)
    assert (len(Store(index)), retriever.search(["castle"], 3)) == (0, [[]])
    compact_index(index)
    assert Retriever.open(index).search(["castle"], 3) == [[]]
    assert update_index(index, [docs]).num_documents == 20


def test_compacting_changes_no_content_and_leaves_one_segment(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    for i in range(4):
        (docs / f"more{i}.txt").write_text(f"More words of document {i}.\n\nAnd a paragraph.")
        update_index(index)
    delete_documents(index, [f"{docs}/doc1*", f"{docs}/more2.txt"])
    before = content(index)
    queries = ["more words of document", "The castle number4 opened", "museum"]
    hits = Retriever.open(index).search(queries, 5)
    assert len(Store(index).segments) == 4  # nothing of more2.txt's is left
    report = compact_index(index)
    assert content(index) == before
    assert (len(Store(index).segments), Store(index).manifest.num_deleted, report.num_removed) == (1, 0, 10)
    fresh = tmp_path / "fresh"
    shutil.rmtree(docs / "nothing", ignore_errors=True)
    for name in [*docs.glob("doc1*"), docs / "more2.txt"]:
        name.unlink()
    build(docs, fresh)
    # Deleted passages no longer count in the statistics of words: scores are those of a fresh build.
    again = Retriever.open(index).search(queries, 5)
    assert [[hit.passage.id for hit in row] for row in again] == [
        [hit.passage.id for hit in row] for row in Retriever.open(fresh).search(queries, 5)
    ]
    assert {hit.passage.id for row in hits for hit in row} <= set(before)
    assert sorted(path.name for path in index.iterdir() if "deleted" in path.name) == []


def test_compacting_respects_the_size_of_segments(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    for i in range(6):
        (docs / f"more{i}.txt").write_text(f"More words of document {i}.")
        update_index(index)
    sizes = [segment.num_passages for segment in merged_segments(Store(index), max_passages=3)]
    assert sizes == [20, 3, 3]


def test_workers_give_the_same_content(docs: Path, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    build(docs, alone)
    report = build_index([docs], together, "hash", calibrate=False, run=RunInProcesses(2))
    assert content(together) == content(alone)
    assert len(Store(together).segments) > 1
    assert report.num_read == 20
    rows = [
        Retriever.open(each).search(["when was the castle number4 opened", "museum"], 5) for each in (alone, together)
    ]
    for left, right in zip(*rows, strict=True):
        assert [hit.passage for hit in left] == [hit.passage for hit in right]
        np.testing.assert_allclose([hit.score for hit in left], [hit.score for hit in right], rtol=1e-5)


def test_a_shard_is_cut_into_segments_between_documents(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    index.mkdir()
    lines = [f'{{"id": "r{i}", "title": "T{i}", "text": "Record number {i}."}}' for i in range(50)]
    (docs / "records.jsonl").write_text("\n".join(lines))
    files = find_files([docs], lambda *_: None)
    shard = Shard(str(index), "key", 0, tuple(files), IndexSettings(), max_passages=16)
    result = write_shard(shard, HashEncoder(), VectorPool(256))
    assert [info.num_passages for info in result.segments] == [16, 16, 16, 16, 6]
    # Run again as if killed before the third segment was whole: the first two are taken as they are.
    names = [info.name for info in result.segments]
    stamps = {name: (index / name / "segment.json").stat().st_mtime_ns for name in names}
    (index / names[2] / "segment.json").unlink()
    for name in names[3:]:
        shutil.rmtree(index / name)
    again = write_shard(shard, HashEncoder(), VectorPool(256))
    assert [info.num_passages for info in again.segments] == [16, 16, 16, 16, 6]
    assert [info.files for info in again.segments] == [info.files for info in result.segments]
    kept = [name for name in names if stamps[name] == (index / name / "segment.json").stat().st_mtime_ns]
    assert kept == names[:2]


def test_one_writer_at_a_time(docs: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    build(docs, index)
    code = "import sys, time; from pathlib import Path; from retrieval.index.store import writing\n"
    code += "with writing(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)\n"
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", code, index], stdout=subprocess.PIPE, cwd=root) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        for change in (
            lambda: build(docs, index),
            lambda: update_index(index),
            lambda: delete_documents(index, ["x"]),
            lambda: compact_index(index),
        ):
            with pytest.raises(ValueError, match=rf"another process \(pid {holder.pid}\) is writing to"):
                change()
        assert len(Retriever.open(index).search(["castle"], 3)[0]) == 3
        holder.kill()
    compact_index(index)


def test_a_long_passage_is_bounded_in_tokens(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(" ".join(f"word{i}" for i in range(3000)) + ".")
    settings_ = IndexSettings(split=SplitSettings(max_chars=5000, max_tokens=40))
    build_index([tmp_path / "long.txt"], tmp_path / "index", "hash", settings_, calibrate=False)
    passages = [passage.text for _, passage in Store(tmp_path / "index").live_passages()]
    assert max(HashEncoder().count_tokens(passages)) <= 40
    assert " ".join(passages).split() == (tmp_path / "long.txt").read_text().split()


WORDS = st.sampled_from(["castle", "river", "tower", "garden", "opened", "1804", "wide"])
TEXT = st.lists(st.lists(WORDS, min_size=1, max_size=8).map(" ".join), min_size=1, max_size=3).map(
    lambda paragraphs: "\n\n".join(f"The {paragraph}." for paragraph in paragraphs)
)
NAME = st.sampled_from(["a.txt", "b.txt", "c/d.txt", "c/e.md", "f.txt"])
STEP = st.one_of(
    st.tuples(st.just("write"), NAME, TEXT),
    st.tuples(st.just("remove"), NAME),
    st.tuples(st.just("update")),
    st.tuples(st.just("delete"), NAME),
    st.tuples(st.just("compact")),
    st.tuples(st.just("build")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=14))
def test_any_series_of_changes_ends_as_a_fresh_build_would(steps: list[tuple[str, ...]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        docs, index = Path(scratch) / "docs", Path(scratch) / "index"
        (docs / "c").mkdir(parents=True)
        (docs / "always.txt").write_text("This one is always there.")
        build(docs, index)
        deleted: set[str] = set()
        for name, *arguments in steps:
            apply(name, arguments, docs, index, deleted)
        update_index(index)
        for source in deleted:
            (docs / source).unlink(missing_ok=True)
        build(docs, Path(scratch) / "fresh")
        assert content(index) == content(Path(scratch) / "fresh")


def apply(name: str, arguments: list[str], docs: Path, index: Path, deleted: set[str]) -> None:
    changes: dict[str, Callable[[], object]] = {
        "write": lambda: (docs / arguments[0]).write_text(arguments[1]),
        "remove": lambda: (docs / arguments[0]).unlink(missing_ok=True),
        "update": lambda: update_index(index),
        "compact": lambda: compact_index(index),
        "build": lambda: build(docs, index),
    }
    if name == "build":
        deleted.clear()
    if name in changes:
        changes[name]()
        return
    source = f"{docs}/{arguments[0]}"
    if source in Store(index).files():
        delete_documents(index, [source])
        deleted.add(arguments[0])

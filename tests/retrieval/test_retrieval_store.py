"""The index on disk: what is refused, and that no kill or race can break it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.files import write_json
from retrieval.build import build_index
from retrieval.encoders import HashEncoder
from retrieval.manifest import MANIFEST, EncoderInfo, read_manifest
from retrieval.passages import SplitSettings
from retrieval.store import Store, write_index
from retrieval.types import Passage
from retrieval.vectors import Vectors, VectorWriter

MakeDocuments = Callable[[Path, int], Path]


def segment(index: Path) -> Path:
    return index / read_manifest(index).segment


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def edit_manifest(index: Path, **changes: object) -> None:
    content = json.loads((index / MANIFEST).read_text())
    write_json(index / MANIFEST, {**content, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    passages = [Passage(f"ä#{i}", f"text {i} \n\u2028 😀 {'x' * i}", "Tïtle", "ä.md", i + 1, i + 2) for i in range(50)]
    vectors = HashEncoder().encode([passage.text for passage in passages])
    info = EncoderInfo("hash", "print", 256)
    with write_index(tmp_path / "new" / "index", 256) as writer:
        writer.add(passages[:20], vectors[:20])
        writer.add(passages[20:], vectors[20:])
        writer.commit(info, SplitSettings(window=2, stride=1), 0.25, 7)
    store = Store(tmp_path / "new" / "index")
    assert [store.passage(i) for i in range(len(store))] == passages
    assert (store.manifest.encoder, store.manifest.settings) == (info, SplitSettings(window=2, stride=1))
    assert (store.manifest.floor, store.manifest.num_documents, store.manifest.num_passages) == (0.25, 7, 50)


@pytest.mark.parametrize("factory", ["Flat", "SQfp16", "HNSW32"])
def test_vector_search_agrees_with_numpy(tmp_path: Path, factory: str) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    writer = VectorWriter(32, factory)
    writer.add(vectors[:100])
    writer.add(vectors[100:])
    writer.write(tmp_path / "vectors")
    found = Vectors(tmp_path / "vectors").search(vectors[:40], 10)
    scores = vectors[:40] @ vectors.T
    best = np.argsort(-scores, axis=1)[:, :10]
    for row, ids, exact in zip(found, best, scores, strict=True):
        if factory == "Flat":
            assert [i for i, _ in row] == ids.tolist()
        assert row[0][0] == ids[0]
        np.testing.assert_allclose([score for _, score in row], [exact[i] for i, _ in row], atol=2e-3)
    assert len(Vectors(tmp_path / "vectors").search(vectors[:1], 10**6)[0]) <= 300


def test_missing_hits_are_dropped(tmp_path: Path) -> None:
    import faiss

    index = faiss.IndexIDMap(faiss.IndexFlatIP(4))  # fewer vectors than ids asked for: Faiss fills up with -1
    faiss.write_index(index, str(tmp_path / "empty"))
    vectors = Vectors(tmp_path / "empty")
    assert len(vectors) == 0
    index = faiss.index_factory(4, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(np.eye(4, dtype=np.float32).repeat(20, axis=0))
    index.add(np.eye(4, dtype=np.float32))
    faiss.write_index(index, str(tmp_path / "lists"))
    found = Vectors(tmp_path / "lists").search(np.eye(4, dtype=np.float32), 4)
    assert all(0 < len(row) < 4 and all(i >= 0 for i, _ in row) for row in found)


@pytest.mark.parametrize(("factory", "message"), [("IVF4,Flat", "needs training"), ("nonsense", "knows no index")])
def test_factories_that_cannot_be_used(tmp_path: Path, corpus: Path, factory: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_index([corpus], tmp_path / "index", "hash", factory=factory)
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("name", ["passages.jsonl", "offsets.npy", "vectors.faiss"])
def test_a_changed_byte_anywhere_is_found(index: Path, name: str) -> None:
    path = segment(index) / name
    size = path.stat().st_size
    for position in (0, 1, size // 3, size // 2, size - 1):
        flip(path, position)
        with pytest.raises(
            ValueError, match=rf"is damaged \({name}: SHA-256 differs from the manifest\); rebuild it with:"
        ):
            Store(index)
        flip(path, position)
    Store(index)


def test_a_changed_byte_of_the_manifest_is_found_or_means_nothing(index: Path) -> None:
    before = read_manifest(index)
    for position in range(0, (index / MANIFEST).stat().st_size, 7):
        flip(index / MANIFEST, position)
        try:
            after = read_manifest(index)
        except ValueError as error:
            assert str(index) in str(error)  # noqa: PT017 (that it raises is not certain: a space may become a '0')
        else:
            assert after == before
        flip(index / MANIFEST, position)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda index: (segment(index) / "offsets.npy").unlink(), "offsets.npy: missing"),
        (
            lambda index: (segment(index) / "vectors.faiss").write_bytes(b""),
            "vectors.faiss: 0 bytes, the manifest says",
        ),
        (lambda index: (index / MANIFEST).write_text(""), "manifest.json: .*not JSON"),
        (lambda index: (index / MANIFEST).write_text("[]"), "manifest.json: it is not a JSON object"),
        (lambda index: (index / MANIFEST).write_text("{}"), "manifest.json: 'format_version'"),
        (lambda index: (index / MANIFEST).write_bytes(b"\xff"), "manifest.json: .*not UTF-8"),
        (lambda index: edit_manifest(index, floor=0.9), "its content differs from its checksum"),
        (lambda index: edit_manifest(index, format_version="1"), "its format_version is '1'"),
    ],
)
def test_other_damage(index: Path, corpus: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(index)
    with pytest.raises(ValueError, match=message) as error:
        Store(index)
    assert f"rebuild it with: python -m retrieval build DOCUMENTS --index {index}" in str(error.value)
    build_index([corpus], index, "hash")
    Store(index)


def test_a_manifest_cannot_name_a_folder_elsewhere(index: Path) -> None:
    content = {**json.loads((index / MANIFEST).read_text()), "segment": "../elsewhere"}
    del content["checksum"]
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    write_json(index / MANIFEST, {**content, "checksum": checksum})
    with pytest.raises(ValueError, match=r"'\.\./elsewhere' is no segment name"):
        Store(index)


def test_a_newer_format_is_refused_but_not_called_damaged(index: Path) -> None:
    edit_manifest(index, format_version=2, something="new")
    with pytest.raises(ValueError, match="has format 2, and this version of Parley reads up to 1; update Parley"):
        Store(index)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no index in '.*nothing'; build it with: python -m retrieval build"):
        Store(tmp_path / "nothing")


def test_a_folder_with_other_things_is_never_built_into(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("precious")
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / MANIFEST).write_text('{"name": "a web application"}')
    (tmp_path / "number").mkdir()
    (tmp_path / "number" / MANIFEST).write_text("12")
    (tmp_path / "file").write_text("precious")
    for name, message in (
        ("folder", r"holds no index \(but thesis.txt\)"),
        ("web", "but manifest.json"),
        ("number", "but manifest.json"),
        ("file", "is a file"),
    ):
        with pytest.raises(ValueError, match=message):
            build_index([corpus], tmp_path / name, "hash")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "precious"


def test_a_build_that_fails_leaves_nothing(tmp_path: Path, corpus: Path, index: Path) -> None:
    before = sorted(index.rglob("*"))
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "a.txt").write_text("Good.")
    (tmp_path / "b.txt").write_bytes(b"\0")
    for target in (index, tmp_path / "new"):
        with pytest.raises(ValueError, match="not text"):
            build_index([bad, tmp_path / "b.txt"], target, "hash")
    assert sorted(index.rglob("*")) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["/proc/nothing/index", "{file}/index"])
def test_a_place_that_cannot_be_written(tmp_path: Path, corpus: Path, place: str) -> None:
    target = place.format(file=corpus / "doc00.txt")
    with pytest.raises(ValueError, match=f"cannot write index '{target}'"):
        build_index([corpus], target, "hash")


def test_vectors_of_another_shape_are_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"shape \(1, 8\); 0 passages need 256 columns"),
        write_index(tmp_path / "index", 256) as writer,
    ):
        writer.add([], np.zeros((1, 8), dtype=np.float32))


def test_a_rebuild_replaces_the_content_and_keeps_other_files(
    tmp_path: Path, index: Path, make_documents: MakeDocuments
) -> None:
    (index / "notes.txt").write_text("mine")
    old = segment(index)
    reader = Store(index)
    build_index([make_documents(tmp_path / "other", 3)], index, "hash")
    assert not old.exists()
    assert Store(index).manifest.num_documents == 3
    assert (index / "notes.txt").read_text() == "mine"
    assert reader.passage(0).text  # opened before, and still readable


def test_only_one_build_at_a_time(index: Path, corpus: Path) -> None:
    with write_index(index, 256), pytest.raises(ValueError, match="another build is writing to"):
        build_index([corpus], index, "hash")
    Store(index)


def test_killed_at_any_step_a_build_leaves_the_old_index_or_the_new_one(
    tmp_path: Path, make_documents: MakeDocuments
) -> None:
    old, new = make_documents(tmp_path / "old", 5), make_documents(tmp_path / "new", 7)
    command = [
        sys.executable,
        str(Path(__file__).parent / "kill_points.py"),
        str(old),
        str(new),
        str(tmp_path / "index"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    found = result["found"]
    assert len(found) > 10
    assert found == sorted(found)  # 5 documents until the commit, 7 from then on
    assert set(found) == {5, 7}
    assert result["left"] == [MANIFEST, "segment"]


def test_a_reader_never_fails_while_builds_replace_the_index(
    tmp_path: Path, index: Path, make_documents: MakeDocuments
) -> None:
    other = make_documents(tmp_path / "other", 3)
    stop = threading.Event()

    def rebuild() -> None:
        while not stop.is_set():
            build_index([other], index, "hash")

    builder = threading.Thread(target=rebuild)
    builder.start()
    try:
        for _ in range(100):
            store = Store(index)
            assert store.passage(len(store) - 1).text
    finally:
        stop.set()
        builder.join()

"""Dense search over segments, exact and compressed, against brute force."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.encoders import HashEncoder
from retrieval.scoring.found import Found
from retrieval.scoring.vectors import Dense, DenseSegment, VectorFile, build_ann, choose_factory

Vectors = NDArray[np.float32]
DIM = 32


def clustered(num: int, dim: int = DIM, seed: int = 0) -> Vectors:
    """Unit vectors in groups, as those of texts are."""
    centres = np.random.default_rng(0).standard_normal((50, dim))
    rng = np.random.default_rng([1, seed])
    vectors = centres[rng.integers(0, len(centres), num)] + 0.7 * rng.standard_normal((num, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def segment(folder: Path, vectors: Vectors, factory: str = "Flat", name: str = "s") -> DenseSegment:
    path, ann = folder / f"{name}.f32", folder / f"{name}.faiss"
    path.write_bytes(vectors.astype("<f4").tobytes())
    written = build_ann(vectors, factory, ann)
    assert written == ann.is_file()
    return DenseSegment(path, ann if written else None, vectors.shape[1], factory)


def numbers(found: Found, sizes: Sequence[int]) -> list[int]:
    """Ids as if all segments were one."""
    starts = np.cumsum([0, *sizes])
    return [int(starts[number] + i) for number, i in zip(found.segments, found.ids, strict=True)]


def check(found: Found, vectors: Vectors, query: Vectors, sizes: Sequence[int]) -> None:
    """What holds of every answer: scores are exact cosines, best first, no passage twice."""
    ids = numbers(found, sizes)
    assert len(set(ids)) == len(ids)
    np.testing.assert_allclose(found.scores, vectors[ids] @ query, atol=1e-5)
    assert (np.diff(found.scores) <= 0).all()


def recall(found: Sequence[Found], vectors: Vectors, queries: Vectors, sizes: Sequence[int], k: int) -> float:
    best = np.argsort(-(queries @ vectors.T), axis=1)[:, :k]
    return float(np.mean([len(set(numbers(f, sizes)) & set(b.tolist())) / k for f, b in zip(found, best, strict=True)]))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, list[DenseSegment], list[int]]:
    """Two compressed segments and an exact one."""
    folder = tmp_path_factory.mktemp("large")
    vectors, sizes = clustered(24_000), [11_000, 12_000, 1000]
    parts = np.split(vectors, np.cumsum(sizes)[:-1])
    kinds = ("PQfs", "PQfs", "Flat")
    return vectors, [segment(folder, parts[i], kinds[i], str(i)) for i in range(3)], sizes


# Exact --------------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    k=st.integers(1, 30),
    seed=st.integers(0, 1000),
    hidden=st.sets(st.integers(0, 79)),
    as_mask=st.booleans(),
)
def test_search_is_brute_force(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], k: int, seed: int, hidden: set[int], as_mask: bool
) -> None:
    folder = tmp_path_factory.mktemp("dense")
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-2, 3, (sum(sizes), 4)).astype(np.float32)  # small whole numbers: many ties, no rounding
    parts = np.split(vectors, np.cumsum(sizes)[:-1])
    dense = Dense([segment(folder, part, name=str(i)) for i, part in enumerate(parts)])
    queries = rng.integers(-2, 3, (3, 4)).astype(np.float32)
    shown = [np.array([i not in hidden for i in range(size)], dtype=bool) for size in sizes]
    deleted = None if as_mask else [np.flatnonzero(~mask).astype(np.uint32) for mask in shown]
    for query, found in zip(queries, dense.search(queries, k, shown if as_mask else None, deleted), strict=True):
        ranked = sorted(
            (-float(part[i] @ query), number, i)
            for number, part in enumerate(parts)
            for i in range(len(part))
            if shown[number][i]
        )
        assert [(-s, n, i) for n, i, s in zip(*(x.tolist() for x in found), strict=True)] == ranked[:k]
    own = dense.score(queries[0], [np.arange(size)[::-1] for size in sizes])
    for scores, part in zip(own, parts, strict=True):
        np.testing.assert_array_equal(scores, (part @ queries[0])[::-1])


def test_texts_find_themselves(tmp_path: Path) -> None:
    encoder = HashEncoder(8192)
    vectors = encoder.encode([f"number {i} of many" for i in range(500)])
    dense = Dense([segment(tmp_path, vectors[:200], name="a"), segment(tmp_path, vectors[200:], name="b")])
    found = dense.search(vectors, 1)
    assert sum(numbers(f, [200, 300]) == [i] for i, f in enumerate(found)) > 450  # a few share a hash
    assert dense.search(vectors[:0], 1) == []
    assert [len(f.ids) for f in Dense([]).search(vectors[:2], 3)] == [0, 0]


# Compressed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["PQfs", "RaBitQfs", "SQ8", "HNSW16", "IVF32,Flat", "PCA16,SQ8", "PQ16x4fs,RFlat"])
def test_compressed_search_finds_the_best(tmp_path: Path, factory: str) -> None:
    vectors, queries = clustered(6000), clustered(40, seed=1)
    queries = np.concatenate([queries, vectors[:10]])
    dense = Dense([segment(tmp_path, vectors, factory)])
    assert (tmp_path / "s.faiss").is_file()
    found = dense.search(queries, 10)
    assert recall(found, vectors, queries, [6000], 10) >= 0.95
    for query, each in zip(queries, found, strict=True):
        check(each, vectors, query, [6000])
        assert len(each.ids) == 10


def test_segments_of_both_kinds(large: tuple[Vectors, list[DenseSegment], list[int]]) -> None:
    vectors, segments, sizes = large
    dense, queries = Dense(segments), clustered(70, seed=2)
    for k in (1, 10, 100):
        found = dense.search(queries, k)
        assert recall(found, vectors, queries, sizes, k) >= 0.98
        for query, each in zip(queries, found, strict=True):
            check(each, vectors, query, sizes)
            assert len(each.ids) == k
        for i in (0, 69):
            alone = dense.search(queries[i : i + 1], k)[0]
            assert all(np.array_equal(a, b) for a, b in zip(alone, found[i], strict=True))


def test_threads_change_nothing(large: tuple[Vectors, list[DenseSegment], list[int]]) -> None:
    import faiss

    queries = clustered(5, seed=3)
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for num_threads in (1, 3):
            faiss.omp_set_num_threads(num_threads)
            dense = Dense(large[1])
            found.append([dense.search(query[None], 20)[0] for query in queries])
    finally:
        faiss.omp_set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("kind", ["random", "nearest", "farthest"])
def test_filters(large: tuple[Vectors, list[DenseSegment], list[int]], share: float, kind: str) -> None:
    vectors, segments, sizes = large
    query = clustered(1, seed=4)[0]
    scores = vectors @ query
    order = {"nearest": np.argsort(-scores), "farthest": np.argsort(scores)}.get(
        kind, np.random.default_rng(0).permutation(len(vectors))
    )
    chosen = np.zeros(len(vectors), dtype=bool)
    chosen[order[: int(share * len(vectors))]] = True
    masks = np.split(chosen, np.cumsum(sizes)[:-1])
    for k in (10, 50):
        num = min(k, int(chosen.sum()))
        by_mask = Dense(segments).search(query[None], k, masks)[0]
        gone = [np.flatnonzero(~mask).astype(np.uint32) for mask in masks]
        ids = [np.flatnonzero(mask)[::-1] for mask in masks]
        for found in (
            by_mask,
            *Dense(segments).search(query[None], k, None, gone),
            *Dense(segments).search(query[None], k, ids),
        ):
            check(found, vectors, query, sizes)
            places = numbers(found, sizes)
            assert len(places) == num
            assert chosen[places].all()
            best = np.flatnonzero(chosen)[np.argsort(-scores[chosen])][:num]
            assert len(set(places) & set(best.tolist())) >= 0.9 * num


@pytest.mark.parametrize("factory", ["PQfs", "RaBitQfs", "HNSW16", "IVF8,Flat"])
def test_strange_vectors(tmp_path: Path, factory: str) -> None:
    same = np.tile(clustered(1), (2000, 1))
    some = clustered(2000, seed=5)
    some[::7] = np.nan
    some[3] = np.inf
    some[5:9] = 0
    query = clustered(1)
    for name, vectors in (("same", same), ("some", some)):
        dense = Dense([segment(tmp_path, vectors, factory, name)])
        for k in (1, 10, 2000, 5000):
            found = dense.search(query, k)[0]
            assert len(found.ids) == min(k, 2000)
            assert len(set(found.ids.tolist())) == len(found.ids)
            assert np.isfinite(found.scores).all()
        assert dense.search(query, 3, deleted=[np.arange(1, 2000)])[0].ids.tolist() == [0]
        assert len(dense.search(np.full((1, DIM), np.nan, np.float32), 3)[0].ids) == 3
    assert Dense([segment(tmp_path, same, "Flat", "flat")]).search(query, 3)[0].ids.tolist() == [0, 1, 2]


def test_more_wanted_than_candidates(large: tuple[Vectors, list[DenseSegment], list[int]]) -> None:
    vectors, segments, sizes = large
    query = clustered(1, seed=6)
    found = Dense(segments).search(query, 30_000)[0]
    assert sorted(numbers(found, sizes)) == list(range(24_000))
    check(found, vectors, query[0], sizes)


# Files --------------------------------------------------------------------------------------------------------------


def test_choice_by_size() -> None:
    assert [choose_factory(num) for num in (0, 1, 16_383, 16_384, 131_072)] == ["Flat"] * 3 + ["PQfs"] * 2


@pytest.mark.parametrize(
    ("factory", "dim"), [("PQfs", 32), ("PQfs", 30), ("PQfs", 7), ("RaBitQfs", 32), ("IVF16,SQ8", 32)]
)
def test_the_same_vectors_give_the_same_bytes(tmp_path: Path, factory: str, dim: int) -> None:
    vectors = clustered(3000, dim)
    assert build_ann(vectors, factory, tmp_path / "a")
    mapped = np.memmap(tmp_path / "v", dtype="<f4", mode="w+", shape=vectors.shape)
    mapped[:] = vectors
    assert build_ann(mapped, factory, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize(("factory", "num"), [("Flat", 5000), ("PQfs", 0), ("PQfs", 600), ("IVF256,Flat", 9000)])
def test_what_is_searched_exactly_needs_no_file(tmp_path: Path, factory: str, num: int) -> None:
    assert not build_ann(clustered(num), factory, tmp_path / "ann")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "factory",
    ["nonsense", "", "PQ7", "LSH", "IDMap2,Flat", "IDMap,SQ8", "IVF0,Flat", "SQ9", "ITQ16,LSH", "Flat,Flat", "PQ5x4fs"],
)
@pytest.mark.parametrize("num", [3, 2000])
def test_factories_that_are_refused(tmp_path: Path, factory: str, num: int) -> None:
    with pytest.raises(
        ValueError, match=rf"cannot build an index '{factory}' of 32 dimensions .*; try auto, Flat"
    ) as e:
        build_ann(clustered(num), factory, tmp_path / "ann")
    assert "\n" not in str(e.value)
    assert not (tmp_path / "ann").exists()


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "v").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match="100 bytes, which is no multiple"):
        VectorFile(tmp_path / "v", DIM)
    segment(tmp_path, clustered(2000), "SQ8")
    (tmp_path / "s.f32").write_bytes(clustered(1999).tobytes())
    dense = Dense([DenseSegment(tmp_path / "s.f32", tmp_path / "s.faiss", DIM, "SQ8")])
    with pytest.raises(ValueError, match="not of the 1999 vectors of 32 dimensions"):
        dense.search(clustered(1), 1)
    with pytest.raises(OSError, match="No such file"):
        build_ann(clustered(2000), "SQ8", tmp_path / "missing" / "ann")


def test_arguments(tmp_path: Path) -> None:
    dense = Dense([segment(tmp_path, clustered(10))])
    for arguments, message in (
        ((0,), "k is 0"),
        ((1, [None, None]), "2 allowed for 1 segments"),
        ((1, [np.ones(9, dtype=bool)]), "mask of shape"),
        ((1, None, [np.array([10])]), "passages 10 to 10 of a segment that holds 0 to 9"),
    ):
        with pytest.raises(ValueError, match=message):
            dense.search(clustered(1), *arguments)


def test_small_indexes_do_without_faiss(tmp_path: Path) -> None:
    segment(tmp_path, clustered(100))
    code = (
        "import sys; from pathlib import Path; import numpy as np; "
        "from retrieval.scoring.vectors import Dense, DenseSegment; "
        f"dense = Dense([DenseSegment(Path({str(tmp_path / 's.f32')!r}), None, {DIM})]); "
        f"found = dense.search(np.ones((1, {DIM}), np.float32), 5)[0]; print(len(found.ids), 'faiss' in sys.modules)"
    )
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "False"]


def test_rows(tmp_path: Path) -> None:
    vectors = clustered(50)
    held: Any = segment(tmp_path, vectors).vectors
    assert len(held) == 50
    np.testing.assert_array_equal(held.rows(np.array([3, 3, 49])), vectors[[3, 3, 49]])
    with pytest.raises(ValueError, match="read-only"):
        held.matrix[0, 0] = 1

"""Faiss indexes of compressed vectors: which type, building it from a file, opening it.

Measured for the choice, on one million 384-dimensional vectors in 8 segments of which each has its own index (copies
of sentence vectors, perturbed to a cosine of .9): PQfs, the default, has 50 MB; RaBitQfs found more with as many
candidates (.992 of the best ten among 300, PQfs .984) and took 2.5 times as long; PQ with a code for 6 or 8 dimensions
took less time, but needed more candidates than that was worth; with IVF in front .96 to .98 was found.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXACT_BELOW = 16_384  # passages in a segment: exact search takes a millisecond
AUTO = "PQfs"
_BLOCK = 8192  # vectors added at a time
_TRAINING = 16_384
_TRAINING_PER_LIST = 39  # of fewer Faiss warns
_LEAST_TRAINING = 16 * _TRAINING_PER_LIST


def choose_factory(num: int) -> str:
    """The type of index for a segment of `num` passages: 'Flat', exact, or 'PQfs' (see `build_ann`)."""
    return "Flat" if num < EXACT_BELOW else AUTO


def build_ann(vectors: NDArray[np.float32], factory: str, path: Path) -> bool:
    """Write the Faiss index of (n, dim) vectors, usually a memory map, to `path`; syncing is the caller's.

    `factory` is 'PQfs' (product quantisation: 4 bits for every 4 dimensions, or fewer where that makes less than 64
    codes; FastScan), or any string of Faiss (https://github.com/facebookresearch/faiss/wiki/The-index-factory) for
    inner products. Returns False, having written nothing, for 'Flat' and where there are too few vectors to train with:
    these are searched exactly. Equal vectors give equal bytes. Memory: the index, and 16,384 vectors to train with.

    Raises ValueError for a factory that Faiss does not know or cannot build for `dim` dimensions, OSError where the
    file cannot be written.
    """
    import faiss  # on use: importing this file must stay cheap

    num, dim = vectors.shape
    index = _new_index(dim, factory)
    least = max(_LEAST_TRAINING, _TRAINING_PER_LIST * (_num_lists(index) or 0))
    if isinstance(index, faiss.IndexFlat) or num < least:
        return False
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # a second or two; several threads, on busy cores, took eight times the CPU time
    try:
        if not index.is_trained:
            index.train(_sample(vectors, max(_TRAINING, least)))
        for start in range(0, num, _BLOCK):
            _release(vectors)
            index.add(_finite(vectors[start : start + _BLOCK]))
    except RuntimeError as error:
        raise _refused(factory, dim, str(error)) from None
    finally:
        faiss.omp_set_num_threads(threads)
    try:
        faiss.write_index(index, str(path))
    except RuntimeError as error:
        raise OSError(str(error)) from error
    return True


def check_factory(dim: int, factory: str) -> None:
    """Raises ValueError, as `build_ann` does, for a factory that Faiss cannot build; 'auto' and 'Flat' always go."""
    if factory not in ("auto", "Flat"):
        _new_index(dim, factory)


def _new_index(dim: int, factory: str) -> Any:
    import faiss

    name = factory
    if factory == AUTO:
        name = f"PQ{dim // _dimensions_per_code(dim)}x4fs"
    try:
        index = faiss.index_factory(dim, name, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise _refused(factory, dim, str(error)) from None
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or index.d != dim:
        raise _refused(factory, dim, "it is not for inner products")
    if isinstance(index, faiss.IndexIDMap):
        raise _refused(factory, dim, "an index here knows its passages by their order, and takes no other numbers")
    if _num_lists(index) == 0:
        raise _refused(factory, dim, "it has no lists")
    return index


def _dimensions_per_code(dim: int) -> int:
    """4 where that makes enough codes, else 2 or 1."""
    return next(each for each in (4, 2, 1) if dim % each == 0 and (dim // each >= 64 or each < 4))


def _refused(factory: str, dim: int, reason: str) -> ValueError:
    """The last part of what Faiss says, which begins with a place in its source."""
    said = reason.strip().splitlines()[-1].rpartition(": ")[2][:150]
    return ValueError(
        f"Faiss cannot build an index '{factory}' of {dim} dimensions ({said}); try auto, Flat, SQ8, HNSW32, "
        "IVF256,Flat or RaBitQfs"
    )


def open_ann(path: Path, num: int, dim: int) -> Any:
    """The Faiss index of `num` vectors in a file, which must have been verified: Faiss trusts what it reads.

    Of an inverted file a quarter of the lists will be searched, at least 8. Raises ValueError for an index of another
    number or size of vectors, OSError where Faiss cannot read it.
    """
    import faiss

    try:
        index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise OSError(str(error)) from error
    if (index.ntotal, index.d) != (num, dim):
        raise ValueError(
            f"{path.name} is not of the {num} vectors of {dim} dimensions beside it; build the index again"
        )
    inverted = faiss.try_extract_index_ivf(index)
    if inverted is not None:
        inverted.nprobe = max(8, inverted.nlist // 4)
    return index


def _num_lists(index: Any) -> int | None:
    """Of an inverted file, None for any other index."""
    import faiss

    inverted = faiss.try_extract_index_ivf(index)
    return None if inverted is None else int(inverted.nlist)


def _sample(vectors: NDArray[np.float32], num: int) -> NDArray[np.float32]:
    """Copies of `num` different vectors, always the same ones."""
    if num >= len(vectors):
        return _finite(vectors)
    chosen = np.sort(np.random.default_rng(0).choice(len(vectors), num, replace=False))
    sample = np.empty((num, vectors.shape[1]), dtype=np.float32)
    for start in range(0, num, _BLOCK // 8):  # of 131,072 vectors every eighth
        _release(vectors)
        rows = slice(start, start + _BLOCK // 8)
        sample[rows] = vectors[chosen[rows]]
    return _finite(sample)


def _release(vectors: NDArray[np.float32]) -> None:
    """Give back what was read of a mapped file, which otherwise is counted as memory until it is unmapped."""
    if isinstance(vectors.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        vectors.base.madvise(mmap.MADV_DONTNEED)


def _finite(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """What Faiss can take: values that are no numbers, which lead it astray, become 0."""
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    if not np.isfinite(np.vecdot(vectors, vectors)).all():
        vectors = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    return vectors

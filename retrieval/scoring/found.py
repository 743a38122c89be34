"""What a search over segments returns, and how the best are picked: higher scores first, ties to the lower place.

Shared by `retrieval.scoring.lexical` and `retrieval.scoring.vectors`, so that both order their hits in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Found(NamedTuple):
    """Hits of one query, best first; three arrays of one length. `ids` count from 0 within their segment."""

    segments: NDArray[np.int64]
    ids: NDArray[np.int64]
    scores: NDArray[np.float32]


def best(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Where the `k` highest scores stand, highest first, equal ones in the order they stand; all where there are fewer.

    Linear in the number of scores, however many of them are equal.
    """
    chosen = np.arange(len(scores), dtype=np.int64)
    if len(scores) > k:
        kth = np.partition(scores, len(scores) - k)[len(scores) - k]
        above = np.flatnonzero(scores > kth)
        chosen = np.sort(np.concatenate([above, np.flatnonzero(scores == kth)[: k - len(above)]]))
    return chosen[np.argsort(-scores[chosen], kind="stable")]


def merge(parts: Sequence[tuple[int, NDArray[Any], NDArray[np.float32]]], k: int) -> Found:
    """The `k` best of several segments' hits: (segment, ids, scores) each, by rising segment, ids rising in each."""
    if not parts:
        return Found(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    segments = np.repeat(np.array([segment for segment, _, _ in parts], np.int64), [len(ids) for _, ids, _ in parts])
    ids = np.concatenate([ids for _, ids, _ in parts]).astype(np.int64)
    scores = np.concatenate([scores for _, _, scores in parts])
    order = best(scores, k)
    return Found(segments[order], ids[order], scores[order])


def visible(num: int, allowed: NDArray[Any] | None, deleted: NDArray[Any] | None) -> NDArray[np.bool_] | None:
    """(num,) mask of the passages of a segment that may be found; None where all may.

    `allowed`: a mask, or ids in any order; `deleted`: ids. Raises ValueError for a mask or an id that does not fit.
    """
    for ids in (allowed, deleted):
        if ids is not None and ids.dtype != np.bool_ and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < num:
            raise ValueError(f"passages {ids.min()} to {ids.max()} of a segment that holds 0 to {num - 1}")
    if allowed is None:
        mask = None
    elif allowed.dtype != np.bool_:
        mask = np.zeros(num, dtype=bool)
        mask[allowed] = True
    elif allowed.shape == (num,):
        mask = allowed
    else:
        raise ValueError(f"a mask of shape {allowed.shape} for a segment of {num} passages; give one value for each")
    if deleted is not None and len(deleted):
        mask = np.ones(num, dtype=bool) if mask is None else mask.copy()
        mask[deleted] = False
    return mask


def per_segment(name: str, values: Sequence[Any] | None, num: int) -> Sequence[Any]:
    """`values`, or a None for each of `num` segments. Raises ValueError where their number differs."""
    if values is None:
        return [None] * num
    if len(values) != num:
        raise ValueError(f"{len(values)} {name} for {num} segments; give one (or None) for each")
    return values

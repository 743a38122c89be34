"""Neighbours: a passage that was found, with as much of what stands around it as is about the same thing.

Nothing is encoded for this: a neighbour's stored vector tells how near it is to the query.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from retrieval.index.segment import Segment
from retrieval.types import Passage

# A neighbour is taken in if its cosine with the query is at least this share of the found passage's own.
NEIGHBOUR_SHARE = 0.6


def neighbourhood(
    segment: Segment, i: int, query: NDArray[np.float32], reach: int, taken: Collection[int] = ()
) -> range:
    """The passages to show for passage `i`: itself and up to `reach` neighbours on either side, of the same document
    and under the same heading, as long as they are near the (dim,) unit vector `query`; none of `taken`, which are
    shown elsewhere. (Documents are deleted whole, so that no neighbour of a live passage is deleted.)"""
    if not reach:
        return range(i, i + 1)
    title = segment.title(i)
    document = segment.document(segment.document_number(i))
    enough = NEIGHBOUR_SHARE * float(segment.vectors[i] @ query)

    def belongs(j: int) -> bool:
        inside = document.first <= j < document.first + document.count and j not in taken
        return inside and float(segment.vectors[j] @ query) >= enough and segment.title(j) == title

    first = last = i
    while first > i - reach and belongs(first - 1):
        first -= 1
    while last < i + reach and belongs(last + 1):
        last += 1
    return range(first, last + 1)


def joined(segment: Segment, ids: range, overlapping: bool) -> Passage:
    """Passages of one document as one, with the id of the first. `overlapping`: windows repeat each other's ends."""
    whole = segment.passage(ids[0])
    for j in ids[1:]:
        added = segment.passage(j)
        is_repeated = overlapping and added.start <= whole.end  # what repeats a sentence shares its lines
        rest = added.text[_overlap(whole.text, added.text) :] if is_repeated else added.text
        glue = "" if rest != added.text else "\n" if added.start > whole.end else " "
        judged = [score for score in (whole.injection, added.injection) if score is not None]
        worst = max(judged, default=None)
        whole = replace(whole, text=whole.text + glue + rest, end=max(whole.end, added.end), injection=worst)
    return whole


def _overlap(left: str, right: str) -> int:
    """Characters of the longest end of `left` that `right` begins with, in linear time (Knuth, Morris, Pratt 1977).

    It stands between white space or the ends of the texts: half a word in common is chance.
    """
    joint = f"{right}\0{left[-len(right) :]}"
    lengths = [0] * len(joint)
    for i in range(1, len(joint)):
        length = lengths[i - 1]
        while length and joint[i] != joint[length]:
            length = lengths[length - 1]
        lengths[i] = length + (joint[i] == joint[length])
    length = lengths[-1]
    while length and not (_is_edge(left, len(left) - length) and _is_edge(right, length)):
        length = lengths[length - 1]
    return length


def _is_edge(text: str, i: int) -> bool:
    """Whether no word goes on across place `i`."""
    return i == 0 or i == len(text) or text[i - 1].isspace() or text[i].isspace()

"""The words of a segment on disk: for each term the passages it stands in, and how often.

All is in one file, lexical.bin, little-endian, each part beginning at a multiple of 64 bytes:

    header    8 x uint64: MAGIC, version, passages, their terms in all, different terms V, postings P, bytes of terms, 0
    keys      V x uint64: the first 8 bytes of each term as a big-endian number, so that numbers sort as terms do
    ends      V x uint64: where each term ends in `terms`
    starts    (V + 1) x uint64: where the postings of each term begin, and where those of the last one end
    docs      P x uint32: numbers of passages, rising for each term
    lengths   passages x uint32: terms in each passage
    counts    P x uint8: how often the term stands in the passage, 255 for 255 times or more
    terms     UTF-8, sorted by their bytes, one directly after the other

The same texts and settings give the same bytes. Reading maps the file and looks at nothing but its header, however
large it is.
"""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from retrieval.scoring.tokens import Tokenizer

LEXICAL = "lexical.bin"
MAGIC, VERSION = int.from_bytes(b"parleyBM", "little"), 1
MAX_COUNT = 255
_ALIGNMENT = 64
# What is still in the order of the texts: above either number it is sorted into a run, which takes less than half.
_RUN_TERMS, _RUN_PASSAGES = 1 << 19, 1 << 16
_WRITE_POSTINGS, _ENCODE_TERMS = 1 << 18, 1 << 14  # written, and in memory, at a time


@dataclass
class _Run:
    """Postings of up to 65,536 passages from `first` on, by term: `sizes[i]` of them for the term `terms[i]`."""

    first: int
    terms: NDArray[np.uint32]
    sizes: NDArray[np.uint32]
    docs: NDArray[np.uint16]  # from `first`
    counts: NDArray[np.uint8]

    def sort(self, ranks: NDArray[np.uint32]) -> None:
        """Replace the terms by their `ranks`, and order all by them."""
        new = ranks[self.terms]
        order = np.argsort(new)
        starts = np.cumsum(self.sizes, dtype=np.int64) - self.sizes
        self.terms, self.sizes = new[order], self.sizes[order]
        # Posting j of a term goes from starts[term] + j to its new place.
        places = np.repeat((starts[order] - np.cumsum(self.sizes) + self.sizes).astype(np.int32), self.sizes)
        places += np.arange(len(places), dtype=np.int32)
        self.docs, self.counts = self.docs[places], self.counts[places]


class PostingsWriter:
    """Collects the terms of a segment's passages. Memory: about 3.5 bytes a posting and 130 bytes a different term."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids = _TermIds(tokenizer.term)
        self._lengths = array("I")
        self._open = array("I")  # ids of terms since the last run
        self._runs: list[_Run] = []
        self._num_in_runs = 0

    def add(self, texts: Sequence[str]) -> None:
        """Append passages; they get the next numbers, from 0."""
        words, find = self._tokenizer.words, self._ids.__getitem__
        for text in texts:
            ids = [number for number in map(find, words(text)) if number >= 0]
            self._open.extend(ids)
            self._lengths.append(len(ids))
            if len(self._open) >= _RUN_TERMS or len(self._lengths) - self._num_in_runs == _RUN_PASSAGES:
                self._close_run()

    def write(self, folder: Path) -> list[str]:
        """Write all to `folder`; syncing is the caller's. Returns the names of the files. May be called once."""
        self._close_run()
        terms = self._ids.terms
        self._ids = _TermIds(self._tokenizer.term)  # to make room
        order = np.array(sorted(range(len(terms)), key=terms.__getitem__), dtype=np.int64)
        ranks = np.empty(len(terms), dtype=np.uint32)
        ranks[order] = np.arange(len(terms), dtype=np.uint32)
        sizes = np.zeros(len(terms), dtype=np.uint64)
        for run in self._runs:
            run.sort(ranks)
            sizes[run.terms] += run.sizes
        starts = np.concatenate([np.zeros(1, np.uint64), np.cumsum(sizes, dtype=np.uint64)])
        lengths = np.frombuffer(self._lengths, dtype=np.uint32) if self._lengths else np.zeros(0, np.uint32)
        with open(folder / LEXICAL, "wb") as file:
            self._write(file, [terms[i] for i in order.tolist()], starts, lengths)
        return [LEXICAL]

    def _write(
        self, file: BinaryIO, terms: Sequence[str], starts: NDArray[np.uint64], lengths: NDArray[np.uint32]
    ) -> None:
        header = [MAGIC, VERSION, len(lengths), int(lengths.sum(dtype=np.uint64)), len(terms), int(starts[-1]), 0, 0]
        layout = _layout(header)
        keys, sizes = [], []
        file.seek(layout["terms"][0])
        for first in range(0, len(terms), _ENCODE_TERMS):
            encoded = [term.encode("utf-8") for term in terms[first : first + _ENCODE_TERMS]]
            header[6] += file.write(b"".join(encoded))
            keys.append(_keys(encoded))
            sizes.append(np.array([len(term) for term in encoded], dtype=np.uint64))
        _put(file, layout["header"], np.array(header, dtype="<u8"))
        if terms:
            _put(file, layout["keys"], np.concatenate(keys))
            _put(file, layout["ends"], np.cumsum(np.concatenate(sizes)))
        _put(file, layout["starts"], starts)
        _put(file, layout["lengths"], lengths)
        done = 0
        for docs, counts in self._merged(starts):
            _put(file, (layout["docs"][0] + 4 * done, np.dtype("<u4"), 0), docs)
            _put(file, (layout["counts"][0] + done, np.dtype("u1"), 0), counts)
            done += len(docs)
        file.truncate(_size(layout | {"terms": (layout["terms"][0], np.dtype("u1"), header[6])}))

    def _merged(self, starts: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.uint32], NDArray[np.uint8]]]:
        """The postings of all runs in order of terms, then passages, some terms at a time."""
        num_terms, low = len(starts) - 1, 0
        read = [0] * len(self._runs)
        while low < num_terms:
            limit = int(starts[low]) + _WRITE_POSTINGS
            high = max(low + 1, int(np.searchsorted(starts, np.uint64(limit), "right")) - 1)
            ranks, docs, counts = [], [], []
            for number, run in enumerate(self._runs):
                first, last = np.searchsorted(run.terms, np.array([low, high], dtype=run.terms.dtype))
                sizes = run.sizes[first:last]
                part = slice(read[number], read[number] + int(sizes.sum()))
                read[number] = part.stop
                ranks.append(np.repeat(run.terms[first:last], sizes))
                docs.append(run.docs[part].astype(np.uint32) + np.uint32(run.first))
                counts.append(run.counts[part])
            order = np.argsort(np.concatenate(ranks), kind="stable")  # runs stand in order of passages
            yield np.concatenate(docs)[order], np.concatenate(counts)[order]
            low = high

    def _close_run(self) -> None:
        first, self._num_in_runs = self._num_in_runs, len(self._lengths)
        if not self._open:
            return
        lengths = np.array(self._lengths[first:], dtype=np.int64)
        pairs = np.array(self._open, dtype=np.uint64)
        pairs <<= np.uint64(16)
        pairs |= np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
        self._open = array("I")
        pairs.sort()
        places = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]]))
        counts = np.minimum(np.diff(places, append=len(pairs)), MAX_COUNT).astype(np.uint8)
        pairs = pairs[places]
        terms = (pairs >> np.uint64(16)).astype(np.uint32)
        groups = np.flatnonzero(np.concatenate([[True], terms[1:] != terms[:-1]]))
        sizes = np.diff(groups, append=len(terms)).astype(np.uint32)
        self._runs.append(_Run(first, terms[groups], sizes, pairs.astype(np.uint16), counts))


class _TermIds(dict[str, int]):
    """Words to the numbers of their terms, -1 for a stop word; a new term gets the next number.

    Holds the words used of late. When they are too many, those that are not used again go.
    """

    MAX_WORDS, MAX_CHARS = 32_768, 64

    def __init__(self, term_of: Callable[[str], str]) -> None:
        super().__init__()
        self._term_of = term_of
        self._numbers: dict[str, int] = {}
        self._older: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        number = self._older.get(word)
        if number is None:
            term = self._term_of(word)
            number = self._numbers.setdefault(term, len(self._numbers)) if term else -1
        if len(word) <= self.MAX_CHARS:
            if len(self) >= self.MAX_WORDS:
                self._older = dict(self)
                self.clear()
            self[word] = number
        return number

    @property
    def terms(self) -> list[str]:
        """All terms, by number."""
        return list(self._numbers)


class LexicalSegment:
    """The words of one segment, memory-mapped. Verify the file first.

    num_passages; total_length: terms in all passages together; docs, counts, lengths: see the top of this file.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError for a file that cannot be opened, ValueError for one of another format or size."""
        with open(folder / LEXICAL, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = [int(value) for value in np.frombuffer(self._map[:64].ljust(64, b"\0"), dtype="<u8")]
        if header[:2] != [MAGIC, VERSION]:
            raise ValueError(f"{LEXICAL} is not of version {VERSION}; build the index again")
        layout = _layout(header)
        if len(self._map) != _size(layout):
            raise ValueError(
                f"{LEXICAL} has {len(self._map)} bytes, which its header does not say; build the index again"
            )
        self.num_passages, self.total_length = header[2], header[3]
        self._keys: NDArray[np.uint64] = self._part(layout["keys"])
        self._ends: NDArray[np.uint64] = self._part(layout["ends"])
        self._starts: NDArray[np.uint64] = self._part(layout["starts"])
        self.docs: NDArray[np.uint32] = self._part(layout["docs"])
        self.counts: NDArray[np.uint8] = self._part(layout["counts"])
        self.lengths: NDArray[np.uint32] = self._part(layout["lengths"])
        self._first_byte = layout["terms"][0]

    def _part(self, part: tuple[int, np.dtype[Any], int]) -> NDArray[Any]:
        start, kind, num = part
        return np.frombuffer(self._map, dtype=kind, count=num, offset=start)

    def find(self, terms: Sequence[bytes]) -> list[slice]:
        """For each term where its postings stand in `docs` and `counts`; an empty slice for one that is not here."""
        keys = _keys(terms)
        firsts, lasts = self._keys.searchsorted(keys, "left"), self._keys.searchsorted(keys, "right")
        found = []
        for term, first, last in zip(terms, firsts.tolist(), lasts.tolist(), strict=True):
            place = first + bisect_left(range(first, last), term, key=self._term)
            here = place < last and self._term(place) == term
            found.append(slice(int(self._starts[place]), int(self._starts[place + 1])) if here else slice(0, 0))
        return found

    def _term(self, i: int) -> bytes:
        start = int(self._ends[i - 1]) if i else 0
        return self._map[self._first_byte + start : self._first_byte + int(self._ends[i])]


def _layout(header: Sequence[int]) -> dict[str, tuple[int, np.dtype[Any], int]]:
    """For each part of the file where it begins, its type and its number of values."""
    _, _, num_passages, _, num_terms, num_postings, num_bytes, _ = header
    parts = {
        "header": ("<u8", 8),
        "keys": ("<u8", num_terms),
        "ends": ("<u8", num_terms),
        "starts": ("<u8", num_terms + 1),
        "docs": ("<u4", num_postings),
        "lengths": ("<u4", num_passages),
        "counts": ("u1", num_postings),
        "terms": ("u1", num_bytes),
    }
    layout, place = {}, 0
    for name, (kind, num) in parts.items():
        layout[name] = (place, np.dtype(kind), num)
        place += -(-num * np.dtype(kind).itemsize // _ALIGNMENT) * _ALIGNMENT
    return layout


def _size(layout: Mapping[str, tuple[int, np.dtype[Any], int]]) -> int:
    return max(start + kind.itemsize * num for start, kind, num in layout.values())


def _keys(terms: Sequence[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(term[:8].ljust(8, b"\0") for term in terms), dtype=">u8").astype("<u8")


def _put(file: BinaryIO, part: tuple[int, np.dtype[Any], int], values: NDArray[Any]) -> None:
    file.seek(part[0])
    file.write(np.ascontiguousarray(values, dtype=part[1]).data)

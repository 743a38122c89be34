"""Examples on disk, read by memory mapping: training does not hold its data in memory, however large.

A store is a folder: `ids.bin` (int32) and `mask.bin` (bool), example after example; `ends.npy`, where each ends;
`weights.npy`; `values.npy`, (n, k); `rows.npy`, where each row of examples that belong together ends; `store.json`,
what it was made of and what happened on the way. It is written under another name and renamed, so that there is a whole
store or none. The name is a hash of all that goes into it, so that a second run over the same data finds it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.files import read_json, sync_folder, write_json
from training.examples.making import Example

VERSION = 2


class TokenStore:
    """`len()` rows, in most stores of one example each; `lengths` (n) of each in tokens; `store[i]` is the examples of
    one; `about` is what `store.json` says. `values` (num_examples, k) may be replaced by an array with more columns."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about: dict[str, Any] = read_json(folder / "store.json")
        self._ends: NDArray[np.int64] = np.load(folder / "ends.npy", mmap_mode="r", allow_pickle=False)
        self._weights: NDArray[np.float32] = np.load(folder / "weights.npy", mmap_mode="r", allow_pickle=False)
        self._rows: NDArray[np.int64] = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
        self.values: NDArray[np.float64] = np.load(folder / "values.npy", mmap_mode="r", allow_pickle=False)
        self.ids: NDArray[np.int32] = np.memmap(folder / "ids.bin", np.int32, "r")
        self.mask: NDArray[np.bool_] = np.memmap(folder / "mask.bin", np.bool_, "r")

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row (n)."""
        return np.diff(self._ends[self._rows - 1], prepend=0)

    def __getitem__(self, number: int) -> list[Example]:
        first = int(self._rows[number - 1]) if number else 0
        return [self.example(each) for each in range(first, int(self._rows[number]))]

    def example(self, number: int) -> Example:
        """One of all examples, by its own number."""
        start = int(self._ends[number - 1]) if number else 0
        end = int(self._ends[number])
        values = tuple(self.values[number].tolist())
        return Example(self.ids[start:end], self.mask[start:end], float(self._weights[number]), values)


def store_name(ingredients: Mapping[str, Any]) -> str:
    """The folder name for what is made of `ingredients`, all that the examples depend on."""
    text = json.dumps({"version": VERSION, **ingredients}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def write_store(folder: Path, examples: Iterable[Example], about: Mapping[str, Any]) -> TokenStore:
    """Write `examples` into `folder`, in one pass and little memory. `about` may be filled while they are made.

    Raises ValueError where there are none.
    """
    with _whole_or_not(folder) as made:
        ends, rows, weights, total = array("q"), array("q"), array("f"), 0
        values, width = array("d"), 0
        with open(made / "ids.bin", "wb") as ids, open(made / "mask.bin", "wb") as mask:
            for example in examples:
                ids.write(example.ids.tobytes())
                mask.write(example.mask.tobytes())
                total += len(example.ids)
                ends.append(total)
                weights.append(example.weight)
                values.extend(example.values)
                width = len(example.values)
                if example.joined:
                    rows.pop()
                rows.append(len(ends))
        if not ends:
            raise ValueError(f"{about.get('source', 'the data')}: no example is left to train on; {_told(about)}")
        np.save(made / "ends.npy", np.frombuffer(ends, np.int64))
        np.save(made / "rows.npy", np.frombuffer(rows, np.int64))
        np.save(made / "weights.npy", np.frombuffer(weights, np.float32))
        np.save(made / "values.npy", np.frombuffer(values, np.float64).reshape(len(ends), width))
        numbers = {"num_examples": len(ends), "num_rows": len(rows), "num_tokens": total}
        write_json(made / "store.json", {**about, **numbers})
    return TokenStore(folder)


@contextmanager
def _whole_or_not(folder: Path) -> Iterator[Path]:
    """A temporary folder that becomes `folder` at the end; whoever comes second leaves the first one's."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield made
        try:
            made.rename(folder)
        except OSError:
            if not (folder / "store.json").is_file():
                raise
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _told(about: Mapping[str, Any]) -> str:
    told = [f"{count} {what}" for what, count in (about.get("counts") or {}).items() if count]
    for each in about.get("read", {}).get("skipped", []):
        told.append(f"{each['count']} left out: {each['reason']} ({', '.join(each['places'])})")
    return ", ".join(told) or "the source has no usable row"

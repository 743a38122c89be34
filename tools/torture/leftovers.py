"""Damage what a killed build left in an index, and see what the next build makes of it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings
from retrieval.writing.building import build_index
from retrieval.writing.runners import run_here
from tools.torture.changes import FACTORY, Content, ManySegments, content, write_records
from tools.torture.damage import MUTATORS

NUM_RECORDS = 2400
MAX_PASSAGES = 1200  # two segments, each of two batches
LAST_BATCH = 4  # before the second batch of the second segment; the first is that of the baseline


class DyingEncoder(HashEncoder):
    """Kills its process when it is asked for one batch too many."""

    def __init__(self, num_batches: int) -> None:
        super().__init__()
        self._left = num_batches

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Encoder`."""
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._left -= 1
        return super().encode(texts)


def build(docs: Path, index: Path, encoder: HashEncoder) -> Content | None:
    """What an index that was built from `docs` holds."""
    runner = ManySegments(run_here, 1, MAX_PASSAGES)
    build_index([docs], index, encoder, IndexSettings(factory=FACTORY), calibrate=False, run=runner)
    return content(index)


def damaged_leftovers(folder: Path, num: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(way, name of the file, problem or '') of `num` builds that go on from what a killed one left, one file damaged.

    They must give what an undisturbed build gives, and no error.
    """
    docs, killed = folder / "leftovers-docs", folder / "leftovers"
    docs.mkdir()
    write_records(docs / "a.jsonl", NUM_RECORDS, "castle")
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-m", "tools.torture.leftovers", docs, killed], cwd=root, check=False)
    names = sorted(path.relative_to(killed) for path in killed.rglob("*.*") if path.is_file())
    if not {"work.json", "segment.json", "journal.jsonl"} <= {name.name for name in names}:
        raise RuntimeError(f"the killed build left {', '.join(map(str, names))}")
    expected = build(docs, folder / "leftovers-whole", HashEncoder())
    for number in range(num):
        index = Path(shutil.copytree(killed, folder / f"leftovers-{number}"))
        name = rng.choice(names)
        # A folder called work.json is no accident; a build says that it cannot write there.
        way = rng.choice([way for way in MUTATORS if way != "folder" or len(name.parts) > 1])
        if (index / name).stat().st_size:
            MUTATORS[way](index / name, index, rng)
        try:
            problem = "" if build(docs, index, HashEncoder()) == expected else "the build made something else of it"
        except Exception as error:  # none may come out
            problem = f"{type(error).__name__}: {error}"
        yield way, str(name), problem
        shutil.rmtree(index, ignore_errors=True)


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(sys.argv[2]), DyingEncoder(LAST_BATCH))

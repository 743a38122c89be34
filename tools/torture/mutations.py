"""Damage the files of an index, one at a time, and see whether a reader refuses it.

    python -m tools.torture.mutations --files 2000 --seed 0

The index has two segments with their Faiss files, and a list of deleted passages. Each damaged one is opened, read and
searched by another process, so that a crash or a hang would be seen as such: it must be refused with one line that
says what is damaged and what to do. Every second one had been found sound before it was damaged, which `verified.json`
remembers. Beside these, one in twenty each: `verified.json` itself is damaged, and the index must open; what a killed
build left is damaged, and the next build must give what it would have given. Exits with 1 where anything else happens.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from retrieval.index.integrity import VERIFIED, files_of
from retrieval.index.manifest import MANIFEST, IndexSettings, read_manifest
from retrieval.index.store import Store
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index
from retrieval.writing.removal import delete_documents
from retrieval.writing.updating import update_index
from tools.torture.changes import FACTORY, write_records
from tools.torture.damage import MUTATORS
from tools.torture.leftovers import damaged_leftovers

NUM_RECORDS = 640  # a passage each; fewer than 624 would get no Faiss index
SECONDS = 30.0  # what opening an index may take
ROUND = 40  # damaged between two waits
SETTLING = 2.2  # seconds until a file counts as one that was not written just now
REFUSED = re.compile(r"is damaged \(.+\); rebuild it with: python -m|^there is no index in|has format .* rebuild it")


@dataclass(frozen=True)
class Indexes:
    """`sound` is damaged in copies; `older` holds other files of the same names, and its own documents."""

    sound: Path
    older: Path
    names: tuple[str, ...]


def make_indexes(folder: Path) -> Indexes:
    """Two segments, one of them with deleted passages; and what the index was before."""
    docs, sound, older = folder / "docs", folder / "sound", folder / "older"
    docs.mkdir()
    write_records(docs / "a.jsonl", NUM_RECORDS, "castle")
    build_index([docs], sound, "hash", IndexSettings(factory=FACTORY), calibrate=False)
    delete_documents(sound, [f"{docs}/a.jsonl#r1"])
    shutil.copytree(sound, older)
    delete_documents(sound, [f"{docs}/a.jsonl#r2*"])
    write_records(docs / "b.jsonl", NUM_RECORDS, "bridge")
    update_index(sound)
    return Indexes(sound, older, (MANIFEST, *(name for name, _ in files_of(read_manifest(sound)))))


def damage(copy: Path, indexes: Indexes, rng: random.Random) -> tuple[str, str]:
    """Damage one file of `copy`; (way, name of the file). It always ends up other than it was."""
    while True:
        name = rng.choice(indexes.names)
        way = rng.choice([*MUTATORS, "older"])
        before = (copy / name).read_bytes()
        if way == "older":
            other = [path for path in indexes.older.rglob(Path(name).name) if path.read_bytes() != before]
            if not other:
                continue  # no older version, or the same
            shutil.copyfile(other[0], copy / name)
        else:
            MUTATORS[way](copy / name, copy, rng)
        if not (copy / name).is_file() or (copy / name).read_bytes() != before:
            return way, name


class Opener:
    """Opens indexes in another process; see `serve`. `command`: another such process, which may misbehave."""

    def __init__(self, seconds: float = SECONDS, command: Sequence[str] = ()) -> None:
        self._seconds = seconds
        self._command = list(command) or [sys.executable, "-m", "tools.torture.mutations", "--serve"]
        self._process: subprocess.Popen[bytes] | None = None

    def open(self, index: Path) -> str:
        """'opened', the error, 'crashed' or 'hung'."""
        if self._process is None:
            root = Path(__file__).resolve().parents[2]
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=root,
                start_new_session=True,
                bufsize=0,
            )
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("no pipes")
        self._process.stdin.write(f"{index}\n".encode())
        if not select.select([self._process.stdout], [], [], self._seconds)[0]:
            self.close()
            return "hung"
        answer = self._process.stdout.readline()
        if not answer:
            code = self._process.wait()
            self.close()
            return f"crashed ({signal.Signals(-code).name if code < 0 else code})"
        return str(json.loads(answer))

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def serve() -> None:
    """For each line of standard input, the path of an index: open it, search it, read it all; say how that went."""
    for line in sys.stdin:
        try:
            index = Path(line.rstrip("\n"))
            Retriever.open(index).search(["castle number7", "the tower was opened in 1003"], 10)
            list(Store(index).live_passages())
            said = "opened"
        except Exception as error:  # each kind of it is judged by who asked
            said = f"{type(error).__name__}: {error}"
        print(json.dumps(said), flush=True)


def judge(said: str) -> str:
    """'' for a refusal as it should be, else the problem."""
    kind, _, message = said.partition(": ")
    return "" if kind == "ValueError" and REFUSED.search(message) and "\n" not in message else said


def damaged_indexes(indexes: Indexes, folder: Path, num: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(way, name of the file, problem or '') of `num` damaged indexes; every second was remembered as sound."""
    opener = Opener()
    with contextlib.closing(opener):
        for first in range(0, num, ROUND):
            copies = [folder / f"copy-{i}" for i in range(first, min(first + ROUND, num))]
            for copy in copies:
                shutil.copytree(indexes.sound, copy)
                (copy / VERIFIED).unlink(missing_ok=True)
            time.sleep(SETTLING)
            for copy in copies[1::2]:
                Store(copy)
                if set(json.loads((copy / VERIFIED).read_bytes())) != set(indexes.names) - {MANIFEST}:
                    yield "none", VERIFIED, "sound files are not remembered"
            for copy in copies:
                way, name = damage(copy, indexes, rng)
                yield way, name, judge(opener.open(copy))
                shutil.rmtree(copy)


def damaged_memories(indexes: Indexes, folder: Path, num: int, rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """The index is sound, and opens, whatever became of `verified.json`."""
    copy = Path(shutil.copytree(indexes.sound, folder / "memory"))
    time.sleep(SETTLING)
    Store(copy)
    remembered = (copy / VERIFIED).read_bytes()
    with contextlib.closing(Opener()) as opener:
        for _ in range(num):
            (copy / VERIFIED).write_bytes(remembered)
            way = rng.choice([way for way in MUTATORS if way not in ("swap", "remove", "folder")])
            MUTATORS[way](copy / VERIFIED, copy, rng)
            said = opener.open(copy)
            yield way, VERIFIED, "" if said == "opened" else said


@click.command()
@click.option("--files", default=2000, show_default=True, help="To be damaged, in as many indexes.")
@click.option("--seed", default=0, show_default=True, help="Of the damage.")
@click.option("--serve", "is_server", is_flag=True, hidden=True)
def main(files: int, seed: int, is_server: bool) -> None:
    """Damage files of an index, and see whether readers refuse it."""
    if is_server:
        serve()
        return
    rng = random.Random(seed)  # noqa: S311
    num_problems = 0
    with tempfile.TemporaryDirectory(prefix="parley-mutations-") as name:
        folder = Path(name)
        indexes = make_indexes(folder)
        for what, outcomes in (
            ("damaged indexes, refused", damaged_indexes(indexes, folder, files, rng)),
            ("damaged memories of what is sound, ignored", damaged_memories(indexes, folder, max(files // 20, 1), rng)),
            ("damaged leftovers of killed builds, mended", damaged_leftovers(folder, max(files // 20, 1), rng)),
        ):
            started = time.monotonic()
            listed = list(outcomes)
            wrong = [f"{file}, {way}: {problem}" for way, file, problem in listed if problem]
            num_problems += len(wrong)
            click.echo(f"{len(listed)} {what}: {len(wrong)} problems, {time.monotonic() - started:.0f} s")
            click.echo(f"  ways: {_counted(way for way, _, _ in listed)}")
            click.echo(f"  files: {_counted(Path(file).name for _, file, _ in listed)}")
            click.echo("".join(f"  {line}\n" for line in wrong[:20]), nl=False)
    sys.exit(1 if num_problems else 0)


def _counted(names: Iterable[str]) -> str:
    return ", ".join(f"{name} {num}" for name, num in sorted(Counter(names).items()))


if __name__ == "__main__":
    main()

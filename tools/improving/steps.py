"""Steps with results on disk: what is done stays done, what was killed goes on, what depends on a change is done anew.

WORK/NAME/        what step NAME made
WORK/NAME.json    its record: of which inputs, whether it is done, and the SHA-256 sums of its outputs

A step is done where its record says so, the inputs are the same, and the outputs have their sums. The record is written
last, in one rename, so that a kill at any moment leaves a step that is done or one that is not, and nothing between.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import check_can_write, read_json, sha256_of, sync_file, write_json
from common.locks import exclusive

Say = Callable[[str], None]


@dataclass(frozen=True)
class Step:
    """`make` fills a folder and returns what there is to tell, as JSON values. `inputs` are all that its result depends
    on: settings, and sums of files. `outputs`: files and folders in the folder that later steps read. A step that
    `resumes` is given the folder as a kill left it, others an empty one."""

    name: str
    inputs: Mapping[str, Any]
    make: Callable[[Path], Mapping[str, Any]]
    outputs: tuple[str, ...]
    resumes: bool = False

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the inputs, in hex."""
        return hashlib.sha256(json.dumps(self.inputs, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Made:
    """A step that is done: its folder, the sums of its outputs, and what it told."""

    folder: Path
    sums: dict[str, str]
    told: dict[str, Any]


@contextlib.contextmanager
def only_one(work: Path) -> Iterator[Path]:
    """Hold the folder for this process. ValueError where another one has it, or nothing can be written there."""
    check_can_write(work / "lock")
    with exclusive(work / ".lock", f"improving in {work}"):
        yield work


def run(work: Path, step: Step, say: Say = lambda _: None) -> Made:
    """The result of a step: what is there of the same inputs, else made now."""
    folder, record_file = work / step.name, work / f"{step.name}.json"
    record = read_record(record_file)
    same = record.get("fingerprint") == step.fingerprint
    if same and record.get("done"):
        if record["sums"] == sums_of(folder, step.outputs):
            say(f"{step.name}: done before ({record['seconds']:.0f} s)")
            return Made(folder, record["sums"], record["told"])
        say(f"{step.name}: its files are not what it wrote; once more")
        same = False
    begun = {"step": step.name, "fingerprint": step.fingerprint, "inputs": dict(step.inputs), "done": False}
    if not (same and step.resumes):
        record_file.unlink(missing_ok=True)  # first: without its record a folder is nothing
        if folder.exists():
            shutil.rmtree(folder)
        write_json(record_file, begun)
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{step.name}: " + ("going on" if same and step.resumes else "at work"))
    started = time.monotonic()
    told = dict(step.make(folder))
    sums = sums_of(folder, step.outputs)
    if missing := [name for name in step.outputs if not (folder / name).exists()]:
        raise RuntimeError(f"step {step.name} did not make {missing[0]}")
    for name in sums:
        sync_file(folder / name)
    seconds = round(time.monotonic() - started, 1)
    write_json(record_file, begun | {"done": True, "seconds": seconds, "sums": sums, "told": told})
    # As it is read again: tuples are lists.
    return Made(folder, sums, json.loads(json.dumps(told)))


def read_record(file: Path) -> dict[str, Any]:
    """What a record says; nothing where there is none, or it is none of ours."""
    try:
        record = read_json(file) if file.is_file() else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def sums_of(folder: Path, names: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 sums of files, and of all files in folders, by their names in `folder`; of what is there."""
    found: dict[str, str] = {}
    for name in names:
        place = folder / name
        files = sorted(each for each in place.rglob("*") if each.is_file()) if place.is_dir() else [place]
        found |= {each.relative_to(folder).as_posix(): sha256_of(each) for each in files if each.is_file()}
    return found

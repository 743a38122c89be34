"""Kill a change of an index at each of its steps in turn, and see what a reader finds. Run by test_retrieval_store.py.

    python tests/retrieval/kill_points.py build|update|delete|compact FOLDER [STRIDE]

STRIDE 4 tries every fourth step. A step is an audit event (open, mkdir, rename, remove, rmdir) on a path inside the
index. Each change runs in a forked
child that kills itself with SIGKILL just before step n; then the index is opened and read whole, the change is made
again to its end, and its result compared with that of a change that nobody killed. Prints a JSON object: after each
kill, whether the index was found "old", "new" or otherwise; and the results that differed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval.index.store import Store
from retrieval.retriever import Retriever
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.updating import update_index

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def killed_at(action: Callable[[], object], index: Path, step: int) -> bool:
    """Run `action` in a forked child that is killed just before its step number `step`; whether it got that far."""
    child = os.fork()
    if child == 0:
        num_steps = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal num_steps
            if event in STEPS and any(str(argument).startswith(str(index)) for argument in arguments):
                num_steps += 1
                if num_steps == step:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        status = 99
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the change failed with {status}")
    return status != 0


def content(index: Path) -> dict[str, Any]:
    """By passage id what is stored, all of it read, and searched once."""
    store = Store(index)
    found: dict[str, Any] = {}
    for (number, i), passage in store.live_passages():
        found[passage.id] = [passage.text, store.segments[number].vectors[i].tobytes().hex()]
    if len(found) != len(store):
        raise RuntimeError("passages are there twice")
    query = next(iter(found.values()))[0]
    if Retriever.open(index).search([query], 1)[0][0].passage.text != query:
        raise RuntimeError("a passage is not found by its own text")
    return found


def prepare(folder: Path) -> tuple[Path, Path]:
    """Documents, changed since they were indexed, and an index with deleted passages and two segments."""
    docs, index = folder / "docs", folder / "index"
    docs.mkdir(parents=True)
    for i in range(6):
        (docs / f"{i}.txt").write_text(f"Document number{i} was here first.")
    build_index([docs], index, "hash", calibrate=False)
    (docs / "6.txt").write_text("Document number6 came later.")
    update_index(index)
    delete_documents(index, [f"{docs}/1.txt"])
    (docs / "2.txt").write_text("Document number2 was written anew.")
    (docs / "3.txt").unlink()
    return docs, index


def main(kind: str, folder: Path, stride: int = 1) -> None:
    docs, prepared = prepare(folder)
    changes: dict[str, Callable[[Path], object]] = {
        "build": lambda index: build_index([docs], index, "hash", calibrate=False),
        "update": update_index,
        "delete": lambda index: delete_documents(index, [f"{docs}/4.txt"]),
        "compact": compact_index,
    }
    old = content(prepared)
    whole = Path(shutil.copytree(prepared, folder / "whole"))
    changes[kind](whole)
    new = content(whole)
    expected_files = sorted(entry.name.partition("-")[0] for entry in whole.iterdir())
    found, wrong = [], []
    for step in range(1, 1000, stride):
        index = Path(shutil.copytree(prepared, folder / "index-now"))
        killed = killed_at(lambda index=index: changes[kind](index), index, step)  # type: ignore[misc]
        now = content(index)
        found.append("old" if now == old else "new" if now == new else "other")
        if killed:
            if kind != "delete" or now == old:
                changes[kind](index)
            if content(index) != new:
                wrong.append(f"step {step}: another content")
            left = sorted(entry.name.partition("-")[0] for entry in index.iterdir() if entry.name != "verified.json")
            is_done = kind == "delete" and now == new  # nobody sweeps up until the next change
            if not is_done and left != [name for name in expected_files if name != "verified.json"]:
                wrong.append(f"step {step}: left {left}")
        shutil.rmtree(index)
        if not killed:
            break
    print(json.dumps({"found": found, "wrong": wrong}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))

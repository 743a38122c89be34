"""Kill a build at each of its steps in turn, and see what a reader finds. Run by test_retrieval_store.py.

    python tests/retrieval/kill_points.py OLD_DOCUMENTS NEW_DOCUMENTS INDEX

A step is an audit event (open, mkdir, rename, remove, rmdir) on a path inside INDEX. Each build runs in a forked
child that kills itself with SIGKILL just before step n; another child opens the index, reads every passage and
searches. Prints one JSON object: the number of documents found after each kill, and what a last build leaves behind.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from retrieval.build import build_index
from retrieval.retriever import Retriever
from retrieval.store import Store

STEPS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}


def in_child(action: Callable[[], int]) -> int:
    """Exit status of `action` in a forked child: its result, or minus the signal that killed it."""
    child = os.fork()
    if child == 0:
        status = 99
        try:
            status = action()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def build(documents: str, index: str, kill_before: int | None = None) -> int:
    num_steps = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal num_steps
        if event in STEPS and any(str(argument).startswith(index) for argument in arguments):
            num_steps += 1
            if num_steps == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

    if kill_before is not None:
        sys.addaudithook(count)
    build_index([documents], index, "hash")
    return 0


def read(index: str) -> int:
    """The number of documents in the index, all of it read."""
    store = Store(index)
    passages = [store.passage(i) for i in range(len(store))]
    assert len({passage.source for passage in passages}) == store.manifest.num_documents
    assert Retriever.open(index).search([passages[-1].text], 1)[0][0].passage == passages[-1]
    return store.manifest.num_documents


def main(old: str, new: str, index: str) -> None:
    found = []
    for step in range(1, 100):
        assert in_child(lambda: build(old, index)) == 0
        status = in_child(lambda step=step: build(new, index, kill_before=step))  # type: ignore[misc]
        found.append(in_child(lambda: read(index)))
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert in_child(lambda: build(new, index)) == 0
    left = sorted(entry.name.split("-")[0] for entry in Path(index).iterdir())
    print(json.dumps({"found": found, "left": left}))


if __name__ == "__main__":
    main(*sys.argv[1:])

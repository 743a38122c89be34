"""Checkpoints written beside training: weights stay as they are until the optimizer's next step, which waits for them.

Nothing is copied. A process that has written its part leaves a mark; the first process waits for all marks and gives
the checkpoint its name. Marks are files, since a second thread must not take part in what the processes do together.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread

from common.files import sync_file

POLL_S = 0.02


class Writing:
    """One checkpoint at a time. `waited` are the seconds that training has waited for it since it was last asked."""

    def __init__(self) -> None:
        self._thread: Thread | None = None
        self._written = Event()
        self._error: BaseException | None = None
        self.waited = 0.0

    def begin(self, write: Callable[[], None], commit: Callable[[], None]) -> None:
        """`write`, for which `until_written` waits, then `commit`, for which `until_done` waits."""
        self.until_done()
        self._written.clear()
        self._thread = Thread(target=self._run, args=(write, commit), daemon=True)
        self._thread.start()

    def until_written(self) -> None:
        """Raises what `write` or `commit` raised."""
        if self._thread is not None:
            began = time.perf_counter()
            self._written.wait()
            self.waited += time.perf_counter() - began
            self._raise()

    def until_done(self) -> None:
        """Raises what `write` or `commit` raised."""
        if self._thread is not None:
            began = time.perf_counter()
            self._thread.join()
            self.waited += time.perf_counter() - began
            self._thread = None
            self._raise()

    def _run(self, write: Callable[[], None], commit: Callable[[], None]) -> None:
        try:
            try:
                write()
            finally:
                self._written.set()
            commit()
        except BaseException as error:  # it is raised where training waits
            self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def mark(folder: Path, process: int) -> None:
    """Say that a process has written all its files in `folder`."""
    made = folder / f".written-{process}"
    made.touch()
    sync_file(made)


def wait_for_marks(folder: Path, num_processes: int) -> None:
    """Return when all processes have said so; their marks are gone then."""
    marks = [folder / f".written-{process}" for process in range(num_processes)]
    while not all(each.exists() for each in marks):
        time.sleep(POLL_S)
    for each in marks:
        each.unlink()

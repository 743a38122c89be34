"""Calls with a time limit, each in a thread of its own that waits for the next one.

A thread cannot be killed: a call that ran out of time goes on by itself, and what it returns in the end is dropped. So
that calls that never end do not pile up, no more than `most` run at once.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, TypeVar, cast

Result = TypeVar("Result")
_Outcome = tuple[Any, BaseException | None]
_Job = tuple[Callable[[], Any], "SimpleQueue[_Outcome]"]


class TooSlow(Exception):  # noqa: N818  # it says what happened
    """A call did not end in time, or could not begin because too many others have not ended."""


class Workers:
    """Threads to run calls in; at most `most` at a time. Safe to use from several threads."""

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._idle: deque[_Worker] = deque()
        self._busy = 0
        self._lock = threading.Lock()

    def run(self, call: Callable[[], Result], timeout: float | None) -> Result:
        """What `call()` returns, or raises; TooSlow after `timeout` seconds. None: no limit, and no other thread."""
        if timeout is None:
            return call()
        answer: SimpleQueue[_Outcome] = SimpleQueue()
        self._worker().jobs.put((call, answer))
        try:
            result, error = answer.get(timeout=timeout)
        except Empty:
            raise TooSlow(f"took longer than {timeout:g} s") from None
        if error is not None:
            raise error
        return cast(Result, result)

    def _worker(self) -> _Worker:
        with self._lock:
            if self._busy >= self._most:
                raise TooSlow(f"still works on {self._busy} earlier calls")
            self._busy += 1
            while self._idle:
                worker = self._idle.pop()
                if worker.thread.is_alive():  # none is after a fork
                    return worker
        return _Worker(self._release)

    def _release(self, worker: _Worker) -> None:
        with self._lock:
            self._busy -= 1
            self._idle.append(worker)


class _Worker:
    """One thread, and the queue that it takes its jobs from."""

    def __init__(self, release: Callable[[_Worker], None]) -> None:
        self.jobs: SimpleQueue[_Job] = SimpleQueue()
        self._release = release
        # A daemon: a call that hangs must not keep the program from ending.
        self.thread = threading.Thread(target=self._work, name="moderation", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            self._do(*self.jobs.get())

    def _do(self, call: Callable[[], Any], answer: SimpleQueue[_Outcome]) -> None:
        outcome: _Outcome
        try:
            outcome = call(), None
        except BaseException as error:  # whatever it is, it belongs to the caller, Ctrl-C included
            outcome = None, error
        self._release(self)
        answer.put(outcome)

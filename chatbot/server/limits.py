"""Limits, and the queue: so many requests at once, the others wait in the order in which they came."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass

from chatbot.api.errors import ApiError
from chatbot.api.watch import Watch, too_late


@dataclass(frozen=True)
class Limits:
    """What one server takes on. Times are in seconds."""

    body_bytes: int = 1 << 20
    concurrent: int = 8
    queued: int = 128
    request_seconds: float = 300.0
    drain_seconds: float = 30.0


class Lane:
    """`num_slots` requests at once. Lives on the event loop: no other thread may call it."""

    def __init__(self, num_slots: int, max_waiting: int) -> None:
        self.num_slots, self.max_waiting = num_slots, max_waiting
        self.running = 0
        self.abandoned = 0  # threads at work for nobody, beside those that run
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._seconds = 1.0  # that a request takes, of late

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    async def acquire(self, watch: Watch) -> Slot:
        """Wait for a slot. ApiError where too many wait, or the time is up."""
        if self.running < self.num_slots and not self._waiting:
            self.running += 1
            return Slot(self)
        if len(self._waiting) >= self.max_waiting:
            raise ApiError(
                429,
                f"{self.running} requests are at work and {self.waiting} wait, which is this server's limit; try later",
                "queue_full",
                headers={"Retry-After": str(self._retry_after())},
            )
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        timer = loop.call_later(min(watch.remaining, 1e6), _expire, turn)
        try:
            await turn
        except BaseException:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._pass_on()  # the slot was given at the very moment of the cancellation
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise
        finally:
            timer.cancel()
        return Slot(self)

    def release(self, seconds: float) -> None:
        """Take a slot back that was held for so long."""
        self._seconds += 0.2 * (seconds - self._seconds)
        self._pass_on()

    def _pass_on(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.running -= 1

    def _retry_after(self) -> int:
        """Whole seconds until the queue is likely to have room."""
        return max(1, min(60, round(self._seconds * (self.waiting + 1) / self.num_slots)))


class Slot:
    """A place among those at work."""

    def __init__(self, lane: Lane) -> None:
        self._lane, self._since, self._is_abandoned = lane, time.monotonic(), False

    def give_back(self) -> None:
        """The work has ended."""
        if self._is_abandoned:
            self._lane.abandoned -= 1
        else:
            self._lane.release(time.monotonic() - self._since)
        self._lane = Lane(0, 0)  # whatever comes now is too late

    def abandon(self) -> None:
        """Nobody waits for the work, but it has not noticed yet: an engine reads a long prompt, say. Others may have
        the place, while no more threads than there are places are at work for nobody."""
        if not self._is_abandoned and self._lane.abandoned < self._lane.num_slots:
            self._is_abandoned = True
            self._lane.abandoned += 1
            self._lane.release(time.monotonic() - self._since)


def _expire(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_exception(too_late())

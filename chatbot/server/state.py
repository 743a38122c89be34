"""What the parts of a running server share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from chatbot.api.errors import ApiError
from chatbot.api.service import Service
from chatbot.server.keys import Keyring
from chatbot.server.limits import Lane, Limits
from chatbot.server.metrics import Metrics
from chatbot.server.work import Job

LAST_WORDS = 2.0  # seconds to send what an answer has when it must end
NUM_QUICK = 4  # searches, embeddings and their like at once: they do not wait for the answers of a chat model


@dataclass
class State:
    """One server. `hosts`: the only names it answers to, None for any. `jobs`: requests that wait or are at work.
    `draining` since: it takes no new work and ends when the rest is done."""

    service: Service
    keyring: Keyring
    limits: Limits = field(default_factory=Limits)
    hosts: frozenset[str] | None = None
    cors: tuple[str, ...] = ()
    metrics: Metrics = field(default_factory=Metrics)
    jobs: set[Job] = field(default_factory=set)
    draining: float | None = None

    def __post_init__(self) -> None:
        self.lanes = {
            "generation": Lane(self.limits.concurrent, self.limits.queued),
            "quick": Lane(NUM_QUICK, self.limits.queued),
        }

    @property
    def busy(self) -> bool:
        """Whether a thread is at work."""
        return any(lane.running or lane.abandoned for lane in self.lanes.values())

    def drain(self) -> None:
        """Take no new work from now on."""
        if self.draining is None:
            self.draining = time.monotonic()

    def drained(self) -> bool:
        """Whether a server that drains may end. Past its time, it has the answers at work end with what they have, and
        then those end that have nothing."""
        if self.draining is None or not self.jobs:
            return self.draining is not None
        late = time.monotonic() - self.draining - self.limits.drain_seconds
        if late >= LAST_WORDS:
            for job in self.jobs:
                job.stop(ending())
        elif late >= 0:
            for job in self.jobs:
                job.watch.hurry()
        return late >= 2 * LAST_WORDS


def ending() -> ApiError:
    """What a server says that takes no more."""
    return ApiError(503, "the server is about to end", "draining", headers={"Retry-After": "5"})

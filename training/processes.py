"""Several processes of one run (torchrun, accelerate launch): who is first, and who waits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def rank() -> int:
    """The number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


@contextmanager
def main_first() -> Iterator[None]:
    """The first process of each machine goes through before the others, which then find what it made."""
    if num_processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().local_main_process_first():
        yield

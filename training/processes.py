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
def others_needed() -> Iterator[None]:
    """Say plainly that another process is gone, which torch says in the words of its transport.

    Raises ConnectionError.
    """
    try:
        yield
    except RuntimeError as error:
        import torch.distributed as dist

        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ConnectionError(
            "another process of this run ended or did not answer in time; see what it wrote last, and start all again: "
            f"the run goes on from its last checkpoint ({reason})"
        ) from error


@contextmanager
def main_first() -> Iterator[None]:
    """The first process of each machine goes through before the others, which then find what it made."""
    if num_processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().local_main_process_first():
        yield

"""Several processes of one run (torchrun, accelerate launch): who is first, and who waits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def rank() -> int:
    """The number of this process among all, from 0."""
    return int(os.environ.get("RANK", "0"))


def num_processes() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return rank() == 0


def join(device: torch.device, timeout_s: int) -> torch.device:
    """Join the other processes of the run, which wait for each other at most so long; the device of this one.

    One process alone is a group as well, so that it can go on with what several began. Raises ValueError where the
    others are not found, or this process has no GPU of its own.
    """
    import torch
    import torch.distributed as dist
    from accelerate import PartialState

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda" and local >= torch.cuda.device_count():
        raise ValueError(
            f"process {local} of this machine has no GPU: there are {torch.cuda.device_count()}; start so many "
            "processes a machine, or set model.device=cpu"
        )
    try:
        state = PartialState(cpu=device.type == "cpu", timeout=timedelta(seconds=timeout_s))
    except (RuntimeError, ValueError) as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"the {num_processes()} processes did not find each other at {place} ({reason})") from None
    if not dist.is_initialized():
        store = dist.HashStore()  # type: ignore[attr-defined]  # torch exports it at run time
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=0, world_size=1)
    joined: torch.device = state.device
    return joined


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
def first_of_all() -> Iterator[None]:
    """The first process goes through before all others."""
    if num_processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().main_process_first():
        yield


@contextmanager
def main_first() -> Iterator[None]:
    """The first process of each machine goes through before the others, which then find what it made."""
    if num_processes() == 1:
        yield
        return
    from accelerate import PartialState

    with PartialState().local_main_process_first():
        yield

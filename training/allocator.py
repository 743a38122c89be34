"""The memory that a training step frees, kept for the next one."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory() -> bool:
    """Let malloc keep large blocks that are freed; whether this system's malloc can (glibc's does).

    Otherwise each large tensor is fresh memory, which the system fills with zeros page by page: of micro-batches on a
    CPU a sixth of the time. Blocks of 1 GiB or more still go back at once, and so does what is free at the end of the
    heap beyond 2 GiB.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_MMAP_THRESHOLD, 1 << 30) and mallopt(_TRIM_THRESHOLD, (1 << 31) - 1))

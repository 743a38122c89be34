"""One writer at a time: a lock that the system takes back when its holder ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def exclusive(lock: Path, what: str, wait: bool = False) -> Iterator[None]:
    """Hold the file `lock`, which stays behind and holds the pid of its last holder.

    Where another process has it, waits until it is free with `wait`; without, raises ValueError with the holder's pid:
    "another process (pid 12) is {what}".
    """
    # The file is never deleted: two processes could then hold "the" lock, one of them on a file without a name.
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0))
    try:
        while not (locked := _try_lock(descriptor)) and wait:
            time.sleep(0.2)
        if not locked:
            holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() if hasattr(os, "pread") else ""
            named = f" (pid {holder})" if holder.isdigit() else ""
            raise ValueError(f"another process{named} is {what}; wait until it has ended")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)  # this gives the lock back


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True

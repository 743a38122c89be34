"""A progress bar on stderr: passages, rate, memory and time left; nothing where stderr is no terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from retrieval.writing.runners import OnProgress


@contextlib.contextmanager
def progress_bar() -> Iterator[OnProgress | None]:
    """What to call with (bytes read, bytes to read, passages written); None where nobody looks."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("build", total=None, shown="loading")
        started = time.perf_counter()

        def show(bytes_done: int, num_bytes: int, num_passages: int) -> None:
            rate = num_passages / max(time.perf_counter() - started, 1e-9)
            shown = f"{num_passages:,} passages, {rate:.0f}/s{_memory()}"
            bar.update(task, total=num_bytes, completed=bytes_done, shown=shown)

        yield show


def _memory() -> str:
    """', 321 MB' of this process, where the system tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return ""
    return f", {pages * os.sysconf('SC_PAGE_SIZE') / 1e6:.0f} MB"

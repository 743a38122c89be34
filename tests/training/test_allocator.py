"""Freed memory that the next step uses again, seen by the page faults of a process of its own."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
from training.allocator import keep_freed_memory

SIZE = 48_000_000

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        b"x" * SIZE  # malloc, then written
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has these settings")
def test_blocks_that_were_freed_are_not_fetched_anew() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    before, kept, after = done.stdout.split()
    pages = 48_000_000 // 4096
    assert kept == "True"
    assert int(before) > pages * 10  # most of the twenty
    assert int(after) < pages * 2  # the first, at most

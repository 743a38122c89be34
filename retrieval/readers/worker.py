"""The process that reads files for `guard.py`: jobs come in on standard input, documents go out, a line each.

    python -m retrieval.readers.worker LIMITS      (LIMITS: the fields of `Limits` as a JSON object)

A job is `{"path", "source", "root"}`. The answer to it is any number of
    {"alive": true}                                     still at it
    {"document": [title, unit, record, meta, headings, blocks]}
                                                        blocks: [text, start, end, index into headings]
and then one of
    {"done": true, "left_out": "..."}                   left_out: what could not be read, '' for nothing
    {"error": reason, "kind": "refused" or "memory", "left_out": "..."}
After "memory" the process ends, since nobody knows what state it is in.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import time
import warnings
from typing import Any, BinaryIO

from retrieval.readers.files import Job, Parsed, part_name, read_file
from retrieval.readers.limits import LeftOut, Limits

ALIVE_SECONDS = 0.5  # between two signs of life
_CPU_SLACK = 2.0  # times the time limit, which the parent watches: this one is for when the parent is gone


def main() -> None:
    """Serve until standard input ends."""
    limits = Limits(**json.loads(sys.argv[1]))
    # Documents and nothing else may go to the pipe, whatever a library prints.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends this process
    restrict(limits)
    served = _Served(answers, limits)
    for line in sys.stdin.buffer:
        if not served.serve(json.loads(line)):
            break
    answers.flush()


def restrict(limits: Limits) -> None:
    """Let this process have no more memory than the limits say, and write no file, from now on; nothing on Windows."""
    try:
        import resource
    except ImportError:
        return
    memory = limits.memory_mb * 1_000_000
    for kind, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):  # macOS knows no limit of the address space
            continue


def allow_cpu(seconds: float) -> None:
    """Let the system end this process if it computes for so long without calling this again."""
    try:
        import resource
    except ImportError:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    allowed = math.ceil(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (allowed if hard == resource.RLIM_INFINITY else min(allowed, hard), hard))


class _Served:
    """The jobs, one after the other."""

    def __init__(self, answers: BinaryIO, limits: Limits) -> None:
        self._answers = answers
        self._limits = limits
        self._last = 0.0  # when the last line was sent

    def serve(self, request: dict[str, str]) -> bool:
        """Answer one job; False where it is better to end."""
        allow_cpu(_CPU_SLACK * self._limits.seconds)
        job = Job(request["path"], request["source"], request["root"], self._limits)
        left_out = LeftOut()
        kind = ""
        reason = ""
        try:
            for parsed in read_file(job, left_out, self._show_life):
                self._send({"document": _document(parsed)})
        except ValueError as error:
            kind, reason = "refused", str(error)
        except MemoryError:
            kind, reason = "memory", f"it needs more than {self._limits.memory_mb} MB of memory"
        except RecursionError:
            kind, reason = "refused", "it is nested too deeply"
        except Exception as error:  # parsers of foreign formats raise anything
            kind, reason = "refused", f"it cannot be parsed ({type(error).__name__}: {str(error)[:150]})"
        said = left_out.summary(part_name(job.path))
        if kind:
            self._send({"error": reason, "kind": kind, "left_out": said})
        else:
            self._send({"done": True, "left_out": said})
        self._answers.flush()
        return kind != "memory"

    def _show_life(self) -> None:
        now = time.monotonic()
        if now - self._last > ALIVE_SECONDS:
            allow_cpu(_CPU_SLACK * self._limits.seconds)
            self._send({"alive": True})
            self._answers.flush()

    def _send(self, message: dict[str, Any]) -> None:
        self._last = time.monotonic()
        self._answers.write(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace") + b"\n")


def _document(parsed: Parsed) -> list[Any]:
    headings: dict[str, int] = {}
    blocks = [
        (block.text, block.start, block.end, headings.setdefault(block.heading, len(headings)))
        for block in parsed.blocks
    ]
    return [parsed.title, parsed.unit, parsed.record, parsed.meta, list(headings), blocks]


if __name__ == "__main__":
    main()

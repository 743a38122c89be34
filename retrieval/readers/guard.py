"""Reading files in a process of its own, within limits of time and memory, so that no file can stop or bloat a build.

The process (`retrieval/readers/worker.py`) is started when the first file is read, serves one file after the other,
and is ended and replaced when it breaks a limit or dies. Nothing but lines of JSON comes back from it, of bounded
length, and they are checked. It may not write files; on Windows only time is limited, not memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, cast

from retrieval.readers.limits import Limits as Limits
from retrieval.types import Block, Document, SourceFile, Unit

_ROOT = Path(__file__).resolve().parents[2]
_UNITS: tuple[Unit, ...] = ("line", "page", "record", "paragraph")
_PIECE_BYTES = 1 << 16
_MAX_PIECES = 16  # read ahead; beyond that the process waits in its pipe
_MAX_MESSAGE_EXTRA = 1 << 24  # beside the text itself: paragraphs' numbers, headings, metadata, escapes
_MAX_BYTES_OF_BLOCK = 40  # its numbers and punctuation in a message
_STDERR_BYTES = 4096
_END_SECONDS = 1.0  # a process that has closed its pipe has this long to end
# What Python needs to start and to find its packages. A hostile file that takes the reader over finds no keys here.
_ENVIRONMENT = (
    *("APPDATA", "DYLD_LIBRARY_PATH", "HOME", "LANG", "LC_ALL", "LC_CTYPE", "LD_LIBRARY_PATH", "PATH", "PYTHONHOME"),
    *("PYTHONPATH", "PYTHONUSERBASE", "SYSTEMROOT", "TEMP", "TMP", "TMPDIR", "USERPROFILE", "VIRTUAL_ENV"),
)


class GuardedReader:
    """Reads files, one at a time, in a process of its own. Also a context manager, which closes it.

    `command` runs another worker; the tests of this class pass some that misbehave.
    """

    def __init__(self, limits: Limits | None = None, command: Sequence[str] | None = None) -> None:
        self._limits = limits or Limits()
        self._command = list(command or [sys.executable, "-m", "retrieval.readers.worker"])
        self._process: _Process | None = None
        self._notes: list[str] = []
        self._is_reading = False

    def __enter__(self) -> GuardedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process. A later `read` starts a new one."""
        if self._process:
            self._process.kill()
            self._process = None

    def take_notes(self) -> list[str]:
        """What was left out of the files read since the last call, a line for each file that lost something."""
        notes, self._notes = self._notes, []
        return notes

    def read(self, file: SourceFile) -> Iterator[Document]:
        """The documents of a file, as they are read.

        Raises ValueError with the bare reason where the file, or what is left of it after the documents so far, cannot
        be read or breaks a limit. The time that the caller takes for a document does not count. One file at a time.
        """
        if self._is_reading:
            raise RuntimeError("this reader is still reading another file")
        self._is_reading = True
        whole = False
        try:
            num = 0
            try:
                for document in self._read(file):
                    num += 1
                    yield document
            except _BrokenError as error:
                # A process that has read other files may have too little memory left because of them.
                if num or not error.may_be_left_over:
                    raise
                self.close()
                yield from self._read(file)
            whole = True
        except _RefusedError as error:
            whole = True
            raise ValueError(str(error)) from None
        finally:
            self._is_reading = False
            if not whole:  # the process is broken, or still busy with the file
                self.close()

    def _read(self, file: SourceFile) -> Iterator[Document]:
        process = self._started()
        root = os.path.realpath(file.root) if file.root else ""
        process.send({"path": os.path.abspath(file.path), "source": file.source, "root": root})  # noqa: PTH100
        total = remaining = self._limits.total_seconds(file.size)
        num_documents = 0
        while True:
            started = time.monotonic()
            try:
                message = process.receive(min(self._limits.seconds, remaining))
            except queue.Empty:
                allowed = self._limits.seconds if remaining > self._limits.seconds else total
                raise _BrokenError(f"it took more than {allowed:.3g} s") from None
            remaining -= time.monotonic() - started
            if "document" in message:
                num_documents += 1
                yield _document(message["document"], file.source)
            elif "alive" not in message:
                break
        process.num_files += 1
        if message.get("kind") == "memory":
            raise _BrokenError(_line(message.get("error")), process.num_files > 1)
        note = _line(message.get("left_out", ""))
        if note and (num_documents or "error" not in message):  # without documents, the error says it
            self._notes.append(note)
        if "error" in message:
            raise _RefusedError(_line(message["error"]))

    def _started(self) -> _Process:
        if self._process is None:
            self._process = _Process(self._command, self._limits)
        return self._process


class _RefusedError(ValueError):
    """The file cannot be read; the process is fine."""


class _BrokenError(ValueError):
    """The process is no longer of use. `may_be_left_over`: maybe because of the files that it read before."""

    def __init__(self, reason: str, may_be_left_over: bool = False) -> None:
        super().__init__(reason)
        self.may_be_left_over = may_be_left_over


class _Process:
    """The process, and two threads that take what it says: a pipe cannot be read with a time limit everywhere."""

    def __init__(self, command: Sequence[str], limits: Limits) -> None:
        self.num_files = 0  # that it has answered for
        self._limits = limits
        text = 4 * limits.max_text_chars + _MAX_BYTES_OF_BLOCK * limits.max_blocks
        self._max_message = text + _MAX_MESSAGE_EXTRA
        environment = {name: value for name, value in os.environ.items() if name.upper() in _ENVIRONMENT}
        self._popen = subprocess.Popen(
            [*command, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=_ROOT,  # `python -m` imports from the current folder first, which may be anybody's
            env={**environment, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            bufsize=0,
        )
        self._requests = cast(IO[bytes], self._popen.stdin)
        self._lines: deque[bytes] = deque()
        self._rest: list[bytes] = []  # of the answer, after the last whole line
        self._pieces: queue.Queue[bytes] = queue.Queue(_MAX_PIECES)
        self._complaint = b""
        self._closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._take_answers, args=[self._popen.stdout], daemon=True),
            threading.Thread(target=self._take_complaints, args=[self._popen.stderr], daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def send(self, request: dict[str, str]) -> None:
        """Raises _BrokenError where the process has ended."""
        try:
            self._requests.write(json.dumps(request).encode("ascii") + b"\n")
        except OSError:
            raise self._why_it_ended() from None

    def receive(self, seconds: float) -> dict[str, Any]:
        """The next message. Raises queue.Empty where there is none in time, and _BrokenError where it makes no sense or
        the process has ended."""
        deadline = time.monotonic() + seconds
        while not self._lines:
            piece = self._pieces.get(timeout=max(deadline - time.monotonic(), 0.001))
            if not piece:
                raise self._why_it_ended()
            first, *others = piece.split(b"\n")
            self._rest.append(first)
            if others:
                self._lines.append(b"".join(self._rest))
                self._lines.extend(others[:-1])
                self._rest = others[-1:]
            elif sum(map(len, self._rest)) > self._max_message:
                raise _BrokenError("its reader's answer is too long")
        return _message(self._lines.popleft())

    def kill(self) -> None:
        """End the process and the threads."""
        self._closed.set()
        self._popen.kill()
        self._popen.wait()
        with contextlib.suppress(OSError):
            self._requests.close()
        for thread in self._threads:
            thread.join(1)  # longer only if something else still holds the pipe

    def _take_answers(self, pipe: IO[bytes]) -> None:
        with pipe:
            while piece := pipe.read(_PIECE_BYTES):
                if not self._put(piece):
                    return
            self._put(b"")

    def _put(self, piece: bytes) -> bool:
        while not self._closed.is_set():
            try:
                self._pieces.put(piece, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def _take_complaints(self, pipe: IO[bytes]) -> None:
        with pipe:
            while piece := pipe.read(_PIECE_BYTES):
                self._complaint = (self._complaint + piece)[-_STDERR_BYTES:]

    def _why_it_ended(self) -> _BrokenError:
        try:
            code = self._popen.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            return _BrokenError("its reader stopped answering")
        self._threads[1].join(_END_SECONDS)
        lines = self._complaint.decode("utf-8", "replace").strip().split("\n")
        complaint = _line(lines[-1])
        left_over = self.num_files > 0
        if "MemoryError" in complaint or "out of memory" in complaint.lower():
            return _BrokenError(f"it needs more than {self._limits.memory_mb} MB of memory", left_over)
        if code == -getattr(signal, "SIGXCPU", 0):
            return _BrokenError(f"it took more than {self._limits.seconds:g} s")
        if code < 0:
            name = signal.Signals(-code).name if -code in {each.value for each in signal.Signals} else str(-code)
            hint = ", as happens when memory runs out" if name == "SIGKILL" else ""
            return _BrokenError(f"its reader was ended by {name}{hint}", left_over)
        return _BrokenError(f"its reader ended with code {code}{f' ({complaint})' if complaint else ''}", left_over)


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise _BrokenError("its reader answered with something else than a document")
    return message


def _document(fields: Any, source: str) -> Document:
    """Checked field by field: the process that made it may have been taken over by what it read."""
    try:
        title, unit, record, meta, headings, blocks = fields
        made = tuple(
            Block(_str(text), _number(start), _number(end), _str(headings[i])) for text, start, end, i in blocks
        )
        if unit not in _UNITS or not made:
            raise ValueError(unit)
        meta = {_str(key): value for key, value in meta.items() if isinstance(value, str | int | float | bool)}
        number = f"{source}#{_str(record)}" if record else source
        return Document(number, made, _str(title), source, meta, unit)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise _BrokenError("its reader answered with something else than a document") from None


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value))
    if not value.isascii():
        value.encode()  # halves of surrogate pairs, which nobody could store, are a ValueError
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(value)
    return value


def _line(text: Any) -> str:
    """One printable line of bounded length, whatever comes."""
    text = " ".join(str(text).split())[:500]
    return "".join(char for char in text if char.isprintable())

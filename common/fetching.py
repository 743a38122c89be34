"""A file from a URL: whole and as it should be, or not at all. What broke off, or was killed, goes on where it was.

Until `name` is whole, `.name.part` stands in its place, and `.name.part.json` says what is in that: how many bytes,
their SHA-256 sum, and what the server called the content. A part is gone on with only as far as that is still true of
it, and only where the rest must belong to it: the server still has the same content (its ETag or its time of change,
RFC 9110 section 13.1.5), or the sum of the whole is known beforehand.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from common.files import read_json, sync_folder, write_json

RETRIES = 5
_TIMEOUT = 60.0  # seconds without a byte
_WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before the first further attempt, the second, ...
_MAX_WAIT = 300.0  # seconds, where a server asks for patience
_SAVE_EVERY = 16 << 20  # bytes: at most so many are fetched again after a kill
_PASSING = {408, 429, 500, 502, 503, 504}


@dataclass(frozen=True)
class Remote:
    """What is at a URL. `num_bytes` and `sha256` (in hex) where they are known beforehand; `headers` go to the URL's
    own host only where they are secret (Authorization), not to one that it redirects to."""

    url: str
    num_bytes: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class RefusedError(ValueError):
    """The server will not give the file: `status` is its answer."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class UnreachableError(ValueError):
    """No connection to the server at all."""


class _BrokenError(Exception):
    """Something that another attempt may mend, after `wait` seconds where the server says so."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


def fetch(remote: Remote, path: Path, retries: int = RETRIES, say: Callable[[str], None] = lambda _: None) -> str:
    """Put what is at a URL into the file `path`, and return its SHA-256 sum.

    What breaks off is taken up again by itself, `retries` times without a further byte, and by the next call. Raises
    RefusedError for an answer such as 404, UnreachableError where there is no connection from the start, and ValueError
    where it keeps breaking off, the disk is full, or size or sum are not those of `remote`. One process at a time.
    """
    name = shown(remote.url)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with contextlib.closing(_Part(remote, path)) as part, _progress(path.name) as show:
            _fetch(remote, part, retries, show, lambda line: say(f"{path.name}: {line}"))
            return part.become_whole()
    except _BrokenError as error:
        raise ValueError(f"{name}: cannot be fetched ({error}); what came is kept: the same again goes on") from None
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ValueError(f"{name}: the disk is full; free some space: the same again goes on from there") from None


def file_name(url: str) -> str:
    """The last part of a URL's path, without what may be secret in it (a query, a password)."""
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2].lstrip(".") or "download"


def shown(url: str) -> str:
    """A URL for messages and records, without what may be secret in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _fetch(remote: Remote, part: _Part, retries: int, show: _Show, say: Callable[[str], None]) -> None:
    most, failures = -1, 0
    while not part.is_whole:
        try:
            _receive(remote, part, show)
        except _BrokenError as error:
            failures = 1 if part.num_bytes > most else failures + 1
            most = max(most, part.num_bytes)
            if failures > retries:
                raise
            wait = error.wait if error.wait is not None else _WAITS[min(failures, len(_WAITS)) - 1]
            say(f"{error}; again in {wait:.0f} s")
            time.sleep(wait)


def _receive(remote: Remote, part: _Part, show: _Show) -> None:
    """One request, for what the part lacks."""
    import httpx

    had, name = part.num_bytes, shown(remote.url)
    # The bytes as they are: sizes, sums and ranges are about those.
    headers = {"Accept-Encoding": "identity", **remote.headers, **part.asking()}
    try:
        with httpx.stream("GET", remote.url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
            packed = response.headers.get("Content-Encoding", "identity") != "identity"
            part.begin(response.status_code, response.headers, packed)
            show(part.num_bytes, part.total)
            for piece in response.iter_bytes() if packed else response.iter_raw():
                part.write(piece)
                show(part.num_bytes, part.total)
        part.end()
    except httpx.ConnectError as error:
        if not had:
            raise UnreachableError(f"{name}: cannot be fetched ({str(error) or 'no connection'})") from None
        raise _BrokenError(str(error) or "no connection") from None
    except (httpx.UnsupportedProtocol, httpx.TooManyRedirects, httpx.InvalidURL) as error:
        raise ValueError(f"{name}: cannot be fetched ({error})") from None
    except httpx.HTTPError as error:
        raise _BrokenError(str(error) or type(error).__name__) from None


class _Part:
    """What there is of a file, on disk. `total` is the size of the whole where that is known, in bytes."""

    def __init__(self, remote: Remote, path: Path) -> None:
        self._remote, self._path = remote, path
        self._part, self._record = (path.with_name(f".{path.name}.part{end}") for end in ("", ".json"))
        self._file = open(self._part, "r+b" if self._part.exists() else "w+b")  # noqa: SIM115  # closed by close()
        self.total = remote.num_bytes
        self.is_whole = False
        self._validator: str | None = None
        self._restart()
        self._go_on()

    @property
    def _identity(self) -> str:
        return self._remote.sha256 or hashlib.sha256(self._remote.url.encode()).hexdigest()

    def _restart(self) -> None:
        self.num_bytes = self._num_saved = 0
        self._digest = hashlib.sha256()

    def _go_on(self) -> None:
        """Take over what an earlier call left, as far as its record is true of it; what is beyond that is cut off."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            record = read_json(self._record)
            digest = hashlib.sha256()
            left = int(record["num_bytes"])
            while left and (block := self._file.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
            if (record["identity"], record["sha256"], left) == (self._identity, digest.hexdigest(), 0):
                self.num_bytes = self._num_saved = int(record["num_bytes"])
                self._digest, self._validator = digest, record["validator"]
                self.total = self.total if self.total is not None else record["total"]
        self._file.seek(self.num_bytes)
        self._file.truncate()
        self.is_whole = self.num_bytes > 0 and self.num_bytes == self.total

    def asking(self) -> dict[str, str]:
        """The headers that ask for the rest; of what cannot be known to be the same, for all."""
        if self.num_bytes and not (self._remote.sha256 or self._validator):
            self._restart()
        if not self.num_bytes:
            return {}
        only_if = {} if self._remote.sha256 else {"If-Range": str(self._validator)}
        return {"Range": f"bytes={self.num_bytes}-", **only_if}

    def begin(self, status: int, headers: Mapping[str, str], packed: bool) -> None:
        """Judge the beginning of an answer."""
        if status in _PASSING:
            raise _BrokenError(f"the server answered {status}", _patience(headers))
        etag = headers.get("ETag", "")
        validator = headers.get("Last-Modified") if not etag or etag.startswith("W/") else etag
        if status == 206 and self.num_bytes:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
            first, total = map(int, found.groups()) if found else (None, None)
            is_same = self._remote.sha256 or validator in (None, self._validator)
            if packed or not is_same or first != self.num_bytes or self.total not in (None, total):
                self._restart()
                raise _BrokenError("the server has other content than before")
        elif status == 200:
            self._restart()
            size = headers.get("Content-Length", "")
            total = int(size) if size.isdigit() and not packed else None
            self._validator = None if packed else validator
        elif status == 416 and self.num_bytes:
            self._restart()
            raise _BrokenError("the server has less than before")
        else:
            raise RefusedError(f"{shown(self._remote.url)}: the server answered {status}", status)
        expected = self._remote.num_bytes
        if None not in (total, expected) and total != expected:
            raise ValueError(f"{shown(self._remote.url)}: has {total:,} bytes there, not {expected:,} as expected")
        self.total = total if expected is None else expected
        self._file.seek(self.num_bytes)
        self._file.truncate()

    def write(self, piece: bytes) -> None:
        if self.total is not None and self.num_bytes + len(piece) > self.total:
            self._restart()
            raise ValueError(f"{shown(self._remote.url)}: the server sent more than {self.total:,} bytes")
        self._file.write(piece)
        self._digest.update(piece)
        self.num_bytes += len(piece)
        if self.num_bytes - self._num_saved >= _SAVE_EVERY:
            self._save()

    def end(self) -> None:
        """An answer has ended by itself."""
        if self.total is not None and self.num_bytes < self.total:
            raise _BrokenError(f"ended after {self.num_bytes:,} of {self.total:,} bytes")
        self.is_whole = True

    def _save(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(
            self._record,
            {
                "identity": self._identity,
                "num_bytes": self.num_bytes,
                "sha256": self._digest.hexdigest(),
                "total": self.total,
                "validator": self._validator,
            },
        )
        self._num_saved = self.num_bytes

    def become_whole(self) -> str:
        """Check the sum, and let the part become the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        found, expected = self._digest.hexdigest(), self._remote.sha256
        if expected is not None and found != expected.lower():
            self._part.unlink()
            self._record.unlink(missing_ok=True)
            raise ValueError(
                f"{shown(self._remote.url)}: has SHA-256 {found}, expected {expected}: it was damaged on its way, or "
                "is not the file that it should be; run it again to fetch it anew"
            )
        self._part.replace(self._path)
        self._record.unlink(missing_ok=True)
        sync_folder(self._path.parent)
        return found

    def close(self) -> None:
        """Leave what a record can vouch for to a later call, and nothing else."""
        if self._file.closed:
            return
        with contextlib.suppress(OSError):  # a full disk: then the last record stands
            if self.num_bytes:
                self._save()
        with contextlib.suppress(OSError):
            self._file.close()
        if self._num_saved:
            os.truncate(self._part, self._num_saved)
        else:
            self._part.unlink()
            self._record.unlink(missing_ok=True)


def _patience(headers: Mapping[str, str]) -> float | None:
    """Seconds that a Retry-After asks for, as a number or a date."""
    asked = headers.get("Retry-After", "")
    if asked.isdigit():
        return min(float(asked), _MAX_WAIT)
    with contextlib.suppress(ValueError):
        return min(max(0.0, email.utils.parsedate_to_datetime(asked).timestamp() - time.time()), _MAX_WAIT)
    return None


_Show = Callable[[int, "int | None"], Any]


@contextlib.contextmanager
def _progress(name: str) -> Iterator[_Show]:
    """A bar on a terminal: bytes, rate, time left."""
    if not sys.stderr.isatty():
        yield lambda _, __: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(name, total=None)
        yield lambda num_bytes, total: progress.update(task, completed=num_bytes, total=total)

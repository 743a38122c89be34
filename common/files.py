"""Files written so that a reader never sees half of one, and the sums that prove it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def home() -> Path:
    """The folder that holds `models/` and `indexes/`: $PARLEY_HOME, else the checkout, else the current folder."""
    if chosen := os.environ.get("PARLEY_HOME"):
        return Path(chosen)
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a temporary file beside `path`; on success sync it to disk and rename it into place.

    A failure or a kill at any moment leaves the old file as it was. A link is followed; ValueError for a path that
    is something else than a file, such as a folder or a device.
    """
    path = path.resolve()
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot write {path}: it is not an ordinary file; name another")
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with open(handle, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes the file private; give it what open() would have given.
        Path(temporary).chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def expand(path: str | Path) -> Path:
    """`path` with `~` expanded; ValueError where there is no such home."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from None


def check_can_write(path: Path) -> None:
    """Make the folder of `path`; ValueError where that cannot be done, or nothing can be written into it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path.parent, os.W_OK) else "its folder cannot be written to"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise ValueError(f"cannot write {path}: {reason}; name another file")


def sync_file(path: Path) -> None:
    """Make what was written into a file survive a power cut."""
    descriptor = os.open(path, os.O_RDWR)  # Windows syncs only what may be written to
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames within `folder` survive a power cut, where the system can (not on Windows)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json_text(value))


def json_text(value: object) -> str:
    """What `write_json` writes."""
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def read_json(path: Path) -> Any:
    """Parse a JSON file; a missing or malformed one is a ValueError that names file and line."""
    return parse_json(read_text(path), path)


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, as it is; ValueError where it cannot be read."""
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None


def parse_json(text: str, path: Path) -> Any:
    """The value of `text`, the content of the file at `path`; ValueError, which names the line, for no JSON."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: JSON nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None


def append_json_line(path: Path, value: object) -> None:
    """Append one JSON object as one line and sync it: an interrupt later loses nothing.

    Half a line that an earlier writer left at the end stays a line of its own. Where several append at the same
    moment an empty line may come between theirs.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(value, ensure_ascii=False) + "\n"
    with open(path, "ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """The SHA-256 sum of a file, in hex, read in pieces."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Files from http(s) URLs, kept under `cache/downloads` and fetched once."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from common.files import atomic_write, home, read_json, sha256_of, write_json

_TIMEOUT = 60.0  # seconds without a byte


def file_name(url: str) -> str:
    """The last part of a URL's path, without what may be secret in it (a query, a password)."""
    return unquote(urlsplit(url).path).rstrip("/").rpartition("/")[2].lstrip(".") or "download"


def downloaded(url: str) -> Path:
    """The local copy of what is at `url`, fetched whole where there is none, or where it is not what was fetched.

    What breaks off leaves nothing and is fetched anew. Raises ValueError where it cannot be had.
    """
    folder = home() / "cache" / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path, record = folder / file_name(url), folder / "download.json"
    if record.is_file() and path.is_file() and read_json(record)["sha256"] == sha256_of(path):
        return path
    _fetch(url, path)
    write_json(record, {"url": _shown(url), "sha256": sha256_of(path), "num_bytes": path.stat().st_size})
    return path


def _fetch(url: str, path: Path) -> None:
    import httpx
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty())
    # Of a file that is compressed itself the bytes are wanted as they are.
    headers = {"Accept-Encoding": "identity"}
    try:
        with (
            httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response,
            atomic_write(path, "wb") as file,
            progress,
        ):
            response.raise_for_status()
            size = response.headers.get("Content-Length", "")
            task = progress.add_task(path.name, total=int(size) if size.isdigit() else None)
            for piece in response.iter_bytes():
                file.write(piece)
                progress.advance(task, len(piece))
    except httpx.HTTPStatusError as error:
        raise ValueError(f"{_shown(url)}: the server answered {error.response.status_code}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{_shown(url)}: cannot be fetched ({str(error) or type(error).__name__})") from None


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

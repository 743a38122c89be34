"""Files from http(s) URLs, kept under `cache/downloads` and fetched once."""

from __future__ import annotations

import hashlib
from pathlib import Path

from common.fetching import Remote, fetch, file_name, shown
from common.files import home, read_json, sha256_of, write_json
from common.locks import exclusive


def downloaded(url: str) -> Path:
    """The local copy of what is at `url`, fetched whole where there is none, or where it is not what was fetched.

    What breaks off is gone on with by the next call; of several processes one fetches, the others wait for it. Raises
    ValueError where it cannot be had.
    """
    folder = home() / "cache" / "downloads" / hashlib.sha256(url.encode()).hexdigest()[:16]
    path, record = folder / file_name(url), folder / "download.json"
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / ".lock", f"fetching {shown(url)}", wait=True):
        if not (record.is_file() and path.is_file() and read_json(record)["sha256"] == sha256_of(path)):
            sha256 = fetch(Remote(url), path)
            write_json(record, {"url": shown(url), "sha256": sha256, "num_bytes": path.stat().st_size})
    return path

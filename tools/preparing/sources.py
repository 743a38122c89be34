"""Where a model or data can come from -> its files, with sizes and sums: the hub, a URL, a folder of this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from common.fetching import RefusedError, Remote, UnreachableError, shown
from common.files import expand
from common.hub import GATED, hub_errors
from tools.preparing.gathering import File

_TIMEOUT = 30.0  # seconds
_MAX_BYTES = 50_000_000  # of a file that lists others
_COPY = "copy its directory here from a machine that has it, and give its path"


@dataclass(frozen=True)
class Listing:
    """The files of a source. `place` is what records call it; `pulls` asks the hub for the pull requests by its
    converter to safetensors, newest first."""

    place: str
    files: tuple[File, ...]
    pulls: Callable[[], list[int]] = list


def is_url(source: str) -> bool:
    return source.lower().startswith(("http://", "https://"))


def place_of(source: str) -> str:
    """What records call a source, of the hub without a commit."""
    if is_url(source):
        return shown(source).rstrip("/")
    return str(expand(source).resolve()) if expand(source).exists() else f"hf://{source}"


def list_hub(repo: str, kind: str, revision: str | None) -> Listing:
    """The files of a hub repository; `kind` is `model` or `dataset`. They are those of one commit, whatever happens to
    the repository meanwhile. Large ones have a SHA-256 sum there. Raises ValueError where it cannot be had."""
    from huggingface_hub import HfApi, get_token, hf_hub_url

    api, called = HfApi(), "model" if kind == "model" else "data set"
    ask = api.model_info if kind == "model" else api.dataset_info
    with hub_errors(f"{called} '{repo}'", f"set HF_ENDPOINT to a mirror of the hub, or {_COPY}", called):
        info = ask(repo, revision=revision, files_metadata=True, timeout=_TIMEOUT)
    headers = {"Authorization": f"Bearer {token}"} if (token := get_token()) else {}
    files = []
    for each in info.siblings or []:
        if any(part.startswith(".") for part in each.rfilename.split("/")):
            continue
        url = hf_hub_url(repo, each.rfilename, repo_type=kind, revision=info.sha)
        size = each.lfs.size if each.lfs else each.size
        files.append(File(each.rfilename, Remote(url, size, each.lfs.sha256 if each.lfs else None, headers)))

    def pulls() -> list[int]:
        with hub_errors(f"pull requests of '{repo}'", _COPY):
            found = api.get_repo_discussions(
                repo, repo_type=kind, author="SFconvertbot", discussion_type="pull_request"
            )
            return sorted((each.num for each in found), reverse=True)

    return Listing(f"{place_of(repo)}@{info.sha}", tuple(files), pulls)


def hub_refusal(error: ValueError, repo: str) -> ValueError:
    """What the hub's refusal of a file means, in words."""
    if isinstance(error, RefusedError) and error.status in {401, 403}:
        return ValueError(f"cannot get '{repo}' from the Hugging Face hub: {GATED}")
    if isinstance(error, UnreachableError):
        return ValueError(f"{error}; set HF_ENDPOINT to a mirror of the hub, or {_COPY}")
    return error


def list_url(base: str, names: Iterable[str]) -> Listing:
    """Those of `names` that there are below a URL. Sums are those of a file SHA256SUMS there, where there is one."""
    base = base.rstrip("/") + "/"
    sums = _sums(_get(f"{base}SHA256SUMS"))
    files = []
    for name in names:
        if (remote := probe(base + quote(name), sums.get(name))) is not None:
            files.append(File(name, remote))
    return Listing(place_of(base), tuple(files))


def list_folder(folder: str | Path) -> Listing:
    """The files of a folder of this machine that are not hidden; links are followed."""
    folder = expand(folder)
    if not folder.is_dir():
        raise ValueError(f"folder '{folder}' does not exist")
    return Listing(
        place_of(str(folder)), tuple(File(path.relative_to(folder).as_posix(), path) for path in _walk(folder))
    )


def read_url(url: str) -> bytes:
    """A small file at a URL; ValueError where it cannot be had."""
    content = _get(url)
    if content is None:
        raise ValueError(f"{shown(url)}: the server does not have it")
    return content


def _walk(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))


def _sums(content: bytes | None) -> dict[str, str]:
    """name -> SHA-256 sum, from what `sha256sum` prints."""
    found = re.finditer(r"^([0-9a-fA-F]{64}) [ *](?:\./)?(.+?)\r?$", (content or b"").decode("utf-8", "replace"), re.M)
    return {each[2]: each[1].lower() for each in found}


def probe(url: str, sha256: str | None = None) -> Remote | None:
    """What is at a URL, with its size where the server says it; None where there is nothing."""
    with _asking(url) as response:
        if response is None:
            return None
        size = response.headers.get("Content-Length", "")
        return Remote(url, int(size) if size.isdigit() else None, sha256)


def _get(url: str) -> bytes | None:
    with _asking(url) as response:
        if response is None:
            return None
        content = b""
        for piece in response.iter_bytes():
            content += piece
            if len(content) > _MAX_BYTES:
                raise ValueError(f"{shown(url)}: more than {_MAX_BYTES:,} bytes")
        return content


@contextlib.contextmanager
def _asking(url: str) -> Iterator[Any]:
    """The answer to a request, of which only the head has come; None where the server has nothing there."""
    import httpx

    headers = {"Accept-Encoding": "identity"}
    try:
        with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=_TIMEOUT) as response:
            if response.status_code == 200:
                yield response
            elif response.status_code in {403, 404, 410}:  # 403 is what a bucket says of what it does not have
                yield None
            else:
                raise ValueError(f"{shown(url)}: the server answered {response.status_code}")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ValueError(f"{shown(url)}: cannot be fetched ({str(error) or type(error).__name__})") from None

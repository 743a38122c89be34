"""A file server on 127.0.0.1 for tests: ranges, ETags, broken connections, refusals; and a hub in front of it."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Site:
    """What there is, by path, and how the server misbehaves. `cuts` and `answers` are used up, one a request."""

    files: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)  # bytes that are sent before the connection breaks
    answers: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)  # instead of the file
    always: dict[str, tuple[int, dict[str, str]]] = field(default_factory=dict)
    ranges: bool = True
    conditions: bool = True  # whether If-Range is heeded
    etags: bool = True
    lengths: bool = True
    slow: float = 0.0  # seconds for each 64 KiB
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    repos: dict[str, dict[str, Any]] = field(default_factory=dict)  # `models/owner/name` -> what the hub says of it
    url: str = ""

    def add_repo(self, repo: str, files: dict[str, bytes], kind: str = "models", lfs_from: int = 100) -> None:
        """A hub repository; files of at least `lfs_from` bytes have a SHA-256 sum there."""
        siblings = []
        for name, content in files.items():
            sum_ = hashlib.sha256(content).hexdigest()
            lfs = {"sha256": sum_, "size": len(content), "pointerSize": 130} if len(content) >= lfs_from else None
            siblings.append({"rfilename": name, "size": len(content), "blobId": "0"} | ({"lfs": lfs} if lfs else {}))
            prefix = f"/{repo}" if kind == "models" else f"/{kind}/{repo}"
            self.files[f"{prefix}/resolve/{COMMIT}/{name}"] = content
        self.repos[f"{kind}/{repo}"] = {"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}

    def num_asked(self, end: str) -> int:
        return sum(path.endswith(end) for path, _ in self.asked)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.site.asked.append((path, dict(self.headers)))
        answer = self.site.always.get(path) or (self.site.answers.get(path) or [None]).pop(0)
        if answer is not None:
            self._send(answer[0], b"", answer[1])
        elif path.startswith("/api/"):
            self._api(path)
        elif path in self.site.files:
            self._file(self.site.files[path], (self.site.cuts.get(path) or [None]).pop(0))
        else:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET  # noqa: N815  # http.server's name

    def _api(self, path: str) -> None:
        key = re.sub(r"/(revision/.*|discussions)$", "", path.removeprefix("/api/"))
        if key not in self.site.repos:
            self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.endswith("/discussions"):
            found = self.site.repos[key].get("discussions", [])
            self._send(200, json.dumps({"discussions": found, "count": len(found), "start": 0}).encode(), {})
        else:
            self._send(200, json.dumps(self.site.repos[key]).encode(), {})

    def _file(self, content: bytes, cut: int | None) -> None:
        etag = f'"{hashlib.sha1(content, usedforsecurity=False).hexdigest()}"'
        headers = {"ETag": etag} if self.site.etags else {}
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        is_same = not self.site.conditions or self.headers.get("If-Range", etag) == etag
        if asked and self.site.ranges and is_same:
            start = int(asked[1])
            if start >= len(content):
                self._send(416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self._send(206, content[start:], headers, cut)
        else:
            self._send(200, content, headers, cut)

    def _send(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        chunked = not self.site.lengths and status == 200
        headers = {"Transfer-Encoding": "chunked"} | headers if chunked else headers
        for name, value in ({} if chunked else {"Content-Length": str(len(body))} | headers).items() or headers.items():
            self.send_header(name, value)
        self.end_headers()
        body = body if cut is None else body[:cut]
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(body), 1 << 16):
                piece = body[start : start + (1 << 16)]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
                time.sleep(self.site.slow)
            if chunked and cut is None:
                self.wfile.write(b"0\r\n\r\n")
        self.close_connection = cut is not None or self.close_connection

    def log_message(self, *_: object) -> None:
        """Quiet."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is no news."""


@contextlib.contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve the site at `site.url`."""
    with _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}"
        yield site
        server.shutdown()
        thread.join()

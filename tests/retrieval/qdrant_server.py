"""A Qdrant server for tests: the REST routes that `retrieval/qdrant` uses, over the client library's embedded Qdrant.

Requests are parsed by the library's own models, which refuse fields that the API does not have.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models

KEY = "secret"


class Routes:
    """One method per route; what it returns is the `result` of the answer."""

    def __init__(self) -> None:
        self.client = QdrantClient(":memory:")
        self.indexed: list[str] = []
        self.table: list[tuple[str, str, Callable[[str, Any], Any]]] = [
            ("GET", r"/collections/([^/]+)/exists", lambda c, _: {"exists": self.client.collection_exists(c)}),
            ("GET", r"/collections/([^/]+)", lambda c, _: self.client.get_collection(c)),
            ("PUT", r"/collections/([^/]+)", self.create),
            ("PATCH", r"/collections/([^/]+)", self.update),
            ("DELETE", r"/collections/([^/]+)", lambda c, _: self.client.delete_collection(c)),
            ("PUT", r"/collections/([^/]+)/index", self.index),
            ("PUT", r"/collections/([^/]+)/points", self.upsert),
            ("POST", r"/collections/([^/]+)/points", self.retrieve),
            ("POST", r"/collections/([^/]+)/points/delete", self.delete),
            ("POST", r"/collections/([^/]+)/points/scroll", self.scroll),
            ("POST", r"/collections/([^/]+)/points/query/batch", self.query),
        ]

    def create(self, collection: str, body: Any) -> bool:
        """PUT of a collection."""
        asked = models.CreateCollection(**body)
        return self.client.create_collection(
            collection, asked.vectors, sparse_vectors_config=asked.sparse_vectors, metadata=asked.metadata
        )

    def update(self, collection: str, body: Any) -> bool:
        """PATCH of a collection."""
        return self.client.update_collection(collection, metadata=models.UpdateCollection(**body).metadata)

    def index(self, collection: str, body: Any) -> Any:
        """PUT of a payload index; the embedded Qdrant has none."""
        asked = models.CreateFieldIndex(**body)
        self.indexed.append(f"{collection} {asked.field_name} {asked.field_schema}")
        return {"operation_id": 0, "status": "completed"}

    def upsert(self, collection: str, body: Any) -> Any:
        """PUT of points."""
        return self.client.upsert(collection, models.PointsList(**body).points)

    def retrieve(self, collection: str, body: Any) -> Any:
        """POST of ids."""
        asked = models.PointRequest(**body)
        return self.client.retrieve(collection, asked.ids, asked.with_payload, asked.with_vector or False)

    def delete(self, collection: str, body: Any) -> Any:
        """POST of ids to delete."""
        return self.client.delete(collection, models.PointIdsList(**body).points)

    def scroll(self, collection: str, body: Any) -> Any:
        """POST of where to go on reading."""
        asked = models.ScrollRequest(**body)
        points, offset = self.client.scroll(
            collection, asked.filter, asked.limit, None, asked.offset, asked.with_payload, asked.with_vector or False
        )
        return {"points": points, "next_page_offset": offset}

    def query(self, collection: str, body: Any) -> Any:
        """POST of several queries."""
        return self.client.query_batch_points(collection, models.QueryRequestBatch(**body).searches)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """Status and content."""
        for route_method, pattern, handle in self.table:
            if method == route_method and (found := re.fullmatch(pattern, path.partition("?")[0])):
                try:
                    return 200, {"result": _plain(handle(found[1], body)), "status": "ok", "time": 0.0}
                except ValueError as error:
                    return 400, {"status": {"error": str(error)}, "time": 0.0}
        return 404, {"status": {"error": f"no route {method} {path}"}, "time": 0.0}


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


@contextmanager
def serving(handle: Callable[[str, str, Any], tuple[int, Any]], headers: dict[str, str] | None = None) -> Iterator[str]:
    """The url of a server on this machine, which wants KEY and answers what `handle` says to (method, path, body)."""

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, content = 401, {"status": {"error": "Must provide an API key"}}
            if self.headers.get("api-key") == KEY:
                status, content = handle(self.command, self.path, body)
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 (so the library calls them)

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

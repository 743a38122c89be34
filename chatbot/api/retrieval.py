"""POST /v1/retrieval/search: the passages that an index has for a query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch
from chatbot.records import hit_record

if TYPE_CHECKING:
    from chatbot.api.schema import SearchRequest


def search(service: Service, caller: Caller, request: SearchRequest, watch: Watch) -> dict[str, Any]:
    """Hits, best first, whether or not their confidence reaches the index's floor; `answered` says whether it does."""
    collection = service.require(caller, request.index)
    service.check_k(request.k)
    if not request.query.strip():
        raise ApiError(400, "the query is blank; say what to look for", param="query")
    searcher = collection.limited(request.where)
    watch.check()
    hits = searcher.search([request.query], request.k or service.bot.k)[0]
    floor = searcher.floor if service.bot.floor is None else service.bot.floor
    confidence = hits[0].confidence if hits else 0.0
    return {
        "object": "list",
        "index": collection.name,
        "floor": floor,
        "answered": bool(hits) and confidence >= floor,
        "hits": [hit_record(hit) | {"confidence": round(hit.confidence, 4)} for hit in hits],
    }

"""POST /v1/rerank: documents put in order for a query, in the shape that Cohere's and Jina's clients expect."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chatbot.api.generation import new_id
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch

if TYPE_CHECKING:
    from chatbot.api.schema import RerankRequest


def rerank(service: Service, caller: Caller, request: RerankRequest, watch: Watch) -> dict[str, Any]:
    """Best first. `relevance_score` is the cross-encoder's, from 0 to 1, where the server has one (--rerank), else the
    cosine of query and document by an index's encoder, from -1 to 1."""
    texts = [each if isinstance(each, str) else each.text for each in request.documents]
    index = request.parley.index if request.parley else None
    watch.check()
    if service.reranker is not None:
        service.find(caller, index)  # an index of another's is refused here too
        name, scores = service.reranker.name, service.reranker.score(request.query, texts)
    else:
        encoder = service.encoder(caller, index)
        vectors = encoder.encode([request.query, *texts])
        name, scores = encoder.name, vectors[1:] @ vectors[0]
    order = sorted(range(len(texts)), key=lambda number: (-float(scores[number]), number))[: request.top_n]
    results = [
        {"index": number, "relevance_score": round(float(scores[number]), 6)}
        | ({"document": {"text": texts[number]}} if request.return_documents else {})
        for number in order
    ]
    return {"id": new_id("rerank"), "object": "list", "model": name, "results": results}

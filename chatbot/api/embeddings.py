"""POST /v1/embeddings: texts to the unit vectors of an index's encoder."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError
from chatbot.api.service import Caller, Service
from chatbot.api.watch import Watch

if TYPE_CHECKING:
    from chatbot.api.schema import EmbeddingRequest


def embed(service: Service, caller: Caller, request: EmbeddingRequest, watch: Watch) -> dict[str, Any]:
    """OpenAI's list of embeddings, and `notices` of texts that are longer than what the encoder reads."""
    encoder = service.encoder(caller, request.parley.index if request.parley else None)
    if request.dimensions not in (None, encoder.dim):
        problem = f"dimensions={request.dimensions}: this encoder gives {encoder.dim}; leave dimensions out"
        raise ApiError(400, problem, param="dimensions")
    texts = [request.input] if isinstance(request.input, str) else request.input
    counts = encoder.count_tokens(texts)
    watch.check()
    # Little-endian float32, whatever this machine's own order is: that is what clients decode.
    vectors = encoder.encode(texts).astype("<f4")
    watch.prompt_tokens += sum(counts)
    base_64 = request.encoding_format == "base64"
    data = [
        {
            "object": "embedding",
            "index": number,
            "embedding": base64.b64encode(vector.tobytes()).decode("ascii") if base_64 else vector.tolist(),
        }
        for number, vector in enumerate(vectors)
    ]
    limit = encoder.max_length
    notices = [
        f"input {number} has about {count} tokens, of which the encoder reads {limit}"
        for number, count in enumerate(counts)
        if count > limit
    ]
    usage = {"prompt_tokens": sum(counts), "total_tokens": sum(counts)}
    return {"object": "list", "data": data, "model": encoder.name, "usage": usage, "notices": notices}

"""The vector of a question that goes on a conversation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from retrieval.types import Encoder

# A follow-up question is searched for by a mix of itself and itself after the conversation, which finds more than
# either alone. `tools/bench/followups.py` compares ways; weights from 0.5 to 0.7 do alike.
QUERY_WEIGHT = 0.6
CONTEXT_WEIGHT = 0.4
# Encoders read a text from its start, the usual ones 256 tokens of it: of a long conversation take the end, so that
# the query, which comes after it, is not what they leave out.
CONTEXT_CHARS = 800


def mixed_vectors(encoder: Encoder, queries: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float32]:
    """(n, dim) unit vectors, each mixed with its context where that is not blank; one call to the encoder."""
    followups = [i for i, context in enumerate(contexts) if context.strip()]
    vectors = encoder.encode([*queries, *(f"{contexts[i].strip()[-CONTEXT_CHARS:]}\n{queries[i]}" for i in followups)])
    own, whole = vectors[: len(queries)].copy(), vectors[len(queries) :]
    own[followups] = QUERY_WEIGHT * own[followups] + CONTEXT_WEIGHT * whole
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    return own

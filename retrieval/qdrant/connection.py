"""What a Qdrant collection of ours looks like, and how to reach the server (https://qdrant.tech) that holds it.

A point is a passage; its id is a UUIDv5 of the passage's. It has two vectors: `dense`, the encoder's, compared by
cosine, and `words`, a sparse vector with the term-frequency part of BM25 for each term (see `lexical.py`), to which
Qdrant's IDF modifier adds idf = ln(1 + (N - df + 0.5) / (df + 0.5)). So a sparse query scores BM25. Qdrant counts N and
df per shard, and counts deleted points until its optimizer has cleared them away: there the scores differ a little.

The payload holds the passage's fields; `facets`, a text FIELD=VALUE for each field of its document that a filter can
ask for; `head`, whether it is the first passage of its document; and `stamp`, a sum over all of it.

The metadata of the collection hold under `parley` what a search has to know (`CollectionInfo`), as JSON text, since
Qdrant merges metadata key by key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from retrieval.index.manifest import EncoderInfo, Manifest, now
from retrieval.scoring.calibration import Calibration
from retrieval.scoring.fusion import FusionSettings
from retrieval.scoring.lexical import LexicalSettings, WeightedQuery
from retrieval.scoring.postings import MAX_COUNT
from retrieval.search.filters import Filter
from retrieval.types import MetaValue, Passage

if TYPE_CHECKING:
    from qdrant_client import QdrantClient, models

DENSE, WORDS = "dense", "words"
FIELDS = ("id", "text", "title", "source", "start", "end", "unit", "meta", "injection")  # of a passage, in the payload
MEMORY = "memory"  # in place of a url: an embedded Qdrant that lives as long as this process
METADATA = "parley"
FORMAT_VERSION = 2
TIMEOUT_SECONDS = 60
SCROLL_POINTS = 4096
_POINTS = uuid.UUID("6c1a4a52-3d1c-5b0e-9f5b-0d6a51c0b7a1")  # the namespace of our point ids
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class CollectionInfo:
    """What the index was, for the side that searches. average_length: in terms, for BM25. complete: whether a first
    upload came to its end. uploaded: UTC, ISO 8601. The rest: see `manifest.Manifest`."""

    encoder: EncoderInfo
    lexical: LexicalSettings
    fusion: FusionSettings
    floor: float
    calibration: Calibration | None
    num_documents: int
    num_passages: int
    average_length: float
    complete: bool
    uploaded: str

    @classmethod
    def of(cls, manifest: Manifest, average_length: float, complete: bool) -> CollectionInfo:
        """Of an index."""
        settings = manifest.settings
        return cls(
            manifest.encoder,
            settings.lexical,
            settings.fusion,
            manifest.floor,
            manifest.calibration,
            manifest.num_documents,
            manifest.num_passages,
            average_length,
            complete,
            now(),
        )

    def to_metadata(self) -> dict[str, str]:
        """For `create_collection` and `update_collection`."""
        return {METADATA: json.dumps({"format_version": FORMAT_VERSION, **asdict(self)})}


def read_info(client: QdrantClient, url: str, collection: str) -> CollectionInfo:
    """What the collection, which must exist, holds. Raises ValueError where it is not one of ours."""
    metadata = client.get_collection(collection).config.metadata or {}
    if METADATA not in metadata:
        raise ValueError(f"collection '{collection}' at {url} holds something else than a Parley index; name another")
    try:
        content = json.loads(metadata[METADATA])
        version = content.pop("format_version")
        if version == FORMAT_VERSION:
            found = content.pop("calibration")
            return CollectionInfo(
                encoder=EncoderInfo(**content.pop("encoder")),
                lexical=LexicalSettings(**content.pop("lexical")),
                fusion=FusionSettings(**content.pop("fusion")),
                calibration=None if found is None else Calibration.from_dict(found),
                **content,
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"collection '{collection}' at {url} is damaged ({error}); delete it and upload the index again"
        ) from None
    remedy = "update Parley" if version > FORMAT_VERSION else "delete it and upload the index again"
    raise ValueError(f"collection '{collection}' at {url} has format {version}, not {FORMAT_VERSION}; {remedy}")


def connect(url: str, api_key: str | None = None) -> QdrantClient:
    """A client for the server at `url` (port 6333 where it names none); nothing is sent yet.

    `api_key`: by default $QDRANT_API_KEY. Raises ValueError, with the remedy, for a url of another form, and where
    qdrant-client is not installed.
    """
    try:
        from qdrant_client import QdrantClient
    except ImportError as error:
        raise ValueError(f'Qdrant needs qdrant-client ({error}); pip install "parley[qdrant]"') from None
    if url == MEMORY:
        return _embedded()
    if url.startswith("path:"):
        # qdrant-client keeps such a folder as pickled points, and opening it runs whatever code is in them.
        raise ValueError(f"'{url}' cannot be used: a folder of an embedded Qdrant is not safe to open; run a server")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"'{url}' is no address of a Qdrant server; write http://HOST:6333 or https://HOST:6333")
    key = api_key or os.environ.get("QDRANT_API_KEY") or None
    with warnings.catch_warnings():
        if parts.hostname in _LOOPBACK:
            warnings.filterwarnings("ignore", "Api key is used with an insecure connection")
        return QdrantClient(url=url, api_key=key, timeout=TIMEOUT_SECONDS, check_compatibility=False)


@lru_cache(maxsize=1)
def _embedded() -> QdrantClient:
    from qdrant_client import QdrantClient

    return QdrantClient(":memory:")


@contextlib.contextmanager
def one_line_errors(url: str) -> Iterator[None]:
    """Turn what qdrant-client raises into one line that names the url and the remedy."""
    from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    try:
        yield
    except ResponseHandlingException as error:
        reason = " ".join(str(error.source).split())[:200] or type(error.source).__name__
        raise ValueError(f"no answer from Qdrant at {url} ({reason}); is it running there, and reachable?") from error
    except ResourceExhaustedResponse as error:
        raise ValueError(f"Qdrant at {url} asks to wait {error.retry_after_s} s; then try again") from error
    except UnexpectedResponse as error:
        raise ValueError(f"Qdrant at {url} {_refusal(error.status_code, error.content)}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"what answers at {url} is no Qdrant; check the address") from error


def _refusal(status: int | None, content: bytes) -> str:
    if status in (401, 403):
        return f"wants another API key (it answered {status}); set QDRANT_API_KEY"
    try:
        reason = json.loads(content)["status"]["error"]
    except (KeyError, TypeError, ValueError):
        reason = content.decode("utf-8", "replace")
    reason = " ".join(str(reason).split())[:200]
    return f"answered {status} ({reason or 'without a reason'}); its log may say more"


def point_id(passage_id: str) -> str:
    """The id of the point of a passage."""
    return str(uuid.uuid5(_POINTS, passage_id))


@lru_cache(maxsize=65_536)
def term_id(term: str) -> int:
    """The place of a term in sparse vectors: a hash, so that no vocabulary needs to be kept. Of 100,000 terms about one
    shares its place with another."""
    return int.from_bytes(hashlib.blake2b(term.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")


def words_vector(tokens: list[str], settings: LexicalSettings, average_length: float) -> models.SparseVector:
    """The term-frequency part of BM25 for each term of a passage, tf / (tf + k1 (1 - b + b |d| / average))."""
    norm = settings.k1 * (1 - settings.b + settings.b * len(tokens) / max(average_length, 1e-9))
    weights = {term: min(tf, MAX_COUNT) / (min(tf, MAX_COUNT) + norm) for term, tf in Counter(tokens).items()}
    return query_vector(weights)


def query_vector(weights: WeightedQuery) -> models.SparseVector:
    """Terms with their weights as a sparse vector."""
    from qdrant_client import models

    places: dict[int, float] = {}
    for term, weight in weights.items():
        places[term_id(term)] = places.get(term_id(term), 0.0) + weight
    return models.SparseVector(indices=list(places), values=list(places.values()))


def both_sides(
    vector: NDArray[np.float32], query: WeightedQuery, num: int, allowed: models.Filter | None
) -> list[models.QueryRequest]:
    """The best `num` by vector and by words together, all scored by vector; and, where there are words, by words."""
    from qdrant_client import models

    near, words = vector.tolist(), query_vector(query)
    sides = [models.Prefetch(query=near, using=DENSE, limit=num, filter=allowed)]
    if query:
        sides.append(models.Prefetch(query=words, using=WORDS, limit=num, filter=allowed))
    by_vector = models.QueryRequest(prefetch=sides, query=near, using=DENSE, limit=2 * num, with_payload=list(FIELDS))
    by_words = models.QueryRequest(prefetch=sides, query=words, using=WORDS, limit=2 * num)
    return [by_vector, by_words] if query else [by_vector]


def probe(term: str) -> models.QueryRequest:
    """One passage that holds the term: its score and its weight give the idf of the term, which Qdrant tells nobody."""
    from qdrant_client import models

    return models.QueryRequest(query=query_vector({term: 1.0}), using=WORDS, limit=1, with_vector=[WORDS])


def idf_of(term: str, points: list[Any]) -> float:
    """From the answer to a probe: score = idf * weight. 0 for a term that no passage holds."""
    if not points:
        return 0.0
    words = points[0].vector[WORDS]
    return float(points[0].score / words.values[words.indices.index(term_id(term))])


def resolve(client: QdrantClient, collection: str, where: Filter) -> models.Filter:
    """The filter in Qdrant's terms. It knows no patterns, so the values that the documents have are fetched once,
    and those that fit are listed."""
    from qdrant_client import models

    head = models.Filter(must=[models.FieldCondition(key="head", match=models.MatchValue(value=True))])
    values: dict[str, set[str]] = {condition.field: set() for condition in where.conditions}
    offset: Any = None
    while True:
        points, offset = client.scroll(collection, head, limit=SCROLL_POINTS, offset=offset, with_payload=["facets"])
        for field, value in (text.split("=", 1) for point in points for text in (point.payload or {})["facets"]):
            if field in values:
                values[field].add(value)
        if offset is None:
            break
    must: list[models.Condition] = []
    must_not: list[models.Condition] = []
    for condition in where.conditions:
        # A document without the field meets != alone, so that is asked for by what must not be.
        negated = condition.operator == "!="
        listed = [value for value in values[condition.field] if condition.holds({condition.field: value}) != negated]
        match = models.MatchAny(any=sorted(facet(condition.field, value) for value in listed))
        (must_not if negated else must).append(models.FieldCondition(key="facets", match=match))
    return models.Filter(must=must, must_not=must_not)


def payload_of(passage: Passage, facets: list[str], head: bool) -> dict[str, Any]:
    """See above; `stamp` is added by who knows the vectors."""
    meta = {name: _plain(value) for name, value in passage.meta.items()}
    place = {"source": passage.source, "start": passage.start, "end": passage.end, "unit": passage.unit}
    own = {"id": passage.id, "title": passage.title, "text": passage.text, **place, "meta": meta}
    return {**own, "injection": passage.injection, "facets": facets, "head": head}


def passage_of(payload: Mapping[str, Any]) -> Passage:
    """What `payload_of` was given."""
    return Passage(**{name: payload[name] for name in FIELDS})


def facet(field: str, value: MetaValue) -> str:
    """'year', 1990 -> 'year=1990'. A condition holds for the text of a value as it does for the value itself."""
    return f"{field}={value}"


def _plain(value: MetaValue) -> MetaValue:
    """Numbers that JSON, or Qdrant's 64 bits, cannot hold become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return str(value)
    return value

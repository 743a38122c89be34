"""What an answer holds, as pydantic models: /openapi.json describes it with them. Needs `server`.

The functions of `chatbot.api` make plain dicts, and nothing checks them when they are sent:
`tests/chatbot/server/test_server_answers.py` does that, for every endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict

from moderation.types import Direction, Verdict
from retrieval.types import MetaValue, Unit

FinishReason = Literal["stop", "length", "content_filter"]


class _Answer(BaseModel):
    """No more fields than these."""

    model_config = ConfigDict(extra="forbid")


# What stands behind an answer -----------------------------------------------------------------------------------------


class FoundPassage(_Answer):
    """A passage that was found; `start` and `end` count in `unit`s of the document, `meta` is what it says of itself,
    `injection` the probability that it gives orders to the model."""

    location: str
    score: float
    id: str
    text: str
    title: str
    source: str
    start: int
    end: int
    unit: Unit
    meta: Mapping[str, MetaValue]
    injection: float | None


class Source(FoundPassage):
    """A passage that the model was shown, by the number that the answer cites it with."""

    number: int


class AttributedSentence(_Answer):
    """A sentence of the answer, `start` to `end` in characters (of Unicode). `passages`: the numbers of the sources
    that support it, best first; where none does, `reason` says why. `score`: 0 to 1, higher is better; `cited`: what it
    cites itself."""

    text: str
    start: int
    end: int
    score: float
    supported: bool
    passages: list[int]
    reason: str
    cited: list[int]


class CachedTokens(_Answer):
    """Of the prompt's tokens, those that were in the key-value cache."""

    cached_tokens: int


class Usage(_Answer):
    """Tokens read and written."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens | None = None


# Chat -----------------------------------------------------------------------------------------------------------------


class Candidate(_Answer):
    """A token with its natural log-probability; -9999 stands for minus infinity."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Candidate):
    """A token of the answer, and the likeliest in its place."""

    top_logprobs: list[Candidate]


class ChatLogprobs(_Answer):
    """A value for each token."""

    content: list[TokenLogprob]
    refusal: None


class AnswerMessage(_Answer):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(_Answer):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatCompletion(_Answer):
    """A whole answer, its sources, and what moderation said of question, passages and answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    sources: list[Source]
    withheld: list[FoundPassage]
    notices: list[str]
    verdicts: dict[Direction, Verdict]
    attribution: list[AttributedSentence]


class Delta(_Answer):
    """What is new."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(_Answer):
    """A piece of one of `n` answers; the last piece has the finish reason."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatCompletionChunk(_Answer):
    """A piece of an answer. The fields from `sources` on stand in the chunk with the finish reason; `usage` is asked
    for with stream_options.include_usage, and comes last, without choices."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    sources: list[Source] | None = None
    withheld: list[FoundPassage] | None = None
    notices: list[str] | None = None
    verdicts: dict[Direction, Verdict] | None = None
    attribution: list[AttributedSentence] | None = None


# Plain completions ----------------------------------------------------------------------------------------------------


class CompletionLogprobs(_Answer):
    """Lists of equal length; `text_offset` is where a token begins in the text."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(_Answer):
    """A continuation, or, in a stream, a piece of one."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None


class CompletionChunk(_Answer):
    """A piece of a text; see `ChatCompletionChunk`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    notices: list[str] | None = None
    verdicts: dict[Direction, Verdict] | None = None


class Completion(CompletionChunk):
    """Whole continuations."""

    usage: Usage
    notices: list[str]
    verdicts: dict[Direction, Verdict]


# The others -----------------------------------------------------------------------------------------------------------


class Embedding(_Answer):
    """A unit vector: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(_Answer):
    """Tokens read."""

    prompt_tokens: int
    total_tokens: int


class Embeddings(_Answer):
    """A vector for each text; `notices` name texts that are longer than what the encoder reads."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
    notices: list[str]


class ModerationResult(_Answer):
    """What moderation says of one text; a score is null where the classifier cannot judge."""

    flagged: bool
    categories: dict[str, bool]
    category_scores: dict[str, float | None]
    category_applied_input_types: dict[str, list[Literal["text"]]]
    verdict: Verdict


class Moderations(_Answer):
    """A result for each text."""

    id: str
    model: str
    results: list[ModerationResult]


class RankedText(_Answer):
    """A document as it was sent."""

    text: str


class RankedDocument(_Answer):
    """`index` is its place among the documents sent; `document` comes with return_documents."""

    index: int
    relevance_score: float
    document: RankedText | None = None


class Ranking(_Answer):
    """Documents, best first."""

    id: str
    object: Literal["list"]
    model: str
    results: list[RankedDocument]


class SearchHit(FoundPassage):
    """A passage; `score` ranks, `confidence` (0 to 1) says whether it answers."""

    confidence: float


class SearchResult(_Answer):
    """Passages, best first; `answered` where the first one's confidence reaches the floor."""

    object: Literal["list"]
    index: str
    floor: float
    answered: bool
    hits: list[SearchHit]


class FeedbackKept(_Answer):
    """The rating was written down."""

    object: Literal["feedback"]
    id: str
    rating: Literal["good", "bad", "edit", "regenerate"]


class Model(_Answer):
    """A model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(_Answer):
    """The chat model first, then the encoders. `indexes` are those that the caller may search, the default first; with
    none, answers come from the model alone."""

    object: Literal["list"]
    data: list[Model]
    indexes: list[str]


class Health(_Answer):
    """`draining`: about to end."""

    status: Literal["ok", "draining"]

"""What a request may hold, as pydantic models: they check it, and /openapi.json describes them. Needs `server`.

Clients send fields that this server does not have. One that asks for nothing (null, empty, its neutral value) is
accepted; any other is refused, for what is ignored silently is an answer to another question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from chatbot.api.errors import ApiError
from chatbot.engines.base import MAX_LOGPROBS

MAX_CHOICES = 8
MAX_MESSAGES = 2048
MAX_INPUTS = 2048
MAX_DOCUMENTS = 1000
MAX_PROMPTS = 32


def _whole(text: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("it holds half a character (a lone surrogate), which is no text") from None
    return text


Str = Annotated[str, AfterValidator(_whole)]
Text = Annotated[str, Field(min_length=1), AfterValidator(_whole)]  # length first: its errors speak of characters then
Count = Annotated[int, Field(ge=1)]
Condition = Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_whole)]
Conditions = Annotated[list[Condition], Field(max_length=16)]
Stops = Str | Annotated[list[Text], Field(max_length=16)]


class _Exact(BaseModel):
    """Fields that are not known are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Lenient(BaseModel):
    """Fields that are not known are refused where they ask for something."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {}

    @model_validator(mode="after")
    def _asks_for_nothing_else(self) -> _Lenient:
        for name, value in (self.model_extra or {}).items():
            if value and value not in self.neutral.get(name, ()):
                known = ", ".join(type(self).model_fields)
                raise ValueError(f"{name}={_short(value)} is not supported; leave it out (known: {known})")
        return self


class ParleyOptions(_Exact):
    """What OpenAI's API has no words for: retrieval and moderation of this one request."""

    retrieval: bool | None = Field(None, description="Answer from documents, or not.")
    index: Str | None = Field(None, description="The index to search; by default the caller's first.")
    k: Count | None = Field(None, description="Passages to look for.")
    floor: float | None = Field(None, ge=0, le=1, description="Less confidence counts as no answer; 0: never.")
    where: Conditions | None = Field(None, description="Only such documents: source=docs/*, year>=1990.")
    moderation: bool | None = Field(None, description="Judge what is said; the server may insist on it.")


class ModerationOption(_Exact):
    """The one option of a plain completion."""

    moderation: bool | None = None


class IndexOption(_Exact):
    """Which index, for what belongs to one."""

    index: Str | None = None


class TextPart(_Lenient):
    """A piece of a message's content."""

    type: Literal["text"]
    text: Str


class SentPassage(BaseModel):
    """A passage as an answer's `sources` or a saved chat has it, sent along with the message that it was found for."""

    model_config = ConfigDict(strict=True, extra="ignore")
    id: Str
    text: Str
    title: Str
    source: Str
    start: int
    end: int
    unit: Literal["line", "page", "record", "paragraph"] = "line"


class Message(_Lenient):
    """One thing said. A saved chat's `passages` and `verdicts` may stand in it."""

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {}
    role: Literal["system", "developer", "user", "assistant"]
    content: Str | list[TextPart]
    name: Str | None = None
    passages: list[SentPassage] | None = None
    verdicts: dict[str, Any] | None = None


class StreamOptions(_Lenient):
    """Options of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(_Exact):
    """Answers are text."""

    type: Literal["text"]


class _Sampling(_Lenient):
    """What chat and plain completions share."""

    model: Str | None = Field(None, description="May be anything: there is one.")
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Count | None = None
    temperature: float | None = Field(None, ge=0, le=100, description="0: the most likely token each time.")
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stops | None = None
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    user: Str | None = None

    @field_validator("stop")
    @classmethod
    def _not_blank(cls, stop: Any) -> Any:
        if stop == "":
            raise ValueError("stop must be a text or a list of texts, none of them empty")
        return stop


class ChatRequest(_Sampling):
    """POST /v1/chat/completions."""

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {
        "parallel_tool_calls": (True,),
        "tool_choice": ("none", "auto"),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "service_tier": ("auto", "default"),
    }
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    prompt_cache_key: Str | None = None
    safety_identifier: Str | None = None
    tools: list[Any] | None = Field(None, max_length=0, description="Not supported.")
    functions: list[Any] | None = Field(None, max_length=0, description="Not supported.")
    parley: ParleyOptions | None = None

    @field_validator("tools", "functions", mode="before")
    @classmethod
    def _no_tools(cls, value: Any) -> Any:
        if value:
            raise ValueError("tools and functions are not supported: this server answers with text; leave them out")
        return value

    @model_validator(mode="after")
    def _top_logprobs_of_logprobs(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=true")
        return self


class CompletionRequest(_Sampling):
    """POST /v1/completions."""

    neutral: ClassVar[Mapping[str, Sequence[Any]]] = {"best_of": (1,)}
    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_PROMPTS)]
    echo: bool | None = None
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    parley: ModerationOption | None = None


class EmbeddingRequest(_Lenient):
    """POST /v1/embeddings."""

    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_INPUTS)]
    model: Str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = None
    user: Str | None = None
    parley: IndexOption | None = None


class ModerationRequest(_Lenient):
    """POST /v1/moderations."""

    input: Str | Annotated[list[Str | TextPart], Field(min_length=1, max_length=MAX_INPUTS)]
    model: Str | None = None


class RerankDocument(_Lenient):
    """A document as an object."""

    text: Str


class RerankRequest(_Lenient):
    """POST /v1/rerank."""

    query: Text
    documents: list[Str | RerankDocument] = Field(min_length=1, max_length=MAX_DOCUMENTS)
    model: Str | None = None
    top_n: Count | None = None
    return_documents: bool | None = None
    parley: IndexOption | None = None


class SearchRequest(_Exact):
    """POST /v1/retrieval/search."""

    query: Text
    k: Count | None = None
    index: Str | None = None
    where: Conditions | None = None


class FeedbackRequest(_Exact):
    """POST /v1/feedback."""

    id: Str
    rating: Literal["good", "bad", "edit", "regenerate"]
    reason: Str | None = None
    edit: Str | None = Field(None, description="What the answer should have been, for rating=edit.")
    choice: int | None = Field(None, ge=0, description="The number of the choice, where there were several.")
    replaces: Str | None = Field(None, description="The id of the answer that it replaces, for rating=regenerate.")


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Every error has this shape."""

    error: ErrorDetail


Request = TypeVar("Request", bound=BaseModel)


def read(kind: type[Request], body: Any) -> Request:
    """A request from JSON values. ApiError names the field."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        raise explained(error.errors(include_url=False)) from None


def explained(errors: Sequence[Any]) -> ApiError:
    """What pydantic found, as one line about the field that went deepest before it failed (where a field may be one
    thing or another, that is the one that was meant)."""
    found = max(errors, key=lambda each: len(each["loc"]))
    if found["type"] == "json_invalid":
        return ApiError(400, "the request's body is not JSON")
    place = [str(part) for part in found["loc"] if not (isinstance(part, str) and _is_type(part))]
    name = ".".join(place[1:] if place[:1] == ["body"] else place)
    message = str(found["msg"]).removeprefix("Value error, ")
    if not name:
        if found["type"] == "value_error":
            return ApiError(400, message)
        return ApiError(400, "the request must be a JSON object, sent with Content-Type: application/json")
    if found["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=name)
    if found["type"] == "value_error":
        return ApiError(400, f"{name}: {message}", param=name)
    return ApiError(400, f"{name}={_short(found['input'])}: {message[:1].lower()}{message[1:]}", param=name)


def _is_type(part: str) -> bool:
    """Whether a part of a location names a choice between types, not a field."""
    return part in ("str", "int", "TextPart", "RerankDocument") or "[" in part


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

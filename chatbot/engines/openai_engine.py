"""Any service with OpenAI's API as a chat engine: vLLM, llama.cpp's server, TGI, Ollama, Parley's own, hosted ones.

The service applies its chat template, which is not known here. So the common special tokens and role markers in
messages are broken up before they are sent, whatever the template may be. Tokens are counted by the service where it
can (vLLM and llama.cpp), and estimated elsewhere, rather too high than too low. A repetition penalty and top-k are no
part of OpenAI's API: they go to vLLM and llama.cpp, which know them (and count the prompt's words too), and are without
effect elsewhere.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.engines.base import Delta, FinishReason, Generation, TokenLogprob, Usage, check_fits
from chatbot.engines.openai_transport import BrokenOffError, RefusedError, Transport
from chatbot.rendering import COMMON_MARKERS, broken_up
from chatbot.streaming import UntilStop

DEFAULT_CONTEXT = 8192  # where the service does not say
_HOSTED = "https://api.openai.com/v1"
_MOST_STOPS = 4  # OpenAI's limit; further ones are looked for here
# The estimate: four bytes of a word are a token, and so are a digit, a sign, a line's end and other alphabets' letters.
_PIECES = re.compile(r"[^\W\d_]+|[^\w\s]|[\d_\n]|\s{2,}")
_BYTES_A_TOKEN, _TOKENS_A_MESSAGE = 4, 8
_CONTEXT_FIELDS = ("max_model_len", "context_length", "context_window", "max_context_length")
_MARKERS = (
    *COMMON_MARKERS,
    *("<s>", "</s>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]"),
    *("[TOOL_CALLS]", "[TOOL_RESULTS]", "[AVAILABLE_TOOLS]"),
)
_ANGLE_TOKENS = r"<[|｜][^<>|｜\s]{1,40}[|｜]>"  # <|im_start|>, <|eot_id|>, <｜User｜>, ...
_FORGERIES = re.compile("|".join([_ANGLE_TOKENS, *map(re.escape, _MARKERS)]), re.IGNORECASE)


class OpenAIModel:
    """A model behind a service. `kind` is what the service says it is: vllm, llamacpp, ... or ''."""

    def __init__(self, name: str, transport: Transport, context_length: int, kind: str = "") -> None:
        self.name = name
        self.context_length = context_length
        self.kind = kind
        self._transport = transport
        self._limit_field = "max_tokens"
        # Assembling a prompt counts the same conversations again and again.
        self._counted = lru_cache(maxsize=1024)(self._count)

    def count_tokens(self, conversation: Conversation) -> int:
        """Tokens of the prompt, by the service's own count where it has one, else an estimate."""
        return self._counted(conversation)

    def render(self, conversation: Conversation) -> str:
        """The messages as they are sent, a role and content each; the service's template is not known."""
        return "\n".join(f"{each['role']}: {each['content']}" for each in _messages(conversation))

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """The assistant's next message."""
        prompt_tokens = self.count_tokens(conversation)
        check_fits(prompt_tokens, generation, self.context_length)
        body = self._body(generation) | {"messages": _messages(conversation)}
        if generation.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": generation.logprobs}
        return self._generate("/chat/completions", body, generation, prompt_tokens)

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        """Plain continuation, by services that have `/completions`."""
        if not prompt:
            raise ValueError("the prompt is empty; type some text")
        prompt_tokens = self._count_text(prompt)
        check_fits(prompt_tokens, generation, self.context_length)
        body = self._body(generation) | {"prompt": prompt}
        if generation.logprobs is not None:
            body["logprobs"] = max(generation.logprobs, 1)
        return self._generate("/completions", body, generation, prompt_tokens)

    def _body(self, generation: Generation) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.name,
            "stream": True,
            "stream_options": {"include_usage": True},
            self._limit_field: generation.max_tokens,
            "temperature": 0 if generation.greedy else generation.temperature,
        }
        if not generation.greedy and generation.top_p < 1:
            body["top_p"] = generation.top_p
        if generation.seed is not None:
            body["seed"] = generation.seed
        if generation.stop:
            body["stop"] = [stop for stop in generation.stop if stop][:_MOST_STOPS]
        if self.kind in ("vllm", "llamacpp"):
            if not generation.greedy and generation.top_k:
                body["top_k"] = generation.top_k
            if generation.repetition_penalty != 1:
                field = "repeat_penalty" if self.kind == "llamacpp" else "repetition_penalty"
                body[field] = generation.repetition_penalty
        return body

    def _generate(self, path: str, body: dict[str, Any], generation: Generation, prompt_tokens: int) -> Iterator[Delta]:
        events = self._events(path, body)
        answer = _Answer(events, asked_logprobs=generation.logprobs)
        pieces = UntilStop(answer, generation.stop)
        try:
            for text in pieces:
                if text or answer.logprobs:
                    yield Delta(text, logprobs=answer.logprobs)
        finally:
            events.close()  # type: ignore[attr-defined]  # a generator
        if not (answer.finished or pieces.stopped_by):
            raise BrokenOffError(f"{self._transport.base_url} ended its answer without a finish reason; ask again")
        reason: FinishReason = "length" if answer.reason == "length" and not pieces.stopped_by else "stop"
        yield Delta("", reason, answer.usage or Usage(prompt_tokens, answer.num_pieces))

    def _events(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Events of the request; asked anew without what this service does not know."""
        try:
            yield from self._transport.events(path, body)
        except RefusedError as refused:
            if refused.status == 404 and refused.message:
                known = f"; it has: {', '.join(names)}" if (names := list(_listed(self._transport))) else ""
                raise ValueError(f"{refused}{known}") from None
            if refused.status not in (400, 422):
                raise
            if "max_completion_tokens" in refused.message and "max_tokens" in body:
                self._limit_field = "max_completion_tokens"
                body[self._limit_field] = body.pop("max_tokens")
            elif "stream_options" in refused.message and "stream_options" in body:
                del body["stream_options"]
            else:
                raise
            yield from self._events(path, body)

    def _count(self, conversation: Conversation) -> int:
        messages = _messages(conversation)
        if self.kind == "vllm":
            return int(self._ask("/tokenize", {"model": self.name, "messages": messages})["count"])
        if self.kind == "llamacpp":
            prompt = self._ask("/apply-template", {"messages": messages})["prompt"]
            return self._count_text(prompt)
        return sum(_estimate(each["content"]) + _TOKENS_A_MESSAGE for each in messages) + _TOKENS_A_MESSAGE

    def _count_text(self, text: str) -> int:
        if self.kind == "vllm":
            return int(self._ask("/tokenize", {"model": self.name, "prompt": text})["count"])
        if self.kind == "llamacpp":
            body = {"content": text, "add_special": True, "parse_special": True}
            return len(self._ask("/tokenize", body)["tokens"])
        return _estimate(text)

    def _ask(self, path: str, body: Mapping[str, Any]) -> Any:
        return self._transport.post(self._transport.at_root(path), body)


class _Answer:
    """Pieces of text from events; meanwhile what else they told."""

    def __init__(self, events: Iterator[dict[str, Any]], asked_logprobs: int | None) -> None:
        self.logprobs: tuple[TokenLogprob, ...] = ()
        self.reason: str | None = None
        self.usage: Usage | None = None
        self.num_pieces = 0
        self._events, self._asked = events, asked_logprobs

    @property
    def finished(self) -> bool:
        return self.reason is not None

    def __iter__(self) -> Iterator[str]:
        for event in self._events:
            if isinstance(event.get("usage"), dict):
                self.usage = _usage(event["usage"])
            choices = event.get("choices")
            if not isinstance(choices, list):
                raise ValueError(f"the service's answer has no choices ({str(event)[:200]}): is it OpenAI-compatible?")
            for choice in choices[:1]:
                self.reason = choice.get("finish_reason") or self.reason
                part = choice.get("delta") or choice.get("message") or choice
                text = part.get("content") or part.get("text") or ""
                self.logprobs = self._read_logprobs(choice.get("logprobs") or {})
                self.num_pieces += bool(text)
                if text or self.logprobs:
                    yield text
        self.logprobs = ()

    def _read_logprobs(self, told: Mapping[str, Any]) -> tuple[TokenLogprob, ...]:
        if self._asked is None:
            return ()
        if "content" in told:  # as in chat completions
            return tuple(
                TokenLogprob(
                    each["token"],
                    each["logprob"],
                    tuple((top["token"], top["logprob"]) for top in each.get("top_logprobs", ())[: self._asked]),
                )
                for each in told["content"] or ()
            )
        tops = told.get("top_logprobs") or [{}] * len(told.get("tokens", ()))  # as in plain completions
        return tuple(
            TokenLogprob(token, logprob, tuple(sorted((top or {}).items(), key=lambda pair: -pair[1])[: self._asked]))
            for token, logprob, top in zip(told.get("tokens", ()), told.get("token_logprobs", ()), tops, strict=False)
        )


def load(model: str, options: LoadOptions) -> OpenAIModel:
    """Reach the service and check that it has the model. ValueError names the address and the remedy."""
    key = options.api_key or os.environ.get("OPENAI_API_KEY") or None
    url = options.base_url or os.environ.get("OPENAI_BASE_URL") or (_HOSTED if key else None)
    if not url:
        raise ValueError("the openai engine needs --base-url (or OPENAI_BASE_URL), such as http://127.0.0.1:8000/v1")
    transport = Transport(url, key)
    known = _listed(transport)
    if known and model not in known:
        raise ValueError(f"{transport.base_url} has no model '{model}'; it has: {', '.join(known)}")
    entry = known.get(model, {})
    kind = str(entry.get("owned_by", ""))
    return OpenAIModel(model, transport, options.context_length or _context_length(entry), kind)


def _listed(transport: Transport) -> dict[str, Mapping[str, Any]]:
    """The service's models by name; none where it keeps no list."""
    try:
        answer = transport.get("/models", tries=1)
    except RefusedError as refused:
        if refused.status in (404, 405) and refused.message:
            return {}
        raise
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ValueError(f"{transport.base_url} is no OpenAI-compatible service (its /models is no list of models)")
    return {str(each["id"]): each for each in entries if isinstance(each, dict) and "id" in each}


def _context_length(entry: Mapping[str, Any]) -> int:
    places = (entry, entry.get("meta") or {})
    found = [place.get(name) for place in places for name in (*_CONTEXT_FIELDS, "n_ctx", "n_ctx_train")]
    return next((value for value in found if isinstance(value, int) and value > 0), DEFAULT_CONTEXT)


def _usage(told: Mapping[str, Any]) -> Usage:
    cached = (told.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Usage(told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0, cached)


def _estimate(text: str) -> int:
    """Tokens of a text, rather too many than too few."""
    sizes = (len(piece) if piece.isascii() else 2 * len(piece.encode()) for piece in _PIECES.findall(text))
    return sum(-(-size // _BYTES_A_TOKEN) for size in sizes)


def _messages(conversation: Conversation) -> list[dict[str, str]]:
    return [{"role": each.role, "content": _harmless(each.content)} for each in conversation]


def _harmless(text: str) -> str:
    """`text` with the usual special tokens and role markers broken up by a space."""
    return broken_up(text, _FORGERIES)

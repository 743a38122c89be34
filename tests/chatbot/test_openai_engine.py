"""The OpenAI engine against a small server of this file's own, which can be told to behave badly."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation, TokenLogprob, Usage
from chatbot.engines.openai_engine import OpenAIModel, _harmless
from chatbot.engines.openai_transport import RefusedError, Transport, _seconds

ASKED = Conversation().add("system", "Be brief.").add("user", "Where is Zurich?")
WORDS = ("It ", "is in ", "Switzer", "land.")


def chunk(content: str | None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish, **more}]}


USAGE = {"prompt_tokens": 21, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 7}}
GOOD = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}]},
    *(chunk(word) for word in WORDS),
    chunk(None, "stop"),
    {"choices": [], "usage": USAGE},
]


@dataclass
class Service:
    """What the server is told to answer, and what it was asked. A reply is (status, headers, body): bytes, a JSON
    value, or a list of events."""

    replies: list[tuple[int, dict[str, str], Any]] = field(default_factory=list)
    models: Any = field(default_factory=lambda: {"object": "list", "data": [{"id": "m"}, {"id": "other"}]})
    requests: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)
    pause: float = 0.0
    hung_up: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def model(self, **more: Any) -> OpenAIModel:
        model: Any = open_engine("openai", "m", LoadOptions(base_url=self.url, api_key="secret", **more))
        model._transport._first_wait = 0.001
        return model  # type: ignore[no-any-return]

    def bodies(self) -> list[Any]:
        return [body for _, _, body in self.requests if body is not None]


def handler_for(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def do_GET(self) -> None:  # http.server's name
            service.requests.append((self.path, dict(self.headers), None))
            if isinstance(service.models, tuple):
                self.send(*service.models)
            else:
                self.send(200, {}, service.models)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            service.requests.append((self.path, dict(self.headers), body))
            self.send(*(service.replies.pop(0) if len(service.replies) > 1 else service.replies[0]))

        def send(self, status: int, headers: dict[str, str], body: Any) -> None:
            events = isinstance(body, list)
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            given = {"Content-Type": "text/event-stream" if events else "application/json"} | headers
            given |= {"Connection": "close"} if events else {"Content-Length": str(len(data))}
            for name, value in given.items():
                self.send_header(name, value)
            self.end_headers()
            if not events:
                self.wfile.write(data)
                return
            try:
                for event in body:
                    text = event if isinstance(event, str) else f"data: {json.dumps(event)}\n\n"
                    self.wfile.write(text.encode())
                    self.wfile.flush()
                    time.sleep(service.pause)
            except (BrokenPipeError, ConnectionResetError):
                service.hung_up.set()
            self.close_connection = True

    return Handler


@pytest.fixture
def service() -> Iterator[Service]:
    told = Service(replies=[(200, {}, [*GOOD, "data: [DONE]\n\n"])])
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(told))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield told
    server.shutdown()
    thread.join()
    server.server_close()


def said(deltas: Any) -> str:
    return "".join(delta.text for delta in deltas)


def stream_error(service: Service, generation: Generation | None = None) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # every test looks at the text
        list(service.model().stream(ASKED, generation or Generation()))
    assert "secret" not in str(caught.value), "the key stays out of messages"
    return str(caught.value)


def load_error(base_url: str, model: str = "m") -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        open_engine("openai", model, LoadOptions(base_url=base_url, api_key="secret"))
    return str(caught.value)


# Answers ------------------------------------------------------------------------------------------------------------


def test_an_answer_comes_piece_by_piece_with_its_usage(service: Service) -> None:
    *deltas, last = service.model().stream(ASKED, Generation())
    assert tuple(delta.text for delta in deltas) == WORDS
    assert (last.finish_reason, last.usage) == ("stop", Usage(21, 4, 7))


def test_the_request_is_openais(service: Service) -> None:
    list(service.model().stream(ASKED, Generation(max_tokens=9, stop=("\n", "END"), seed=3)))
    path, headers, body = service.requests[-1]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Where is Zurich?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
        "temperature": 0,
        "seed": 3,
        "stop": ["\n", "END"],
    }


def test_sampling_settings_are_sent_as_far_as_the_service_knows_them(service: Service) -> None:
    chosen = Generation(sample=True, temperature=0.7, top_p=0.9, top_k=20, repetition_penalty=1.2)
    list(service.model().stream(ASKED, chosen))
    body = service.bodies()[-1]
    assert (body["temperature"], body["top_p"]) == (0.7, 0.9)
    assert not {"top_k", "repetition_penalty", "repeat_penalty"} & set(body), "unknown to OpenAI, which would refuse"
    for kind, name in (("vllm", "repetition_penalty"), ("llamacpp", "repeat_penalty")):
        model = OpenAIModel("m", Transport(service.url, None), 8192, kind)
        body = model._body(chosen)
        assert (body["top_k"], body[name]) == (20, 1.2)


@pytest.mark.parametrize("stop", ["in Swi", "land", "It is", "."])
def test_a_stop_string_that_the_service_overlooks_ends_the_answer_here(stop: str, service: Service) -> None:
    *deltas, last = service.model().stream(ASKED, Generation(stop=("#", "%", "&", "@", stop)))
    assert said(deltas) == "".join(WORDS).partition(stop)[0]
    assert last.finish_reason == "stop"
    assert len(service.bodies()[-1]["stop"]) == 4, "OpenAI's limit"


def test_length_is_told(service: Service) -> None:
    service.replies = [(200, {}, [chunk("It"), chunk(None, "length"), "data: [DONE]\n\n"])]
    last = list(service.model().stream(ASKED, Generation()))[-1]
    assert last.finish_reason == "length"
    assert last.usage is not None
    assert last.usage.completion_tokens == 1, "counted here, since the service sends no usage"


def test_logprobs_of_chat_and_of_plain_completion(service: Service) -> None:
    top = [{"token": "It", "logprob": -0.1}, {"token": "He", "logprob": -2.0}]
    told = {"content": [{"token": "It", "logprob": -0.1, "top_logprobs": top}]}
    service.replies = [(200, {}, [chunk("It", logprobs=told), chunk(None, "stop")])]
    deltas = list(service.model().stream(ASKED, Generation(logprobs=2)))
    expected = TokenLogprob("It", -0.1, (("It", -0.1), ("He", -2.0)))
    assert [each for delta in deltas for each in delta.logprobs] == [expected]
    assert service.bodies()[-1]["top_logprobs"] == 2
    plain = {"tokens": ["It"], "token_logprobs": [-0.1], "top_logprobs": [{"He": -2.0, "It": -0.1}]}
    event = {"choices": [{"index": 0, "text": "It", "finish_reason": "stop", "logprobs": plain}]}
    service.replies = [(200, {}, [event])]
    deltas = list(service.model().complete("So", Generation(logprobs=2)))
    assert [each for delta in deltas for each in delta.logprobs] == [expected]
    assert service.requests[-1][0] == "/v1/completions"
    assert service.bodies()[-1]["prompt"] == "So"


def test_a_service_that_does_not_stream_is_understood(service: Service) -> None:
    whole = {
        "choices": [{"message": {"role": "assistant", "content": "All."}, "finish_reason": "stop"}],
        "usage": USAGE,
    }
    service.replies = [(200, {}, whole)]
    deltas = list(service.model().stream(ASKED, Generation()))
    assert (said(deltas), deltas[-1].usage) == ("All.", Usage(21, 4, 7))


def test_comments_and_empty_lines_between_events_are_nothing(service: Service) -> None:
    service.replies = [
        (200, {}, [": ping\n\n", "event: message\n", *GOOD, "\r\n", "data: [DONE]\n\n", "data: junk\n\n"])
    ]
    assert said(service.model().stream(ASKED, Generation())) == "".join(WORDS)


def test_closing_the_stream_closes_the_connection(service: Service) -> None:
    service.pause = 0.01
    service.replies = [(200, {}, [chunk("word ")] * 5000)]
    stream = service.model().stream(ASKED, Generation())
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert service.hung_up.wait(10)


def test_several_threads_ask_at_once(service: Service) -> None:
    model, texts = service.model(), []
    threads = [threading.Thread(target=lambda: texts.append(said(model.stream(ASKED, Generation())))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert texts == ["".join(WORDS)] * 8


# Trying again -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_busy_service_is_asked_again(status: int, service: Service) -> None:
    busy = (status, {}, {"error": {"message": "busy"}})
    service.replies = [busy, busy, *service.replies]
    assert said(service.model().stream(ASKED, Generation())) == "".join(WORDS)
    assert len(service.bodies()) == 3


def test_it_gives_up_after_five_times(service: Service) -> None:
    service.replies = [(503, {}, {"error": {"message": "overloaded"}})]
    assert "503: overloaded" in stream_error(service)
    assert len(service.bodies()) == 5


@pytest.mark.parametrize("in_words", [False, True])
def test_retry_after_is_followed(in_words: bool, service: Service) -> None:
    wait = formatdate(time.time() + 2, usegmt=True) if in_words else "0.3"
    service.replies = [(429, {"Retry-After": wait}, {"error": {"message": "slow down"}}), *service.replies]
    started = time.monotonic()
    assert said(service.model().stream(ASKED, Generation())) == "".join(WORDS)
    assert 0.25 <= time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (429, {"Retry-After": "86400"}, "come tomorrow"),
        (429, {}, "You exceeded your current quota"),
        (400, {}, "bad field"),
        (401, {}, "wrong key"),
        (413, {}, "too long"),
    ],
)
def test_what_waiting_does_not_mend_is_told_at_once(
    status: int, headers: dict[str, str], message: str, service: Service
) -> None:
    service.replies = [(status, headers, {"error": {"message": message}})]
    assert message in stream_error(service)
    assert len(service.bodies()) == 1


def test_nothing_is_asked_again_after_the_first_token(service: Service) -> None:
    service.replies = [(200, {}, [chunk("It "), {"error": {"message": "out of memory"}}])]
    stream = service.model().stream(ASKED, Generation())
    assert next(stream).text == "It "
    with pytest.raises(ValueError, match="out of memory"):
        list(stream)
    service.replies = [(200, {}, [chunk("It ")])]  # and then the connection ends
    with pytest.raises(ValueError, match="without a finish reason"):
        list(service.model().stream(ASKED, Generation()))
    assert len(service.bodies()) == 2


def test_waits_double_and_are_cut_by_chance() -> None:
    transport = Transport("http://127.0.0.1:9/v1", None)
    for number, longest in enumerate((0.5, 1, 2, 4, 8, 8)):
        waits = {transport._wait(number, None) for _ in range(50)}
        assert longest / 2 <= min(waits) < max(waits) <= longest
    assert transport._wait(5, "0") == 0
    assert [_seconds(text) for text in ("-3", "soon", "", None)] == [0, None, None, None]


def test_fields_that_a_service_refuses_are_sent_otherwise(service: Service) -> None:
    def refusal(text: str) -> tuple[int, dict[str, str], Any]:
        return 400, {}, {"error": {"message": text}}

    newer = refusal("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    service.replies = [newer, refusal("stream_options is not permitted"), *service.replies]
    model = service.model()
    assert said(model.stream(ASKED, Generation(max_tokens=9))) == "".join(WORDS)
    last = service.bodies()[-1]
    assert last["max_completion_tokens"] == 9
    assert not {"max_tokens", "stream_options"} & set(last)
    list(model.stream(ASKED, Generation(max_tokens=9)))
    assert "max_tokens" not in service.bodies()[-1], "it remembers"


# Mistakes -----------------------------------------------------------------------------------------------------------


def test_an_address_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    assert "not running" in (message := load_error(url))
    assert url in message
    assert "--base-url" in message


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://example.org", "", "http://"])
def test_an_address_that_is_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:8000/v1"):
        open_engine("openai", "m", LoadOptions(base_url=url))


def test_a_key_with_a_line_break_is_refused(service: Service) -> None:
    with pytest.raises(ValueError, match="API key holds characters"):
        open_engine("openai", "m", LoadOptions(base_url=service.url, api_key="sec\nret"))


def test_an_unknown_model_lists_the_known_ones(service: Service) -> None:
    assert "has no model 'x'; it has: m, other" in load_error(service.url, "x")
    service.replies = [(404, {}, {"error": {"message": "The model `m` does not exist"}})]
    assert "it has: m, other" in stream_error(service)


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        ((200, {"Content-Type": "text/html"}, b"<html>Welcome</html>"), "no OpenAI-compatible service"),
        ((200, {}, {"hello": "world"}), "no OpenAI-compatible service"),
        ((200, {}, [1]), "no OpenAI-compatible service"),
        ((404, {"Content-Type": "text/html"}, b"not here"), "mostly ends in /v1"),
        ((401, {}, {"error": {"message": "Incorrect API key"}}), "refuses the API key (401: Incorrect API key)"),
        ((403, {}, {"detail": "no"}), "refuses the API key (403: no)"),
        ((301, {"Location": "https://elsewhere.example/v1"}, {}), "https://elsewhere.example/v1"),
    ],
)
def test_what_is_no_service_says_so(models: Any, expected: str, service: Service) -> None:
    service.models = models
    message = load_error(service.url)
    assert expected in message
    assert "secret" not in message


def test_a_service_without_a_list_of_models_is_taken_at_its_word(service: Service) -> None:
    service.models = (404, {}, {"error": {"message": "no such route"}})
    assert said(service.model().stream(ASKED, Generation())) == "".join(WORDS)


@pytest.mark.parametrize("body", [[{"no": "choices"}], ["data: not json\n\n"], ["data: [1]\n\n"], b"<html>", {"a": 1}])
def test_an_answer_that_is_none_is_one_line(body: Any, service: Service) -> None:
    service.replies = [(200, {}, body)]
    assert "\n" not in stream_error(service)


def test_refusals_are_value_errors_with_their_status(service: Service) -> None:
    service.replies = [(418, {}, {"error": "teapot"})]
    with pytest.raises(RefusedError, match="teapot") as caught:
        list(service.model().stream(ASKED, Generation()))
    assert caught.value.status == 418


def test_address_and_key_come_from_the_environment(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", service.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "from-environment")
    assert said(open_engine("openai", "m").stream(ASKED, Generation())) == "".join(WORDS)
    assert service.requests[-1][1]["Authorization"] == "Bearer from-environment"
    monkeypatch.delenv("OPENAI_API_KEY")
    open_engine("openai", "m")
    assert "Authorization" not in service.requests[-1][1], "no key, no header"


# Counting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({}, 8192),
        ({"max_model_len": 4096}, 4096),
        ({"context_length": 131072}, 131072),
        ({"context_window": 32768}, 32768),
        ({"meta": {"n_ctx_train": 2048}}, 2048),
        ({"max_model_len": "unknown"}, 8192),
    ],
    ids=str,
)
def test_the_context_is_the_services_or_the_flags(entry: dict[str, Any], expected: int, service: Service) -> None:
    service.models = {"data": [{"id": "m"} | entry]}
    assert service.model().context_length == expected
    assert service.model(context_length=1000).context_length == 1000
    with pytest.raises(ValueError, match="exceed the model's context of 100"):
        service.model(context_length=100).stream(ASKED, Generation(max_tokens=90))


def test_vllm_and_llama_cpp_count_for_us(service: Service) -> None:
    service.models = {"data": [{"id": "m", "owned_by": "vllm"}]}
    service.replies = [(200, {}, {"count": 17, "max_model_len": 10, "tokens": [1] * 17})]
    model = service.model()
    assert model.count_tokens(ASKED) == model.count_tokens(ASKED) == 17
    assert [path for path, _, body in service.requests if body] == ["/tokenize"], "asked once, outside /v1"
    service.models = {"data": [{"id": "m", "owned_by": "llamacpp"}]}
    service.replies = [(200, {}, {"prompt": "<all of it>"}), (200, {}, {"tokens": [1, 2, 3]})]
    assert service.model().count_tokens(ASKED) == 3
    assert service.bodies()[-1]["content"] == "<all of it>"


@pytest.mark.parametrize(
    "text", ["Where is Zurich? " * 50, "你好，世界。" * 50, "Grüße aus Zürich! " * 50, "x = y ** 2\n" * 50]
)
def test_the_estimate_is_near_and_rather_too_high(text: str, service: Service, smollm2: Any) -> None:
    from chatbot.rendering import Renderer

    renderer = Renderer(_tokenizer(str(smollm2)))
    asked = Conversation().add("system", "Be brief.").add("user", text)
    exact, estimated = renderer.count(asked), service.model().count_tokens(asked)
    assert 0.9 * exact < estimated < 2 * exact


def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


# Text cannot forge ---------------------------------------------------------------------------------------------------

MARKERS = ("<|im_start|>", "<|eot_id|>", "[INST]", "</s>", "<start_of_turn>", "<human>:", "<｜User｜>", "<|endoftext|>")


@given(
    text=st.lists(st.sampled_from([*MARKERS, "<|im_<|im_end|>end|>", "a", " ", "<", "|", ">", "[/INST"])).map("".join)
)
def test_no_common_marker_is_sent_whole(text: str) -> None:
    sent = _harmless(text)
    assert not any(marker in sent for marker in MARKERS)
    assert sent.replace(" ", "") == text.replace(" ", ""), "nothing but spaces is added"


@given(text=st.text(alphabet=st.characters(exclude_characters="<[")))
def test_other_text_is_sent_as_it_is(text: str) -> None:
    assert _harmless(text) == text


def test_what_is_shown_is_what_is_sent(service: Service) -> None:
    model = service.model()
    forged = Conversation().add("user", "Hi<|im_end|>")
    list(model.stream(forged, Generation()))
    sent = service.bodies()[-1]["messages"][0]["content"]
    assert sent == "H" + "i< |im_end|>"
    assert sent in model.render(forged)

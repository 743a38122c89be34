"""A moderation service, played by a small server on this machine."""

from __future__ import annotations

import json
import logging
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from moderation.classifiers import open_classifier
from moderation.classifiers.openai_endpoint import BATCH, LONGEST, OpenAIClassifier
from moderation.moderator import PolicyModerator
from moderation.policy import Policy

CLOSED = Policy(fail="closed")

KEY = "sk-very-secret-1234"
CATEGORIES = [
    *("harassment", "harassment/threatening", "hate", "hate/threatening", "illicit", "illicit/violent", "self-harm"),
    *("self-harm/intent", "self-harm/instructions", "sexual", "sexual/minors", "violence", "violence/graphic"),
]


def judged(text: str) -> dict:
    """What the service says: violence where somebody kills, in the share of the text's words."""
    score = text.split().count("kill") / len(text.split())
    scores = dict.fromkeys(CATEGORIES, 0.0) | {"violence": score}
    return {
        "flagged": score > 0,
        "categories": {label: s > 0 for label, s in scores.items()},
        "category_scores": scores,
    }


class Service:
    """A server that remembers what it was asked; `answers` are given first, in order: (status, headers, body)."""

    def __init__(self):
        self.requests, self.answers = [], []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                service.requests.append((self.path, dict(self.headers), json.loads(body)))
                status, headers, content = service.answers.pop(0) if service.answers else (200, {}, None)
                if status is None:
                    service.hold.wait(30)
                    status = 200
                if content is None:
                    content = json.dumps({"results": [judged(text) for text in json.loads(body)["input"]]}).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(content)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.hold = threading.Event()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    def close(self):
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(10)


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    service = Service()
    yield service
    service.close()


@pytest.fixture
def waits():
    return []


@pytest.fixture
def classifier(service, waits):
    return OpenAIClassifier(service.url, "omni", timeout=10, retries=2, pause=0.5, sleep=waits.append)


def test_texts_are_judged_under_openais_names(service, classifier):
    fine, bad = classifier.scores(["good day", "kill them"])
    assert set(fine) == {*CATEGORIES, "unsafe"} == set(classifier.labels)
    assert (bad["violence"], bad["unsafe"], bad["hate"]) == (0.5, 1.0, 0.0)
    assert set(fine.values()) == {0.0}
    ((path, headers, body),) = service.requests
    assert path == "/v1/moderations"
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert headers["Content-Type"] == "application/json"
    assert body == {"input": ["good day", "kill them"], "model": "omni"}


def test_many_texts_go_in_batches_and_keep_their_order(service, classifier):
    texts = ["kill " * (i % 3) + "x" for i in range(2 * BATCH + 1)]
    assert [scores["violence"] for scores in classifier.scores(texts)] == [
        (i % 3) / (i % 3 + 1) for i in range(len(texts))
    ]
    assert [len(body["input"]) for _, _, body in service.requests] == [BATCH, BATCH, 1]
    assert classifier.scores([]) == []
    assert len(service.requests) == 3


def test_a_long_text_goes_in_pieces_and_the_worst_counts(service, classifier):
    long = "x" * (3 * LONGEST) + " kill"
    (scores,) = classifier.scores([long])
    assert scores["unsafe"] == 1.0
    assert all(len(text) <= LONGEST for _, _, body in service.requests for text in body["input"])


def test_nothing_to_judge_is_unknown(service, classifier):
    assert classifier.scores(["", " \n"]) == [dict.fromkeys(classifier.labels)] * 2
    assert service.requests == []


def test_half_a_character_does_not_break_the_request(service, classifier):
    classifier.scores(["kill \ud800"])
    assert service.requests[0][2]["input"] == ["kill ?"]


def test_a_category_that_the_service_does_not_judge_is_unknown_and_a_new_one_is_left_out(service, classifier):
    result = {"flagged": True, "category_scores": {"hate": 0.25, "illicit": None, "gambling": 0.9}}
    service.answers.append((200, {}, json.dumps({"results": [result]}).encode()))
    (scores,) = classifier.scores(["a"])
    assert {label: score for label, score in scores.items() if score is not None} == {"hate": 0.25, "unsafe": 1.0}


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_service_is_asked_again_after_longer_and_longer_waits(service, classifier, waits, status):
    service.answers += [(status, {}, b"{}")] * 2
    assert classifier.scores(["kill"])[0]["unsafe"] == 1.0
    assert (len(service.requests), waits) == (3, [0.5, 1.0])


def test_the_service_may_say_how_long_to_wait_within_bounds(service, classifier, waits):
    service.answers += [(429, {"Retry-After": "3"}, b""), (429, {"Retry-After": "86400"}, b"")]
    classifier.scores(["x"])
    assert waits == [3.0, 10.0]


def test_the_attempts_have_an_end(service, classifier, waits):
    service.answers += [(503, {}, b"")] * 9
    with pytest.raises(ValueError, match=r"the moderation service at 127\.0\.0\.1:\d+ answered 503$"):
        classifier.scores(["x"])
    assert (len(service.requests), len(waits)) == (3, 2)


@pytest.mark.parametrize(
    ("status", "remedy"), [(400, "answered 400$"), (401, "check OPENAI_API_KEY"), (404, "check the URL and the model")]
)
def test_what_does_not_help_is_not_tried_again(service, classifier, waits, status, remedy):
    service.answers.append((status, {}, json.dumps({"error": f"wrong key {KEY}: a private text"}).encode()))
    with pytest.raises(ValueError, match=remedy) as caught:
        classifier.scores(["a private text"])
    assert (len(service.requests), waits) == (1, [])
    assert KEY not in str(caught.value)
    assert "private" not in str(caught.value)


def test_a_redirect_is_not_followed(service, classifier):
    service.answers.append((302, {"Location": f"{service.url}/elsewhere"}, b""))
    with pytest.raises(ValueError, match="answered 302"):
        classifier.scores(["x"])
    assert len(service.requests) == 1


def test_a_service_that_does_not_answer_in_time(service, waits):
    service.answers += [(None, {}, None)] * 2
    classifier = OpenAIClassifier(service.url, timeout=0.1, retries=1, sleep=waits.append)
    with pytest.raises(ValueError, match=r"did not answer in 0\.1 s"):
        classifier.scores(["x"])
    assert len(waits) == 1


def test_a_service_that_is_not_there(service, waits):
    url = service.url
    service.close()
    with pytest.raises(ValueError, match="cannot be reached"):
        OpenAIClassifier(url, retries=1, sleep=waits.append).scores(["x"])
    assert len(waits) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"{}",
        b'{"results": null}',
        b'{"results": []}',
        b'{"results": [{}]}',
        b'{"results": [[]]}',
        b'{"results": [{"flagged": "no", "category_scores": {}}]}',
        b'{"results": [{"flagged": false, "category_scores": []}]}',
        b'{"results": [{"flagged": false, "category_scores": {"hate": "0.5"}}]}',
        b'{"results": [{"flagged": false, "category_scores": {"hate": true}}]}',
        b"[" * 100_000,
    ],
    ids=range(14),
)
def test_an_answer_that_is_not_of_the_format_is_a_failure_and_not_a_pass(service, classifier, body):
    service.answers += [(200, {}, body)] * 2
    with pytest.raises(ValueError, match=r"the moderation service at 127\.0\.0\.1:\d+ gave "):
        classifier.scores(["x"])
    (verdict,) = PolicyModerator(classifier, CLOSED).check(["x"])
    assert (verdict.action, verdict.error) == ("block", "the classifier raised ValueError")


@pytest.mark.parametrize("score", ["NaN", "1.5", "-1", "1e999"])
def test_a_score_that_is_no_probability_fails_in_the_moderator(service, classifier, score):
    body = f'{{"results": [{{"flagged": false, "category_scores": {{"hate": {score}}}}}]}}'
    service.answers.append((200, {}, body.encode()))
    (verdict,) = PolicyModerator(classifier, CLOSED).check(["x"])
    assert verdict.action == "block"
    assert "not a probability" in verdict.error


def test_the_key_is_in_no_log_and_no_traceback(service, classifier, caplog):
    service.answers += [(401, {}, b"")]
    with caplog.at_level(logging.DEBUG):
        PolicyModerator(classifier).check(["x"])
    assert "ValueError" in caplog.text
    assert KEY not in caplog.text
    assert KEY not in repr(classifier)


def test_names(service, monkeypatch):
    monkeypatch.setenv("OPENAI_BASE_URL", f"{service.url}/")
    for name, model in {
        "openai": "omni-moderation-latest",
        "openai:text-moderation-stable": "text-moderation-stable",
        f"openai+{service.url}#a/b:c": "a/b:c",
        f"openai+{service.url}": None,
    }.items():
        open_classifier(name).scores(["x"])
        assert service.requests[-1][2].get("model") == model
        assert service.requests[-1][0] == "/v1/moderations"


def test_a_key_is_not_needed_elsewhere(service, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    assert open_classifier(f"openai+{service.url}").scores(["x"])[0]["unsafe"] == 0.0
    assert "Authorization" not in service.requests[0][1]
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(ValueError, match=r"the moderation service at api\.openai\.com needs a key; set OPENAI_API_KEY"):
        open_classifier("openai")


@pytest.mark.parametrize("key", ["sk-very-\nsecret", "sk-véry-secret", "sk-\x00secret"])
def test_a_key_that_cannot_be_sent_is_refused_without_showing_it(monkeypatch, key):
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(ValueError, match="OPENAI_API_KEY has a character") as caught:
        OpenAIClassifier("http://127.0.0.1:1/v1")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openai:", "is not openai, openai:MODEL"),
        ("openai+", "'nothing' is not the address"),
        ("openai+ftp://x/v1", "'ftp://x/v1' is not the address of a moderation service, such as https://api"),
        ("openai+file:///etc/passwd", "is not the address"),
        ("openai+http://", "is not the address"),
        ("openai+http://x:99999/v1", "is not the address"),
        ("openai+http://user:secret@x/v1", "a plain URL: no password"),
        ("openai+http://x/v1?key=secret", "a plain URL"),
    ],
)
def test_a_wrong_name_is_one_clear_error(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_classifier(name)
    assert "secret" not in str(caught.value)

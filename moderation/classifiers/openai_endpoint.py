"""OpenAIClassifier: a moderation service that speaks OpenAI's `/v1/moderations`, theirs or any compatible one.

Source of the format: https://platform.openai.com/docs/api-reference/moderations
"""

from __future__ import annotations

import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from moderation.classifiers.windows import encodable, pieces, worst
from moderation.labels import INJECTION, LABELS
from moderation.types import Scores

log = logging.getLogger("parley.moderation")

OPENAI_URL = "https://api.openai.com/v1"
OPENAI_MODEL = "omni-moderation-latest"
BATCH = 32  # texts in a request
LONGEST = 20_000  # characters of a text in a request; a longer one is sent in overlapping pieces
OVERLAP = 400
MAX_ANSWER = 10_000_000  # bytes
RETRIED = frozenset({408, 429, 500, 502, 503, 504})
MAX_WAIT = 10.0  # seconds between two attempts, whatever the service asks for
REMEDIES = {
    401: "check OPENAI_API_KEY",
    403: "check OPENAI_API_KEY",
    404: "check the URL and the model",
    429: "it is overloaded, or the quota is used up",
}


class OpenAIClassifier:
    """OpenAI's moderation categories under their own names, and `unsafe`: 1.0 where the service flags the text.

    `url` is the base that `/moderations` is added to, OPENAI_BASE_URL or OPENAI_URL if left out; `model` goes into the
    request where it is not empty; the key is OPENAI_API_KEY, which OpenAI's own service needs. It appears in no
    message and no log. A category that the service does not judge is None, and one that is not in LABELS is left out
    (`unsafe` still speaks for it). Texts beyond LONGEST characters are sent in overlapping pieces; the worst counts.

    Each attempt takes `timeout` seconds at most; a service that cannot be reached, is overloaded or broken is asked
    `retries` times more, after `pause` seconds, then twice that, and so on. Raises ValueError here for a URL or key
    that cannot be used, and from `scores` where the service gives no usable answer in the end.
    """

    def __init__(
        self,
        url: str = "",
        model: str = OPENAI_MODEL,
        timeout: float = 10.0,
        retries: int = 2,
        pause: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        base = (url or os.environ.get("OPENAI_BASE_URL") or OPENAI_URL).rstrip("/")
        self._url = f"{_checked_url(base)}/moderations"
        self._host = urlsplit(base).netloc
        self._key = _checked_key(os.environ.get("OPENAI_API_KEY", "").strip())
        if not self._key and self._host == urlsplit(OPENAI_URL).netloc:
            raise ValueError(f"the moderation service at {self._host} needs a key; set OPENAI_API_KEY")
        self._model, self._timeout, self._retries, self._pause, self._sleep = model, timeout, retries, pause, sleep
        self._opener = urllib.request.build_opener(_NoRedirects)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(label for label in LABELS if label != INJECTION)

    def scores(self, texts: Sequence[str]) -> list[Scores]:
        """For each text: label -> probability in [0, 1], None for a category that the service does not judge."""
        parts: list[str] = []
        owners: list[int] = []
        for owner, text in enumerate(texts):
            whole = pieces(encodable(text), lambda part: len(part) <= LONGEST, OVERLAP)
            asked = [part for part in whole if part.strip()]
            parts += asked
            owners += [owner] * len(asked)
        answers = [scores for i in range(0, len(parts), BATCH) for scores in self._ask(parts[i : i + BATCH])]
        of_text: list[list[Scores]] = [[] for _ in texts]
        for owner, scores in zip(owners, answers, strict=True):
            of_text[owner].append(scores)
        return [worst(mine) if mine else dict.fromkeys(self.labels) for mine in of_text]

    def _ask(self, texts: list[str]) -> list[Scores]:
        content = {"input": texts} | ({"model": self._model} if self._model else {})
        answer = self._post(json.dumps(content).encode())
        try:
            results = json.loads(answer)["results"]
            if len(results) != len(texts):
                raise self._problem(f"gave {len(results)} results for {len(texts)} texts")
            return [self._read(result) for result in results]
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, LookupError, TypeError, AttributeError):
            # Without the answer itself, which may quote the texts.
            raise self._problem("gave an answer that is not of OpenAI's moderation format") from None

    def _read(self, result: dict[str, Any]) -> Scores:
        flagged, given = result["flagged"], result["category_scores"]
        if not isinstance(flagged, bool):
            raise TypeError("flagged is no truth value")
        if unknown := set(given) - set(LABELS):
            log.info("the moderation service judges %d categories that have no label here", len(unknown))
        scores: Scores = {label: _number(given.get(label)) for label in self.labels}
        return scores | {"unsafe": float(flagged)}

    def _post(self, body: bytes) -> bytes:
        """The service's answer to `body`, asked again where that may help."""
        problem = ""
        for attempt in range(self._retries + 1):
            wait = self._pause * 2**attempt
            try:
                with self._opener.open(self._request(body), timeout=self._timeout) as response:
                    answer: bytes = response.read(MAX_ANSWER + 1)
                if len(answer) > MAX_ANSWER:
                    raise self._problem(f"gave an answer of more than {MAX_ANSWER} bytes")
                return answer
            except urllib.error.HTTPError as error:
                error.close()
                problem = f"answered {error.code}"
                if error.code in REMEDIES:
                    problem += f"; {REMEDIES[error.code]}"
                if error.code not in RETRIED:
                    break
                wait = _retry_after(error.headers.get("Retry-After"), wait)
            except (OSError, http.client.HTTPException) as error:
                reason = getattr(error, "reason", error)
                timed_out = isinstance(reason, TimeoutError)
                problem = f"did not answer in {self._timeout:g} s" if timed_out else f"cannot be reached ({reason})"
            if attempt < self._retries:
                self._sleep(min(wait, MAX_WAIT))
        raise self._problem(problem)

    def _request(self, body: bytes) -> urllib.request.Request:
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"}, method="POST")  # noqa: S310  # _checked_url
        if self._key:
            request.add_unredirected_header("Authorization", f"Bearer {self._key}")
        return request

    def _problem(self, what: str) -> ValueError:
        return ValueError(f"the moderation service at {self._host} {what}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: neither texts nor key go anywhere but where the user said."""

    def redirect_request(self, *_: Any) -> None:
        return None


def open_openai(name: str, device: str | None, label_map: Mapping[str, str | None]) -> OpenAIClassifier:
    """`openai`, `openai:MODEL`, `openai+URL` or `openai+URL#MODEL`; ValueError for anything else."""
    del device, label_map  # nothing runs here, and the labels are ours
    if name == "openai":
        return OpenAIClassifier()
    if name.startswith("openai:") and (model := name.removeprefix("openai:")):
        return OpenAIClassifier(model=model)
    if name.startswith("openai+"):
        url, _, model = name.removeprefix("openai+").partition("#")
        return OpenAIClassifier(url or "nothing", model)
    raise ValueError(f"classifier '{name}' is not openai, openai:MODEL, openai+URL or openai+URL#MODEL")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"'{url}' is not the address of a moderation service, such as {OPENAI_URL}")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError("the address of a moderation service is a plain URL: no password (the key is OPENAI_API_KEY)")
    return url


def _checked_key(key: str) -> str:
    # http.client would quote a key that it cannot send.
    if not key.isascii() or not key.isprintable():
        raise ValueError("OPENAI_API_KEY has a character that no key has; set it again")
    return key


def _retry_after(header: str | None, otherwise: float) -> float:
    """Seconds to wait, where the service says so in seconds."""
    return float(header) if header and header.isascii() and header.isdigit() else otherwise


def _number(value: object) -> float | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise TypeError("a score is no number")
    return None if value is None else float(value)

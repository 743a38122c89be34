"""HTTP to an OpenAI-compatible service: requests with retries, server-sent events, and errors in plain words.

A request is tried again after 408, 409, 429, 5xx and broken connections, and only before its first token: waits double
from half a second, are cut by chance to between half and all of that, and follow Retry-After where the service sends
it. Redirects are not followed, so that the key goes nowhere else.
"""

from __future__ import annotations

import email.utils
import ipaddress
import json
import random
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import httpx

TRIES = 5
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds
_AGAIN = {408, 409, 429, 500, 502, 503, 504, 529}
_SHOWN = 300  # characters of a service's own message


class RefusedError(ValueError):
    """The service refused a request: `status` and its own `message`."""

    def __init__(self, text: str, status: int, message: str) -> None:
        super().__init__(text)
        self.status, self.message = status, message


class BrokenOffError(ValueError):
    """An answer that had begun and did not come to its end. Asking again may help."""


class Transport:
    """One service. May be used from several threads at once."""

    def __init__(self, base_url: str, api_key: str | None, first_wait: float = FIRST_WAIT) -> None:
        import httpx

        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"base URL '{base_url}' is no http or https address; such as http://127.0.0.1:8000/v1")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise ValueError("the API key holds characters that no key has (a line break?); set it anew")
        self.base_url = base_url.rstrip("/")
        self._first_wait = first_wait
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            # A token may take its time while a service reads a long prompt or waits for its turn.
            timeout=httpx.Timeout(30, connect=10, read=300, pool=None),
            limits=httpx.Limits(max_connections=None),
            trust_env=not _is_loopback(parts.hostname),  # no proxy between this machine and itself
        )
        weakref.finalize(self, self._client.close)

    def get(self, path: str, tries: int = TRIES) -> Any:
        """The JSON that GET gives. ValueError says what was wrong."""
        return self._value("GET", path, None, tries)

    def post(self, path: str, body: Mapping[str, Any], tries: int = TRIES) -> Any:
        """The JSON that POST gives."""
        return self._value("POST", path, body, tries)

    def at_root(self, path: str) -> str:
        """An address outside `/v1`, where servers keep what OpenAI's API does not have."""
        return self.base_url.removesuffix("/v1") + path

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The JSON objects of a streamed answer, or the one of a service that does not stream. Closing the iterator
        closes the connection."""
        import httpx

        response = self._send("POST", path, body, TRIES)
        try:
            if "text/event-stream" not in response.headers.get("content-type", ""):
                response.read()
                yield self._json(response)
                return
            for line in response.iter_lines():
                data = line[5:].strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield self._event(data)
        except httpx.HTTPError as error:
            raise BrokenOffError(f"{self.base_url} broke off its answer ({_reason(error)}); ask again") from None
        finally:
            response.close()

    def _event(self, data: str) -> dict[str, Any]:
        try:
            value = json.loads(data)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{self.base_url} sent an event that is no JSON object: {data[:_SHOWN]}")
        if value.get("error"):
            raise ValueError(f"{self.base_url} says: {_message(value)}")
        return value

    def _value(self, method: str, path: str, body: Mapping[str, Any] | None, tries: int) -> Any:
        import httpx

        response = self._send(method, path, body, tries)
        try:
            response.read()
            return self._json(response)
        except httpx.HTTPError as error:
            raise BrokenOffError(f"{self.base_url} broke off its answer ({_reason(error)}); ask again") from None
        finally:
            response.close()

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise ValueError(self._no_such_service("it answered with something else than JSON")) from None

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None, tries: int) -> httpx.Response:
        """A response with status 200 whose body is still to be read."""
        import httpx

        url = path if "://" in path else self.base_url + path
        request = self._client.build_request(method, url, json=body)
        for left in reversed(range(tries)):
            try:
                response = self._client.send(request, stream=True)
            except httpx.TransportError as error:
                if not left:
                    raise ValueError(self._no_such_service(_reason(error))) from None
                time.sleep(self._wait(tries - left - 1, None))
                continue
            if response.status_code == 200:
                return response
            problem = self._problem(response)
            wait = self._wait(tries - left - 1, response.headers.get("retry-after"))
            if not left or response.status_code not in _AGAIN or wait > LONGEST_WAIT or _out_of_money(problem):
                raise problem
            time.sleep(wait)
        raise AssertionError("at least one try")

    def _wait(self, number: int, retry_after: str | None) -> float:
        """Seconds before try number + 1; what the service asks for comes first."""
        asked = _seconds(retry_after)
        doubled: float = min(self._first_wait * 2**number, 8.0) * random.uniform(0.5, 1)  # noqa: S311  # no secret
        return doubled if asked is None else asked

    def _problem(self, response: httpx.Response) -> RefusedError:
        import httpx

        try:
            response.read()
            message = _message(response.json())
        except (ValueError, httpx.HTTPError):
            message = ""
        finally:
            response.close()
        status = response.status_code
        said = f": {message}" if message else ""
        if status in (401, 403):
            text = f"{self.base_url} refuses the API key ({status}{said}); set OPENAI_API_KEY to one that it knows"
        elif status == 404 and not message:
            text = self._no_such_service(f"404 for {response.request.url.path}")
        elif status == 429:
            text = f"{self.base_url} is busy, or a limit of yours is used up (429{said}); wait, or check your plan"
        elif 300 <= status < 400:
            text = f"{self.base_url} sends on to {response.headers.get('location', '?')}; give that as --base-url"
        else:
            text = f"{self.base_url} refused the request ({status}{said})"
        return RefusedError(text, status, message)

    def _no_such_service(self, reason: str) -> str:
        return (
            f"{self.base_url} is no OpenAI-compatible service, or not running ({reason}); check --base-url, which "
            "mostly ends in /v1, and that the server is up"
        )


def _message(value: Any) -> str:
    """The text of an error object, as OpenAI, vLLM, TGI or Ollama shape it."""
    error = value.get("error", value.get("detail", value.get("message"))) if isinstance(value, dict) else None
    text = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(text or "").split())[:_SHOWN]


def _out_of_money(problem: RefusedError) -> bool:
    return problem.status == 429 and "quota" in problem.message.lower()


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After as seconds from now, or None where there is none that can be read (RFC 9110, 10.2.3)."""
    if not retry_after:
        return None
    try:
        return max(float(retry_after), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _reason(error: Exception) -> str:
    return str(error).strip() or type(error).__name__


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

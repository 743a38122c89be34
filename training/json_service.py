"""A server that takes and gives JSON, asked again where it is busy or away for a moment."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

_TRIES, _FIRST_WAIT, _LONGEST_WAIT = 5, 0.5, 60.0  # seconds, doubled each time
_AGAIN = (408, 429, 500, 502, 503, 504)


class JsonService:
    """`server`, in words, at an http(s) address, from which `what` comes. `api_key_env` names the environment variable
    that holds its key, if it wants one. May be used from several threads at once."""

    def __init__(self, url: str, server: str, what: str, api_key_env: str, timeout: float) -> None:
        """Raises ValueError for what is no address, and no key."""
        import httpx

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"'{url}' is no address of {server}; such as http://127.0.0.1:8010")
        self.url = url.rstrip("/")
        self._what, self._key_variable, key = what, api_key_env, os.environ.get(api_key_env)
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError(f"{api_key_env} holds characters that no key has (a line break?); set it anew")
        local = parts.hostname in ("localhost", "127.0.0.1", "::1")
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout, connect=10.0, pool=None),
            trust_env=not local,  # no proxy between this machine and itself
        )
        weakref.finalize(self, self._client.close)

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON at `path`, where `body` is posted, if there is one; None where it is not JSON. Raises ValueError, in
        one line, where the server cannot be reached or refuses."""
        import httpx

        url, reason = self.url + path, ""
        for number in range(_TRIES):
            wait = min(_FIRST_WAIT * 2**number, _LONGEST_WAIT)
            try:
                response = self._client.get(url) if body is None else self._client.post(url, json=body)
            except httpx.RequestError as error:
                reason = str(error) or type(error).__name__
            else:
                if response.status_code == 200:
                    return _json(response)
                reason = self._refusal(response)
                if response.status_code not in _AGAIN:
                    break
                wait = min(max(wait, _seconds(response.headers.get("retry-after"))), _LONGEST_WAIT)
            if number + 1 < _TRIES:
                time.sleep(wait)
        raise ValueError(f"no {self._what} from {url}: {reason}; check the address, and that the server is up")

    def _refusal(self, response: Any) -> str:
        answer = _json(response)
        error = answer.get("error", answer) if isinstance(answer, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        remedy = f" (its key is read from {self._key_variable})" if response.status_code in (401, 403) else ""
        return f"it answered {response.status_code}{f': {said}' if said else ''}{remedy}"


def _json(response: Any) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _seconds(retry_after: str | None) -> float:
    """What Retry-After asks for, 0 where it is none in seconds."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0

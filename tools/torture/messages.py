"""Requests from an OpenAPI document: right ones, and what becomes of them when they are damaged."""

from __future__ import annotations

import json
import random
import string
from dataclasses import dataclass, field
from typing import Any

TEXTS = (
    *("hello there", "", " ", "\n\n", "Where is Zurich?", "<|im_start|>system", "<human>: x", "\u0000", "\ufffd"),
    *("\ud800", "e\u0301", "\u202eabc", "😀" * 20, "a" * 5000, "((((", "%s%n", "../../etc/passwd", "'; --", "{{7*7}}"),
    *("null", "NaN", "source=docs/*", "year>=1990", "[*a*a*a*a*a*b", "good", "edit", "chatcmpl-1", "default", "base64"),
)
NUMBERS = (
    *(0, 1, -1, 2, 3, 7, 8, 9, 20, 21, 50, 256, 1000, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30),
    *(0.0, 0.5, 1.0, 1.5, -0.5, 1e-9, 1e300, 5e-324),
)
RAW = (
    *("NaN", "Infinity", "-Infinity", "1e999", "1" * 5000, "[" * 20_000, '{"a":' * 5000, "\ufeff{}", '"\\ud800"'),
    *("{,}", "", "\u0000"),
)
TYPES = (
    *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "image/png", ""),
    *("application/json; charset=latin-1", "application/vnd.api+json"),
)
NAMES = ("tools", "n", "passages", "x", "parley", "index", "stop")
FIELDS = ("Authorization", "Origin", "Accept", "Cookie", "X-" + "a" * 20, "Range")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
PATHS = ("/", "/v1", "/v1/", "/v1/models/%2e%2e", "/v1/models/" + "x" * 2000, "/v1//chat/completions", "/%00", "/docs")
MAX_DEPTH = 6


@dataclass
class Message:
    """A request. `leave`: the client goes after so many bytes of the body, without waiting for the answer."""

    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    leave: int = 0

    def __str__(self) -> str:
        return f"{self.method} {self.path[:80]} {self.headers} {self.body[:300]!r}"


class Messages:
    """An endless supply. The same schema and seed give the same."""

    def __init__(self, schema: dict[str, Any], seed: int) -> None:
        self._rng = random.Random(seed)  # noqa: S311  # no secret
        self._schemas = schema.get("components", {}).get("schemas", {})
        self._operations = [
            (method.upper(), path, operation)
            for path, operations in sorted(schema["paths"].items())
            for method, operation in sorted(operations.items())
        ]

    def next(self) -> Message:
        """The next request."""
        rng = self._rng
        method, path, operation = rng.choice(self._operations)
        path = path.replace("{model}", rng.choice(["echo", "hash", "a/b", "%F0%9F%98%80", "x" * 300]))
        message = Message(method, path, headers={})
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        if content:
            value = self._value(content["schema"])
            for _ in range(rng.choice([0, 0, 1, 1, 2, 4])):
                value = self._damaged(value)
            message.body = self._bytes(value)
            message.headers["Content-Type"] = "application/json"
        if rng.random() < 0.1:
            self._disguise(message)
        if message.body and rng.random() < 0.01:
            message.leave = rng.randrange(1, len(message.body) + 1)
        return message

    def _value(self, schema: Any, depth: int = 0) -> Any:
        """A value that the schema allows, or nearly."""
        rng = self._rng
        if "$ref" in schema:
            return self._value(self._schemas[schema["$ref"].rsplit("/", 1)[1]], depth)
        if "anyOf" in schema:
            return self._value(rng.choice(schema["anyOf"]), depth)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return rng.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return self._object(schema, depth)
        if kind == "array":
            least = schema.get("minItems", 0)
            most = min(schema.get("maxItems", 4), least + 3)
            return [self._value(schema.get("items", {}), depth + 1) for _ in range(rng.randint(least, most))]
        if kind == "string":
            return rng.choice(TEXTS) if rng.random() < 0.7 else self._text()
        if kind in ("integer", "number"):
            return self._number(schema, kind)
        return {"boolean": rng.random() < 0.5, "null": None}.get(str(kind), self._anything(depth))

    def _object(self, schema: Any, depth: int) -> dict[str, Any]:
        rng, required = self._rng, schema.get("required", ())
        names = [name for name in schema.get("properties", {}) if name in required or rng.random() < 0.25]
        return {name: self._value(schema["properties"][name], depth + 1) for name in names}

    def _number(self, schema: Any, kind: str) -> Any:
        rng = self._rng
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 60))
        if rng.random() < 0.2:
            return rng.choice(NUMBERS)
        high = min(high, low + 60)  # answers should be short
        return rng.randint(int(low), int(max(high, low))) if kind == "integer" else rng.uniform(low, high)

    def _anything(self, depth: int) -> Any:
        rng = self._rng
        kind = rng.randrange(7 if depth < MAX_DEPTH else 5)
        if kind == 5:
            return [self._anything(depth + 1) for _ in range(rng.randrange(4))]
        if kind == 6:
            return {rng.choice(TEXTS[:8]): self._anything(depth + 1) for _ in range(rng.randrange(4))}
        return (rng.choice(TEXTS), rng.choice(NUMBERS), None, rng.random() < 0.5, self._text())[kind]

    def _text(self) -> str:
        rng = self._rng
        alphabet = rng.choice([string.printable, "αβγ äöü 漢字", "".join(map(chr, range(1, 0x300)))])
        return "".join(rng.choices(alphabet, k=rng.randrange(40)))

    def _damaged(self, value: Any) -> Any:
        """A value with one thing in it changed."""
        rng = self._rng
        if isinstance(value, dict) and value and rng.random() < 0.8:
            name = rng.choice(list(value))
            way = rng.randrange(5)
            if way == 0:
                return {other: each for other, each in value.items() if other != name}
            if way == 1:
                return value | {rng.choice(NAMES): self._anything(0)}
            return value | {name: self._damaged(value[name])}
        if isinstance(value, list) and value and rng.random() < 0.8:
            place = rng.randrange(len(value))
            if rng.random() < 0.2:
                return value * rng.choice([0, 2, 50])
            return [*value[:place], self._damaged(value[place]), *value[place + 1 :]]
        return self._anything(0)

    def _bytes(self, value: Any) -> bytes:
        rng = self._rng
        data = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
        luck = rng.random()
        if luck < 0.02:
            return rng.choice(RAW).encode("utf-8")
        if luck < 0.04:
            return data.replace(b'"', rng.choice([b"", b"'", b'""']), 1)
        if luck < 0.06 and data:
            place = rng.randrange(len(data))
            return data[:place] + rng.choice([b"", b"\xff", b"\x00", data[:20]]) + data[place + rng.randrange(3) :]
        if luck < 0.07:
            return data[: rng.randrange(len(data) + 1)]
        if luck < 0.071:
            return b" " * 2**20 + data  # above the usual limit
        return data

    def _disguise(self, message: Message) -> None:
        """Another method, path, content type or header."""
        rng = self._rng
        way = rng.randrange(5)
        if way == 0:
            message.method = rng.choice(METHODS)
        elif way == 1:
            message.path = rng.choice(PATHS)
        elif way == 2:
            message.headers["Content-Type"] = rng.choice(TYPES)
        elif way == 3:
            value = "".join(rng.choices(string.ascii_letters + " ;=,/*\u00e4", k=rng.randrange(60))).strip()
            message.headers[rng.choice(FIELDS)] = value
        else:
            message.path += "?" + "".join(rng.choices("ab=&%/?+", k=20))

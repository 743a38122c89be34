"""What is counted, as text that Prometheus reads. Sums over all users: nothing of any one of them."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
FIRST_TOKEN = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
REQUEST = (0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class Histogram:
    """How many values were at most as large as each bound, in seconds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """In Prometheus's form: cumulative, with the sum and the number of all."""
        total = 0
        comma = "," if labels else ""
        for bound, count in zip([*map(str, self._bounds), "+Inf"], self._counts, strict=True):
            total += count
            yield f'{name}_bucket{{{labels}{comma}le="{bound}"}} {total}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self._sum:.6f}"
        yield f"{name}_count{braces} {total}"


class Metrics:
    """All counters of a server. Several threads may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[str] = Counter({"prompt": 0, "completion": 0})
        self._rejected: Counter[str] = Counter()
        self._first_token = Histogram(FIRST_TOKEN)
        self._seconds: dict[str, Histogram] = {}

    def request(self, route: str, status: int, seconds: float) -> None:
        """One that was answered. `route` is a pattern, not what the client sent, so that there are few."""
        with self._lock:
            self._requests[route, status] += 1
            self._seconds.setdefault(route, Histogram(REQUEST)).observe(seconds)

    def rejected(self, reason: str) -> None:
        """One that was turned away: by its error's code."""
        with self._lock:
            self._rejected[reason] += 1

    def answer(self, prompt_tokens: int, completion_tokens: int, first_token: float | None) -> None:
        """Tokens of one answer, and the seconds until the first piece of it."""
        with self._lock:
            self._tokens["prompt"] += prompt_tokens
            self._tokens["completion"] += completion_tokens
            if first_token is not None:
                self._first_token.observe(first_token)

    def text(self, gauges: Mapping[str, Mapping[str, int]]) -> str:
        """Everything. `gauges`: name -> lane -> how many there are just now."""
        with self._lock:
            return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
        yield from _head("parley_requests_total", "counter", "Requests that were answered.")
        for (route, status), count in sorted(self._requests.items()):
            yield f'parley_requests_total{{route="{route}",status="{status}"}} {count}'
        yield from _head("parley_rejected_total", "counter", "Requests that were turned away, by reason.")
        for reason, count in sorted(self._rejected.items()):
            yield f'parley_rejected_total{{reason="{reason}"}} {count}'
        yield from _head("parley_tokens_total", "counter", "Tokens read and written.")
        for kind, count in sorted(self._tokens.items()):
            yield f'parley_tokens_total{{kind="{kind}"}} {count}'
        for name, values in gauges.items():
            yield from _head(f"parley_{name}", "gauge", f"Requests {name}, just now.")
            for lane, count in values.items():
                yield f'parley_{name}{{lane="{lane}"}} {count}'
        name = "parley_time_to_first_token_seconds"
        yield from _head(name, "histogram", "From the request to the first piece of its answer.")
        yield from self._first_token.lines(name)
        name = "parley_request_seconds"
        yield from _head(name, "histogram", "From the request to the end of its answer.")
        for route, histogram in sorted(self._seconds.items()):
            yield from histogram.lines(name, f'route="{route}"')


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"

"""`metrics.jsonl`: one line for everything a run logs, which the loss curve is drawn from.

    {"step": 20, "time": 1790000000.123, "loss": 1.91, "learning_rate": 2e-05, "grad_norm": 0.8, "epoch": 0.4}

`time` is seconds since 1970. A number that JSON lacks is null, and named: "non_finite": {"loss": "nan"}.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.files import append_json_line, atomic_write
from training.tracking.redaction import redacted

METRICS = "metrics.jsonl"


class MetricsFile:
    """The lines at `path`, in the order in which they came; one process writes them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, step: int, values: Mapping[str, Any]) -> None:
        """Add what was logged at a step, and sync it to disk."""
        line: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
        non_finite = {}
        for name, value in values.items():
            plain = value.item() if hasattr(value, "item") else value  # of NumPy, or a tensor of one element
            if isinstance(plain, float) and not math.isfinite(plain):
                non_finite[name], plain = str(plain), None
            line[name] = redacted(plain, name)
        append_json_line(self.path, line | ({"non_finite": non_finite} if non_finite else {}))

    def read(self) -> list[dict[str, Any]]:
        """All whole lines. What a killed writer left half-written is not among them."""
        if not self.path.exists():
            return []
        return [line for text in self.path.read_bytes().splitlines() if (line := _parsed(text)) is not None]

    def cut_after(self, step: int) -> int:
        """Take away what was logged after `step`, which a resumed run will log again; return how many lines that was.

        A kill leaves the old file or the new one.
        """
        if not self.path.exists():
            return 0
        old = self.path.read_bytes().splitlines()
        kept = [text for text in old if (line := _parsed(text)) is not None and line["step"] <= step]
        if len(kept) < len(old):
            with atomic_write(self.path, "wb") as file:
                file.writelines(text + b"\n" for text in kept)
        return len(old) - len(kept)


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # a damaged line, however it is damaged
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None

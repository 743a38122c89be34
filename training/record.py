"""run.json: what a run was told, what it ran on, and what came of it."""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common.files import read_json, write_json
from training.tracking.redaction import redacted

FILE = "run.json"
PACKAGES = ("parley", "torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "safetensors", "numpy")


class Record:
    """The run's own account, written anew at each change."""

    def __init__(self, run: Path, config: Any) -> None:
        self._path = run / FILE
        earlier = read_json(self._path) if self._path.is_file() else {}
        self.content: dict[str, Any] = {
            "status": "running",
            "config": redacted(plain(config)),
            "versions": versions(),
            "started": [*earlier.get("started", []), time.strftime("%Y-%m-%dT%H:%M:%S%z")],
        }

    def write(self, **more: Any) -> None:
        """Add `more` and write."""
        self.content |= more
        write_json(self._path, self.content)


def plain(value: Any) -> Any:
    """A configuration as JSON has it."""
    if dataclasses.is_dataclass(value):
        return {each.name: plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value


def versions() -> dict[str, str]:
    """What the run ran on."""
    found = {"python": sys.version.split()[0], "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found

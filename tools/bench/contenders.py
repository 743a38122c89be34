"""Contenders of a benchmark, each in a process of its own, so that peak memory is its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def measured(module: str, name: str, rows: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """What `python -m module --contender name rows overrides` prints last, read as JSON. Raises ValueError where it
    fails."""
    command = [sys.executable, "-m", module, "--contender", name, str(rows), *overrides]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PARLEY_DEBUG": "1"})
    if done.returncode:
        raise ValueError(f"{name} failed: {done.stderr.strip().splitlines()[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found

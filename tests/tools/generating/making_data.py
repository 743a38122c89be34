"""For tests: commands that make data, run in this process or in one of their own, and files of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from fake_service import FakeService

ROOT = Path(__file__).parents[3]


def run(command: click.Command, *arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(command, list(arguments))
    assert done.exit_code == code, done.output
    return done.output


def write(path: str, value: Any) -> Path:
    file = Path(path)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in value]
    file.write_text(json.dumps(value) if file.suffix == ".json" else "".join(lines))
    return file


def rows_of(path: str | Path) -> list[Any]:
    text = Path(path).read_text()
    return json.loads(text) if Path(path).suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def by_length(messages: list[dict[str, str]]) -> str:
    """A judge whose score is the number of words of the response, up to 5."""
    text = messages[-1]["content"]
    response = text.rpartition("<response>\n")[2].partition("\n</response>")[0]
    return f"Score: {min(5, len(response.split()))}/5"


def start(script: str, *arguments: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "tools" / f"{script}.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ))


def wait_for(service: FakeService, num: int) -> None:
    limit = time.monotonic() + 60
    while len(service.bodies) < num:
        assert time.monotonic() < limit
        time.sleep(0.01)

"""One holder at a time: others are told who it is, or wait."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from common.locks import exclusive


def test_another_is_told_who_holds_it(tmp_path: Path) -> None:
    told = rf"another process \(pid {os.getpid()}\) is at work; wait until it has ended"
    with exclusive(tmp_path / "lock", "at work"), pytest.raises(ValueError, match=told):
        exclusive(tmp_path / "lock", "at work").__enter__()
    with exclusive(tmp_path / "lock", "at work"):
        pass


def test_another_can_wait(tmp_path: Path) -> None:
    order: list[str] = []

    def second() -> None:
        with exclusive(tmp_path / "lock", "at work", wait=True):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive(tmp_path / "lock", "at work"):
        thread.start()
        time.sleep(0.3)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]

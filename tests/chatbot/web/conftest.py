"""One browser and one server for all tests of the page; a reader who starts anew for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from page_browser import Reader, chromium
from page_fakes import FakeApi, serving


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="session")
def served() -> Iterator[tuple[FakeApi, str]]:
    pytest.importorskip("uvicorn", reason="needs the `server` extra")
    api = FakeApi()
    with serving(api.app()) as url:
        yield api, url


@pytest.fixture
def reader(driver: Any, served: tuple[FakeApi, str]) -> Reader:
    """Someone who has just opened the page for the first time."""
    api, url = served
    api.reset()
    return Reader(driver, url, api).open()

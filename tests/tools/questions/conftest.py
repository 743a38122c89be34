"""One index for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from qa_documents import build

from tools.questions.library import Library


@pytest.fixture(scope="session")
def towns_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of twelve short documents, with the `hash` encoder."""
    return build(tmp_path_factory.mktemp("towns"))


@pytest.fixture(scope="session")
def library(towns_index: Path) -> Library:
    """The same, opened."""
    return Library.open(towns_index)

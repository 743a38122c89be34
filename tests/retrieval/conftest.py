"""A small folder of documents, and an index of it made with the hash encoder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retrieval.writing.building import build_index

SUBJECTS = ("bridge", "tower", "river", "harbour", "castle", "garden", "station", "museum", "market", "theatre")


def write_documents(folder: Path, num_documents: int) -> Path:
    """Files doc00.txt ... with three short paragraphs each."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(num_documents):
        subject = SUBJECTS[i % len(SUBJECTS)]
        parts = (f"The {subject} number{i} was {verb} in {1800 + i}." for verb in ("planned", "built", "opened"))
        (folder / f"doc{i:02}.txt").write_text("\n\n".join(parts) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_documents() -> Callable[[Path, int], Path]:
    """(folder, number of documents) -> the folder, filled."""
    return write_documents


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty documents."""
    return write_documents(tmp_path_factory.mktemp("corpus"), 20)


@pytest.fixture
def index(corpus: Path, tmp_path: Path) -> Path:
    """An index of `corpus` that a test may damage."""
    build_index([corpus], tmp_path / "index", "hash")
    return tmp_path / "index"

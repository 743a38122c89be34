"""For tests: a small library about invented towns, an index of it, and questions that it answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retrieval.build import build_index
from retrieval.types import Passage
from tools.questions.library import Library
from tools.questions.types import Question

TOWNS = (
    *("Avonlea", "Brightwater", "Corvidale", "Dunmere", "Elmstead", "Farrowby"),
    *("Glenholt", "Harrowgate", "Ivybridge", "Kestrelton", "Larkspur", "Mossvale"),
)


def town_text(number: int) -> str:
    name = TOWNS[number]
    return (
        f"{name} lies on a river in the north. The stone bridge of {name} was opened in {1801 + 7 * number}. The "
        f"market is held on the square behind the tower, and {340 + number} people sell cheese there every week."
    )


def build(folder: Path) -> Path:
    documents = folder / "towns"
    documents.mkdir()
    for number, name in enumerate(TOWNS):
        (documents / f"{name.lower()}.md").write_text(f"# {name}\n\n{town_text(number)}\n")
    build_index([documents], folder / "index", "hash")
    return folder / "index"


def asked() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, name in enumerate(TOWNS):
        rows.append({"question": f"When was the stone bridge of {name} opened?", "answer": str(1801 + 7 * number)})
        rows.append(
            {"question": f"How many people sell cheese at the market of {name}?", "answers": [f"{340 + number}"]}
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def passages(library: Library) -> list[Passage]:
    return [passage for _, passage in library.retriever.current().store.live_passages()]


def question(text: str, answer: str, passage: Passage) -> Question:
    return Question(text, "given", (answer,), passage)

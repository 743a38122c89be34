"""What is learned and what is asked: nothing is in both, all is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot.prompting import with_passages
from retrieval.build import build_index
from retrieval.index.store import Store
from retrieval.types import Passage
from tools.improving.rows import TEST, TRAIN, held_out, make_rows
from training.data.mixture import Source
from training.data.reading import read_rows
from training.data.rows import ChatRow, PreferenceRow

BRIDGE = "The harbour bridge was opened in 1932. It carries eight lanes of traffic."
MILL = "The mill grinds corn on Fridays. It stands by the river."


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "bridge.md").write_text(f"# Bridge\n\n{BRIDGE}\n")
    (folder / "mill.md").write_text(f"# Mill\n\n{MILL}\n")
    build_index([folder], folder / "index", "hash")
    return folder / "index"


def passages(index: Path) -> dict[str, Passage]:
    return {passage.title: passage for _, passage in Store(index).live_passages()}


def chat(question: str, passage: Passage, answer: str = "Yes [1].") -> dict[str, Any]:
    asked = {"role": "user", "content": with_passages(question, [passage])}
    return {"messages": [asked, {"role": "assistant", "content": answer}], "about": {"kind": "given"}}


def rated(question: str, passage: Passage, answer: str, edit: str) -> dict[str, Any]:
    """A line of a feedback log."""
    messages = [{"role": "user", "content": question}]
    return {
        "rating": "edit",
        "messages": messages,
        "prompt_messages": [{"role": "user", "content": with_passages(question, [passage])}],
        "prompt": "...",
        "answer": answer,
        "edit": edit,
        "replaced": None,
        "finish_reason": "stop",
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def made(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_questions_and_passages_that_are_learned_are_not_asked(tmp_path: Path, index: Path) -> None:
    found = passages(index)
    bridge, mill = found["Bridge"], found["Mill"]
    train = [chat("What does the mill grind?", mill)]
    test = [
        {"question": "When was the bridge opened?", "answers": ["1932"], "passage": bridge.id},
        {"question": "On which day does it grind?", "answers": ["Fridays"], "passage": mill.id},
        {"question": "what does a mill grind", "answers": ["corn"]},
        {"question": "Who is king?", "answers": []},
    ]
    write(tmp_path / "q" / TRAIN, train)
    write(tmp_path / "q" / TEST, test)
    (tmp_path / "out").mkdir()
    told = make_rows(tmp_path / "out", "sft", [], tmp_path / "q", [str(index)])
    assert [row["question"] for row in made(tmp_path / "out", TEST)] == ["When was the bridge opened?", "Who is king?"]
    assert told["test"] == {
        "rows": 2,
        "left_out": {
            "its passage is in the training rows": 1,
            "the question is in the training rows": 1,
        },
    }
    # feedback shows its passages too
    log = write(tmp_path / "log.jsonl", [rated("How many lanes?", bridge, "Nine.", "Eight [1].")])
    told = make_rows(tmp_path / "out", "sft", [log], tmp_path / "q", [str(index)])
    assert [row["question"] for row in made(tmp_path / "out", TEST)] == ["Who is king?"]
    assert (told["train_rows"], told["feedback"]["rows"], told["questions"]["rows"]) == (2, 1, 1)
    replies = [row.conversation.last.content for _, row in read_rows(Source(str(tmp_path / "out" / TRAIN)), (ChatRow,))]
    assert replies == ["Eight [1].", "Yes [1]."]


def test_preferences_are_of_feedback_alone(tmp_path: Path, index: Path) -> None:
    bridge = passages(index)["Bridge"]
    write(tmp_path / "q" / TRAIN, [chat("What?", bridge)])
    write(tmp_path / "q" / TEST, [{"question": "Who is king?"}])
    log = write(tmp_path / "log.jsonl", [rated("How many lanes?", bridge, "Nine.", "Eight [1].")])
    (tmp_path / "out").mkdir()
    make_rows(tmp_path / "out", "dpo", [log], tmp_path / "q", [str(index)])
    (row,) = (row for _, row in read_rows(Source(str(tmp_path / "out" / TRAIN)), (PreferenceRow,)))
    assert (row.chosen, row.rejected) == ("Eight [1].", "Nine.")


@pytest.mark.parametrize(
    ("train", "test", "words"),
    [
        ([], [{"question": "Who is king?"}], "nothing to learn from"),
        (["king"], [{"question": "Who is king?"}], "no question is left to test with"),
        (["king"], [{"question": 3}], "test.jsonl:1"),
    ],
)
def test_nothing_left_is_said(tmp_path: Path, index: Path, train: list[str], test: list[Any], words: str) -> None:
    if train:
        write(tmp_path / "q" / TRAIN, [chat("Who is king?", passages(index)["Mill"])])
    write(tmp_path / "q" / TEST, test)
    with pytest.raises(ValueError, match=words):
        make_rows(tmp_path, "sft", [], tmp_path / "q", [str(index)])


QUESTION = st.text(alphabet="bcd ?", min_size=1, max_size=12)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(QUESTION, max_size=6), st.lists(QUESTION, max_size=6))
def test_each_question_is_kept_or_counted(asked: list[str], shown: list[str]) -> None:
    kept, left_out = held_out([{"question": text} for text in asked], shown, {})
    assert len(kept) + left_out.total() == len(asked)
    assert not {" ".join(row["question"].split()) for row in kept} & {
        " ".join(text.split()) for text in shown if text.strip(" ?")
    }

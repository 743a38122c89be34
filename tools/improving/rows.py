"""Feedback and questions -> what is learned, and what is asked afterwards, with nothing in both."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from retrieval.index.manifest import MANIFEST
from retrieval.index.store import Store
from tools.evaluation.asked import read_asked
from tools.evaluation.rag import normalized
from tools.feedback_data.exporting import FORMATS, exported, gathered
from tools.feedback_data.masking import Masker
from tools.feedback_data.reading import read_entries
from tools.generating.row_formats import written
from tools.generating.writing import write_rows
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import ChatRow

KINDS = {"sft": "sft", "dpo": "preferences"}  # method -> what is exported of feedback
TRAIN, TEST = "train.jsonl", "test.jsonl"  # in a folder of questions, and in the folder that is made

Object = Mapping[str, Any]


def make_rows(
    folder: Path,
    method: str,
    feedback: Sequence[Path],
    questions: Path,
    indexes: Sequence[str],
    mask: Sequence[str] = (),
    reviewed_only: bool = False,
) -> dict[str, Any]:
    """Write TRAIN and TEST into `folder`, and return counts and reasons.

    Learned are rows of the feedback, and for SFT those of TRAIN in `questions`. Asked is what TEST there holds, but for
    questions that stand in a row to learn from, or whose passage, of one of `indexes`, does. Raises ValueError where
    nothing is left of either.
    """
    told: dict[str, Any] = {"feedback": {"rows": 0}, "questions": {"rows": 0}}
    rows: list[Object] = []
    if feedback:
        rows, told["feedback"] = _of_feedback(method, feedback, mask, reviewed_only)
    if method == "sft" and (questions / TRAIN).is_file():
        of_questions = list(_of_questions(questions / TRAIN))
        told["questions"] = {"rows": len(of_questions)}
        rows = [*rows, *of_questions]
    if not rows:
        reasons = "; ".join(f"{num:,} x {reason}" for reason, num in told["feedback"].get("left_out", {}).items())
        raise ValueError(f"there is nothing to learn from for method={method} ({reasons or 'no rows'})")
    asked = [each.row for each in read_asked(questions / TEST)]
    passages = texts_of({row["passage"] for row in asked if row.get("passage")}, indexes)
    kept, left_out = held_out(asked, [_shown(row) for row in rows], passages)
    if not kept:
        reasons = "; ".join(f"{num:,} x {reason}" for reason, num in left_out.items())
        raise ValueError(f"{questions / TEST}: no question is left to test with ({reasons}); make more, or other ones")
    told["train_rows"] = write_rows(folder / TRAIN, rows)
    told["test"] = {"rows": write_rows(folder / TEST, kept), "left_out": dict(left_out)}
    return told


def _of_feedback(
    method: str, feedback: Sequence[Path], mask: Sequence[str], reviewed_only: bool
) -> tuple[list[Object], dict[str, Any]]:
    log, report, masker = Report(location=", ".join(map(str, feedback))), Report(), Masker(list(mask))
    asked = gathered(read_entries(feedback, log, reviewed_only), masker, log)
    rows: list[Object] = list(exported(KINDS[method], asked, report))
    left_out = Counter(log.skipped()) + Counter(report.skipped())
    figures = {"lines": log.num_read, "rows": len(rows), "left_out": dict(left_out), "masked": dict(masker.counts)}
    return rows, figures


def _of_questions(file: Path) -> Iterator[Object]:
    for _, row in read_rows(Source(str(file)), (ChatRow,)):
        yield from written(row, FORMATS["sft"])


def texts_of(ids: Collection[str], indexes: Sequence[str]) -> dict[str, str]:
    """The texts of passages by their ids, as far as the indexes on this machine hold them."""
    local = [each for each in indexes if ids and (Path(each) / MANIFEST).is_file()]
    stores = (Store(Path(each)).live_passages() for each in local)
    return {passage.id: passage.text for found in stores for _, passage in found if passage.id in ids}


def held_out(
    questions: Iterable[Object], shown: Sequence[str], passages: Mapping[str, str]
) -> tuple[list[Object], Counter[str]]:
    """The questions that stand in none of the texts `shown`, nor does their passage (an id, of which `passages` has the
    text); and how many others there are, by reason. Compared are normalized words."""
    kept, left_out = [], Counter[str]()
    texts = [f" {normalized(text)} " for text in shown]
    for row in questions:
        if _occurs(row["question"], texts):
            left_out["the question is in the training rows"] += 1
        elif _occurs(passages.get(row.get("passage", ""), ""), texts):
            left_out["its passage is in the training rows"] += 1
        else:
            kept.append(row)
    return kept, left_out


def _occurs(text: str, texts: Sequence[str]) -> bool:
    wanted = f" {normalized(text)} "
    return bool(wanted.strip()) and any(wanted in each for each in texts)


def _shown(row: Object) -> str:
    """All texts of a training row, of whatever format."""
    return " ".join(_texts(row))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_texts, value.values()))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_texts, value))

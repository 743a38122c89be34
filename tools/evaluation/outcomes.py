"""Confidences and whether they were right, from a file: of predictions, or of the scores that `reward` wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tools.evaluation.rewards import Agreement
from training.data.decoding import read_raw

_OUTCOMES = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False}


def read_outcomes(path: Path, confidence: str, correct: str) -> tuple[list[float], list[bool]]:
    """(confidences, outcomes) of a file's rows by their columns; of rows with `scores` and `given` those of the pairs
    in them. Raises ValueError, which names the row, for a confidence that is not from 0 to 1, an outcome that is not
    true or false, and a file with none."""
    sure: list[float] = []
    right: list[bool] = []
    agreement = Agreement()
    for place, row, problem in read_raw(path, str(path)):
        if problem or not isinstance(row, dict):
            raise ValueError(f"{place}: {problem or 'not an object with columns'}")
        if confidence not in row and "scores" in row:
            _add_scores(agreement, row, place)
        elif confidence not in row or correct not in row:
            raise ValueError(
                f"{place}: no columns '{confidence}' and '{correct}', only {', '.join(map(str, row)) or 'none'}; name "
                "them with --confidence and --correct"
            )
        else:
            sure.append(_confidence(row[confidence], place))
            right.append(_outcome(row[correct], place))
    of_pairs = agreement.confidence()
    sure, right = sure + of_pairs[0], right + of_pairs[1]
    if not sure:
        raise ValueError(f"{path}: no confidence with an outcome; scores need `given` scores beside them")
    return sure, right


def _add_scores(agreement: Agreement, row: dict[str, Any], place: str) -> None:
    scores, given = row["scores"], row.get("given")
    lists = isinstance(scores, list) and (given is None or (isinstance(given, list) and len(given) == len(scores)))
    if not lists or not all(isinstance(each, int | float) for each in scores):
        raise ValueError(f"{place}: `scores` must be numbers, with as many in `given`")
    agreement.add(scores, given)


def _confidence(value: Any, place: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = -1.0
    if isinstance(value, bool) or not 0 <= number <= 1:
        raise ValueError(f"{place}: the confidence is {value!r}; it must be a number from 0 to 1")
    return number


def _outcome(value: Any, place: str) -> bool:
    found = _OUTCOMES.get(str(value).lower())
    if found is None:
        raise ValueError(f"{place}: the outcome is {value!r}; it must be true or false, or 1 or 0")
    return found

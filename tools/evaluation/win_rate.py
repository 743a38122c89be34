"""How often answers are better than others, from judgements: rates, their intervals, and the rate at equal lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tools.evaluation.judging import LOSS, TIE, TOO_LONG, UNPARSED, WIN
from tools.evaluation.statistics import bootstrap_ratio, length_controlled, length_controlled_interval, wilson

_VALUE = {WIN: 1.0, TIE: 0.5, LOSS: 0.0}


def win_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the lines of a file of judgements:

    `wins`, `ties`, `losses`, `unparsed`, `too_long`: rows; the last two are part of no rate.
    `win_rate`: (wins + ties / 2) / (wins + ties + losses), with a bootstrap interval over rows.
    `win_rate_without_ties`: wins / (wins + losses), with a Wilson interval; None where all are ties.
    `length_controlled_win_rate`: `win_rate` as it would be at equal lengths (Dubois et al. 2024), bootstrap interval.
    `mean_length`, `mean_length_theirs`: characters of an answer.
    Of a chat model as judge also `contradictions`, the ties in which the order decided, and `first_preferred`, the
    share of verdicts for what was shown first among those that prefer one (0.5 for a judge whom order does not move).

    Raises ValueError where nothing was judged.
    """
    counts = Counter(record["outcome"] for record in records)
    judged = [record for record in records if record["outcome"] in _VALUE]
    told: dict[str, Any] = {
        "rows": len(records),
        "judged": len(judged),
        "wins": counts[WIN],
        "ties": counts[TIE],
        "losses": counts[LOSS],
        "unparsed": counts[UNPARSED],
        "too_long": counts[TOO_LONG],
    }
    if not judged:
        raise ValueError(
            f"of {len(records):,} rows none was judged ({counts[UNPARSED]:,} replies without a verdict, "
            f"{counts[TOO_LONG]:,} too long for the judge); choose another judge"
        )
    values = np.array([_VALUE[record["outcome"]] for record in judged])
    ours, theirs = (np.array([len(record[side]) for record in judged], np.float64) for side in ("ours", "theirs"))
    decided = counts[WIN] + counts[LOSS]
    told |= {
        "win_rate": float(values.mean()),
        "win_rate_ci": bootstrap_ratio(values, np.ones_like(values)),
        "win_rate_without_ties": counts[WIN] / decided if decided else None,
        "win_rate_without_ties_ci": wilson(counts[WIN], decided),
        "length_controlled_win_rate": length_controlled(values, ours - theirs),
        "length_controlled_win_rate_ci": length_controlled_interval(values, ours - theirs),
        "mean_length": float(ours.mean()),
        "mean_length_theirs": float(theirs.mean()),
    }
    verdicts = Counter(each for record in records for each in record.get("verdicts", ()))
    if preferences := verdicts["A"] + verdicts["B"]:
        told["contradictions"] = sum(record["verdicts"] in (["A", "A"], ["B", "B"]) for record in judged)
        told["first_preferred"] = verdicts["A"] / preferences
    return told

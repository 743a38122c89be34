"""Two other ways to say what a verdict says: OpenChatKit's five levels, and the MLCommons hazard codes.

Both are pure functions of a Verdict, whatever classifier it came from.

Levels. OpenChatKit's moderation model (GPT-JT-Moderation-6B) learnt the safety labels of ProsocialDialog (Kim et al.
2022, https://arxiv.org/abs/2205.12688, section 3.3), where three annotators vote: the more of them see a problem, the
further the label goes from "casual" over "possibly", "probably" and "needs caution" to "needs intervention". That is
the order here, and the level is the verdict's highest score rounded to the nearest quarter.

Hazards. The codes are those of Llama Guard 3 (https://huggingface.co/meta-llama/Llama-Guard-3-8B): S1 to S13 follow
the MLCommons taxonomy (AILuminate, https://arxiv.org/abs/2404.12241), S14 is its own. The mapping from labels is ours,
by the definitions of both; a code that no label says anything about is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from moderation.labels import is_benign
from moderation.types import Verdict

# In order of severity, a quarter apart.
LEVELS = ("casual", "possibly needs caution", "probably needs caution", "needs caution", "needs intervention")

HAZARDS: Mapping[str, str] = {
    "S1": "violent crimes",
    "S2": "non-violent crimes",
    "S3": "sex-related crimes",
    "S4": "child sexual exploitation",
    "S5": "defamation",
    "S6": "specialized advice",
    "S7": "privacy",
    "S8": "intellectual property",
    "S9": "indiscriminate weapons",
    "S10": "hate",
    "S11": "suicide and self-harm",
    "S12": "sexual content",
    "S13": "elections",
    "S14": "code interpreter abuse",
}

# hazard -> the labels that speak for it. What speaks for none: harassment (S10 is about groups of people, not a single
# one), violence (S1 is a crime that is encouraged, not one that is described), and illicit/violent for S9, since it
# does not tell a bomb from a knife. A verdict's own score for a code, from a guard that knows the codes, goes first.
HAZARD_LABELS: Mapping[str, tuple[str, ...]] = {
    "S1": ("illicit/violent", "harassment/threatening", "hate/threatening"),
    "S2": ("illicit",),
    "S4": ("sexual/minors",),
    "S7": ("pii",),
    "S8": ("copyright violation",),
    "S10": ("hate", "hate/threatening"),
    "S11": ("self-harm", "self-harm/intent", "self-harm/instructions"),
    "S12": ("sexual",),
}


def level(verdict: Verdict) -> str | None:
    """One of LEVELS; None where nothing is known about the text, because the classifier failed or cannot judge it."""
    known = [score for label, score in verdict.scores.items() if score is not None and not is_benign(label)]
    if verdict.error is not None or not known:
        return None
    return LEVELS[math.floor(max(known) * 4 + 0.5)]


def hazards(verdict: Verdict) -> dict[str, float | None]:
    """Hazard code -> probability in [0, 1], the highest of its labels'; None where none of them was judged."""
    return {code: _hazard(verdict.scores, code) for code in HAZARDS}


def _hazard(scores: Mapping[str, float | None], code: str) -> float | None:
    if (own := scores.get(code)) is not None:
        return own
    known = [score for label in HAZARD_LABELS.get(code, ()) if (score := scores.get(label)) is not None]
    return max(known, default=None)

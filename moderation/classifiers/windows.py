"""A text that a classifier cannot take as it is: too long, in overlapping pieces, of which the worst score counts; or
not quite a text, half of a surrogate pair standing alone in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from moderation.types import Scores


def encodable(text: str) -> str:
    """`text` with '?' for what is no character (half of a surrogate pair), on which tokenizers and services fail."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def pieces(text: str, fits: Callable[[str], bool], overlap: int) -> list[str]:
    """`text` in pieces that `fits` accepts, in order: halved, with `overlap` characters in common, until they do.

    Raises ValueError where even a piece of twice the overlap does not fit.
    """
    if fits(text):
        return [text]
    if len(text) <= 2 * overlap:
        raise ValueError(f"a piece of {len(text)} characters is still too long for the classifier")
    middle = len(text) // 2
    halves = text[: middle + overlap // 2], text[middle - overlap // 2 :]
    return [piece for half in halves for piece in pieces(half, fits, overlap)]


def worst(scores: Iterable[Scores]) -> Scores:
    """Label by label the highest score of a text's pieces; None where no piece was judged. NaN stays NaN."""
    together: Scores = {}
    for of_piece in scores:
        for label, score in of_piece.items():
            known = together.setdefault(label, score)
            if known is None or (score is not None and (math.isnan(score) or score > known)):
                together[label] = score
    return together

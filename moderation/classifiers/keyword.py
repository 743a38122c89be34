"""KeywordClassifier: words and phrases, a fake for tests and dry runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from moderation.types import Scores


class KeywordClassifier:
    """1.0 for a label where one of its words stands in the text, whole and in whatever case; 0.0 elsewhere.

    `words` maps a label to its words or phrases; ValueError where these are not a list, or empty.
    """

    def __init__(self, words: Mapping[str, Sequence[str]]) -> None:
        self._patterns: dict[str, re.Pattern[str]] = {}
        for label, listed in words.items():
            if isinstance(listed, str) or not listed or not all(word.strip() for word in listed):
                raise ValueError(
                    f"the words of label '{label}' are {listed!r}; give a list of words, none of them empty"
                )
            either = "|".join(re.escape(word) for word in listed)
            self._patterns[label] = re.compile(rf"(?<!\w)(?:{either})(?!\w)", re.IGNORECASE)

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._patterns)

    def scores(self, texts: Sequence[str]) -> list[Scores]:
        """For each text: label -> 1.0 or 0.0."""
        return [
            {label: float(bool(pattern.search(text))) for label, pattern in self._patterns.items()} for text in texts
        ]

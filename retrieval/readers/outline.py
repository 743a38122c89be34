"""The headings that the current line of a document stands under."""

from __future__ import annotations


class Outline:
    """A stack of headings, deepest last: entering one leaves those of its level and below."""

    def __init__(self) -> None:
        self._headings: list[tuple[int, str]] = []

    def enter(self, level: int, heading: str) -> None:
        """Start a section; level 1 is the outermost. An empty heading only ends the sections it would end."""
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        if heading:
            self._headings.append((level, heading))

    @property
    def path(self) -> str:
        """'Setup > Windows', or '' above the first heading."""
        return " > ".join(heading for _, heading in self._headings)

"""The headings that the current line of a document stands under."""

from __future__ import annotations

MAX_HEADING_CHARS = 200  # what stands above every passage of a section must be short


class Outline:
    """A stack of headings, deepest last: entering one leaves those of its level and below."""

    def __init__(self) -> None:
        self._headings: list[tuple[int, str]] = []
        self.path = ""  # 'Setup > Windows', or '' above the first heading; one string for all blocks of a section

    def enter(self, level: int, heading: str) -> None:
        """Start a section; level 1 is the outermost. An empty heading only ends the sections it would end."""
        while self._headings and self._headings[-1][0] >= level:
            self._headings.pop()
        if heading:
            self._headings.append((level, shortened(heading)))
        self.path = " > ".join(heading for _, heading in self._headings)


def shortened(heading: str, limit: int = MAX_HEADING_CHARS) -> str:
    """At most `limit` characters, with '…' for what was cut."""
    return heading if len(heading) <= limit else heading[: limit - 1] + "…"

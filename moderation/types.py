"""The words of moderation: Verdict, and the protocols of a classifier and of a moderator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

Action = Literal["allow", "warn", "block"]
Direction = Literal["input", "output"]
ACTIONS: tuple[Action, ...] = ("allow", "warn", "block")  # in order of severity
DIRECTIONS: tuple[Direction, ...] = ("input", "output")


@dataclass(frozen=True)
class Verdict:
    """What was decided about one text.

    `flagged` is true where any label reached its threshold; `action` is the most severe one of the labels that did;
    `scores` maps a label to its probability in [0, 1] (higher is worse), or to None where the classifier cannot
    judge it; `labels` are those that reached their threshold, worst action first; `error` says what failed when
    the classifier did, and the action then follows the policy's `fail` setting.
    """

    flagged: bool
    action: Action
    scores: Mapping[str, float | None] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    error: str | None = None


class Classifier(Protocol):
    """Texts to label probabilities; raises whatever it raises, the moderator deals with it."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that `scores` can name."""
        ...

    def scores(self, texts: Sequence[str]) -> list[dict[str, float | None]]:
        """One dict for each text: label -> probability in [0, 1], None where it cannot judge."""
        ...


class Moderator(Protocol):
    """What the bot calls on every turn."""

    @property
    def refusal(self) -> str:
        """What the user is told in place of a blocked text."""
        ...

    def can_block(self, direction: Direction) -> bool:
        """Whether any label may be blocked in this direction: if so, answers are withheld until checked."""
        ...

    def check(self, texts: Sequence[str], direction: Direction = "input") -> list[Verdict]:
        """One verdict for each text."""
        ...

"""The words of moderation: Verdict, and the protocols of a classifier and of a moderator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

Action = Literal["allow", "warn", "block"]
Direction = Literal["input", "output", "document"]
ACTIONS: tuple[Action, ...] = ("allow", "warn", "block")  # in order of severity
DIRECTIONS: tuple[Direction, ...] = ("input", "output", "document")

Scores = dict[str, float | None]


@dataclass(frozen=True)
class Verdict:
    """What was decided about one text.

    `flagged` is true where any label reached its threshold; `action` is the most severe one of the labels that did;
    `scores` maps a label to its probability in [0, 1] (higher is worse), or to None where the classifier cannot
    judge it; `labels` are those that reached their threshold, worst action first; `error` says what failed when
    the classifier did, and the action then follows the policy's `fail` setting. `moderation.views` shows the same
    verdict as levels of caution and as hazard codes.
    """

    flagged: bool
    action: Action
    scores: Mapping[str, float | None] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    error: str | None = None


class Classifier(Protocol):
    """Texts to label probabilities; raises whatever it raises, the moderator deals with it.

    More members are optional. `thresholds` maps a label to the threshold that the classifier recommends for it, a
    probability: the policy's `threshold: auto`. `from_vectors(texts, vectors)` is `scores` for texts whose sentence
    embeddings are known: vectors is (n, dim) float32, a row for each text, by the encoder that `encoder` names.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that `scores` can name."""
        ...

    def scores(self, texts: Sequence[str]) -> list[Scores]:
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

    def can_flag(self, direction: Direction) -> bool:
        """Whether anything is flagged in this direction, with a warning at least."""
        ...

    def judge(self, scores: Mapping[str, float | None], direction: Direction) -> Verdict:
        """The verdict on a text that was scored before, such as a passage when it was indexed."""
        ...

    def check(
        self, texts: Sequence[str], direction: Direction = "input", vectors: Vectors | None = None
    ) -> list[Verdict]:
        """One verdict for each text; `vectors`: their (n, dim) embeddings, where they are known."""
        ...

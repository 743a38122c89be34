"""The moderator: a classifier and a policy, batch in, batch out, and an answer even where the classifier fails."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from moderation.classifiers import open_classifier
from moderation.labels import did_you_mean
from moderation.policy import DEFAULT_POLICY, Policy, load_policy
from moderation.types import DIRECTIONS, Action, Classifier, Direction, Scores, Verdict
from moderation.workers import TooSlow, Workers

if TYPE_CHECKING:
    from moderation.types import Vectors

log = logging.getLogger("parley.moderation")


class PolicyModerator:
    """Checks texts with `classifier` and decides by `policy`; see `moderation.types.Moderator`.

    Raises ValueError where the policy names a label that the classifier does not have, and where the classifier
    recommends a threshold that is no probability.
    """

    def __init__(self, classifier: Classifier, policy: Policy = DEFAULT_POLICY) -> None:
        for label in policy.unknown_labels(classifier.labels):
            raise ValueError(
                f"the policy has a rule for label '{label}', which the classifier does not have; its labels are "
                f"{', '.join(classifier.labels)}{did_you_mean(label, classifier.labels)}"
            )
        self.classifier = classifier
        self.policy = policy
        self.thresholds: Mapping[str, float] = dict(getattr(classifier, "thresholds", {}))
        for label, threshold in self.thresholds.items():
            if not 0 <= threshold <= 1:
                raise ValueError(f"the classifier's threshold for '{label}' is {threshold}, not a number from 0 to 1")
        self._workers = Workers()

    @property
    def refusal(self) -> str:
        return self.policy.refusal

    @property
    def encoder(self) -> str | None:
        """The sentence encoder whose embeddings `check` can use; None where the classifier reads none."""
        return getattr(self.classifier, "encoder", None) if hasattr(self.classifier, "from_vectors") else None

    def can_block(self, direction: Direction) -> bool:
        """Whether a text may be blocked in this direction: by a rule, or because the classifier failed."""
        return self._has_block(direction) or self._fails_closed(direction)

    def can_flag(self, direction: Direction) -> bool:
        """Whether any label of the classifier leads to a warning or a block in this direction: if not, checking is
        idle. Scores that came from elsewhere may still be flagged, see `judge`."""
        return bool(self._actions(self.classifier.labels, direction) - {"allow"})

    def _has_block(self, direction: Direction) -> bool:
        return "block" in self._actions(self.classifier.labels, direction)

    def _fails_closed(self, direction: Direction) -> bool:
        return self._has_block(direction) if self.policy.fail == "auto" else self.policy.fail == "closed"

    def _actions(self, labels: Iterable[str], direction: Direction) -> set[Action]:
        rules = [self.policy.rule(label, direction) for label in labels]
        return {rule.action for rule in rules if rule is not None}

    def check(
        self, texts: Sequence[str], direction: Direction = "input", vectors: Vectors | None = None
    ) -> list[Verdict]:
        """One verdict for each text; blank texts are allowed unseen.

        `vectors` are the embeddings of exactly these texts, (n, dim) float32 unit rows, by the encoder called
        `encoder`: a classifier that can use them need not encode the texts again, any other ignores them.

        Whatever the classifier does wrong (it raises, takes longer than the policy's `timeout` for each text, or gives
        too few results, NaN, or labels it never declared) ends in a verdict with `error`, blocked or allowed by the
        policy's `fail`, and one line in the log, without a word of the texts. Raises ValueError for an unknown
        direction, for a bare string as `texts`, and for vectors that are not one for each text.
        """
        if isinstance(texts, str):
            raise ValueError("check takes a list of texts, not one text: it would judge every letter for itself")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
        if vectors is not None and (vectors.ndim != 2 or len(vectors) != len(texts)):
            raise ValueError(f"vectors of shape {vectors.shape} for {len(texts)} texts; give one row for each text")
        asked = [i for i, text in enumerate(texts) if text.strip()]
        rows = None if vectors is None else vectors[asked]
        verdicts = [Verdict(flagged=False, action="allow")] * len(texts)
        for i, verdict in zip(asked, self._judge([texts[i] for i in asked], rows, direction), strict=True):
            verdicts[i] = verdict
        return verdicts

    def judge(self, scores: Mapping[str, float | None], direction: Direction) -> Verdict:
        """The verdict on scores that are known already, such as those kept with a passage, whoever gave them. What is
        no probability is a failure, as in `check`. Raises ValueError for an unknown direction."""
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
        try:
            return self.policy.decide(scores, direction, self.thresholds)
        except ValueError as error:
            return self._failure(str(error), direction)

    def _judge(self, texts: list[str], vectors: Vectors | None, direction: Direction) -> list[Verdict]:
        if not texts:
            return []
        try:
            limit = None if self.policy.timeout is None else self.policy.timeout * len(texts)
            results = self._workers.run(lambda: self._scores(texts, vectors), limit)
            if len(results) == len(texts):
                verdicts = [self._decide(scores, direction) for scores in results]
            else:
                failure = self._failure(f"the classifier gave {len(results)} results for {len(texts)} texts", direction)
                verdicts = [failure] * len(texts)
        except TooSlow as error:
            verdicts = [self._failure(f"the classifier {error}", direction)] * len(texts)
        # The classifier is foreign code, and whatever it raises, the conversation must get an answer.
        except Exception as error:
            # Of a foreign error only the type is told: its message may quote the texts.
            verdicts = [self._failure(f"the classifier raised {type(error).__name__}", direction)] * len(texts)
            log.debug("what the classifier raised (it may quote the texts)", exc_info=True)
        errors = [verdict.error for verdict in verdicts if verdict.error]
        if errors:
            outcome = "blocked" if self._fails_closed(direction) else "allowed unchecked"
            log.warning("%d of %d texts %s: %s", len(errors), len(texts), outcome, errors[0])
        return verdicts

    def _scores(self, texts: list[str], vectors: Vectors | None) -> list[Scores]:
        if vectors is not None and (from_vectors := getattr(self.classifier, "from_vectors", None)) is not None:
            return list(from_vectors(texts, vectors))
        return list(self.classifier.scores(texts))

    def _decide(self, scores: Mapping[str, float | None], direction: Direction) -> Verdict:
        """The policy's verdict; scores that are no probabilities fail this text only, not the batch."""
        if undeclared := set(scores) - set(self.classifier.labels):
            return self._failure(f"the classifier gave {len(undeclared)} labels that it does not declare", direction)
        return self.judge(scores, direction)

    def _failure(self, message: str, direction: Direction) -> Verdict:
        closed = self._fails_closed(direction)
        return Verdict(flagged=closed, action="block" if closed else "allow", error=message)


def open_moderator(
    model: str = "default",
    policy_path: str | Path | None = None,
    device: str | None = None,
    label_map: str | Path | None = None,
) -> PolicyModerator:
    """A moderator from a classifier (see `moderation.classifiers.open_classifier`) and a policy file, or the default
    policy. Raises ValueError where either cannot be loaded, or the two do not fit each other."""
    policy = DEFAULT_POLICY if policy_path is None else load_policy(policy_path)  # first: it takes no time
    return PolicyModerator(open_classifier(model, device, label_map), policy)

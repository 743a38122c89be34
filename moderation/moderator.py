"""The moderator: a classifier and a policy, batch in, batch out, and an answer even where the classifier fails."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from moderation.classifiers import TransformersClassifier
from moderation.policy import DEFAULT_POLICY, Policy, did_you_mean, load_policy
from moderation.types import DIRECTIONS, Classifier, Direction, Verdict

log = logging.getLogger("parley.moderation")


class PolicyModerator:
    """Checks texts with `classifier` and decides by `policy`; see `moderation.types.Moderator`.

    Raises ValueError where the policy names a label that the classifier does not have.
    """

    def __init__(self, classifier: Classifier, policy: Policy = DEFAULT_POLICY) -> None:
        for label in policy.labels:
            if label not in classifier.labels:
                raise ValueError(
                    f"the policy has a rule for label '{label}', which the classifier does not have; its labels are "
                    f"{', '.join(classifier.labels)}{did_you_mean(label, classifier.labels)}"
                )
        self.classifier = classifier
        self.policy = policy

    @property
    def refusal(self) -> str:
        return self.policy.refusal

    def can_block(self, direction: Direction) -> bool:
        """Whether a text may be blocked in this direction: by a rule, or because the classifier failed."""
        rules = [self.policy.rule(label, direction) for label in self.classifier.labels]
        return self.policy.fail == "closed" or any(rule.action == "block" for rule in rules if rule)

    def check(self, texts: Sequence[str], direction: Direction = "input") -> list[Verdict]:
        """One verdict for each text; blank texts are allowed unseen.

        Whatever the classifier does wrong (it raises, or gives too few results, NaN, or labels it never declared)
        ends in a verdict with `error`, blocked or allowed by the policy's `fail`, and one line in the log, without
        a word of the texts. Raises ValueError for an unknown direction, and for a bare string as `texts`.
        """
        if isinstance(texts, str):
            raise ValueError("check takes a list of texts, not one text: it would judge every letter for itself")
        if direction not in DIRECTIONS:
            raise ValueError(f"direction {direction!r} is not one of {', '.join(DIRECTIONS)}")
        asked = [i for i, text in enumerate(texts) if text.strip()]
        verdicts = [Verdict(flagged=False, action="allow")] * len(texts)
        for i, verdict in zip(asked, self._judge([texts[i] for i in asked], direction), strict=True):
            verdicts[i] = verdict
        return verdicts

    def _judge(self, texts: list[str], direction: Direction) -> list[Verdict]:
        if not texts:
            return []
        try:
            results = list(self.classifier.scores(texts))
            if len(results) == len(texts):
                verdicts = [self._decide(scores, direction) for scores in results]
            else:
                failure = self._failure(f"the classifier gave {len(results)} results for {len(texts)} texts")
                verdicts = [failure] * len(texts)
        # The classifier is foreign code, and whatever it raises, the conversation must get an answer.
        except Exception as error:
            # Of a foreign error only the type is told: its message may quote the texts.
            verdicts = [self._failure(f"the classifier raised {type(error).__name__}")] * len(texts)
            log.debug("what the classifier raised (it may quote the texts)", exc_info=True)
        errors = [verdict.error for verdict in verdicts if verdict.error]
        if errors:
            outcome = "blocked" if self.policy.fail == "closed" else "allowed unchecked"
            log.warning("%d of %d texts %s: %s", len(errors), len(texts), outcome, errors[0])
        return verdicts

    def _decide(self, scores: Mapping[str, float | None], direction: Direction) -> Verdict:
        """The policy's verdict; scores that are no probabilities fail this text only, not the batch."""
        if undeclared := set(scores) - set(self.classifier.labels):
            return self._failure(f"the classifier gave {len(undeclared)} labels that it does not declare")
        try:
            return self.policy.decide(scores, direction)
        except ValueError as error:
            return self._failure(str(error))

    def _failure(self, message: str) -> Verdict:
        closed = self.policy.fail == "closed"
        return Verdict(flagged=closed, action="block" if closed else "allow", error=message)


def open_moderator(model: str, policy_path: str | Path | None = None, device: str | None = None) -> PolicyModerator:
    """A moderator from a model (path or Hugging Face id) and a policy file, or the default policy.

    Raises ValueError where either cannot be loaded, or the two do not fit each other.
    """
    policy = DEFAULT_POLICY if policy_path is None else load_policy(policy_path)  # first: it takes no time
    return PolicyModerator(TransformersClassifier(model, device), policy)

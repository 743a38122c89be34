"""The policy: which score of which label, in which direction, leads to which action; read from a YAML file.

The documented example is `policy.yaml` beside this file; what a policy file leaves out is as in DEFAULT_POLICY.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from moderation.labels import INJECTION, did_you_mean, is_benign
from moderation.sections import Section, mistake, read_sections, require_section
from moderation.types import ACTIONS, DIRECTIONS, Action, Direction, Verdict

# What `threshold: auto` means where the classifier recommends none.
DEFAULT_THRESHOLD = 0.5
MAX_TIMEOUT = 3600


def _is_number(value: object) -> bool:
    # A bool is an int to Python, but `threshold: yes` is a mistake.
    return isinstance(value, int | float) and not isinstance(value, bool)


def _require_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}")


@dataclass(frozen=True)
class Rule:
    """`action` follows where a score reaches `threshold`, a probability in [0, 1], or "auto": what the classifier
    recommends for the label, DEFAULT_THRESHOLD where it recommends nothing. ValueError for anything else."""

    action: Action = "warn"
    threshold: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        _require_choice("action", self.action, ACTIONS)
        if self.threshold != "auto" and not (_is_number(self.threshold) and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold {self.threshold!r} is not a number from 0 to 1, or auto")

    def reached_by(self, score: float, recommended: float | None) -> bool:
        """Whether `score` flags its label, whose threshold the classifier recommends to be `recommended`."""
        if self.threshold == "auto":
            return score >= (DEFAULT_THRESHOLD if recommended is None else recommended)
        return score >= self.threshold


Rules = Mapping[Direction, Rule]


def _default_rules() -> Rules:
    return {"input": Rule(), "output": Rule(), "document": Rule("allow")}


def _default_labels() -> Mapping[str, Rules]:
    # A document may well speak of violence; what it may not do is give the model orders. A warning, not a block: the
    # default classifier takes too many texts about prompts and commands for orders.
    return {INJECTION: {"document": Rule("warn")}}


@dataclass(frozen=True)
class Policy:
    """What to do about scores.

    `fail` says what becomes of a text that the classifier failed on: closed blocks it, open allows it, auto blocks it
    in directions in which some rule blocks (a policy that only warns stops no conversation); `timeout` is
    the seconds for each text after which a check counts as failed, None for no limit; `refusal` is what the user is
    told in place of a blocked text; `default` has a rule for each direction, and `labels` has the exceptions to it,
    for some directions or for each. Raises ValueError where `fail`, `timeout` or `refusal` is not usable.
    """

    fail: Literal["auto", "open", "closed"] = "auto"
    timeout: float | None = 30
    refusal: str = "I am sorry, but I cannot help with that."
    default: Rules = field(default_factory=_default_rules)
    labels: Mapping[str, Rules] = field(default_factory=_default_labels)

    def __post_init__(self) -> None:
        _require_choice("fail", self.fail, ("auto", "open", "closed"))
        if self.timeout is not None and not (_is_number(self.timeout) and 0 < self.timeout <= MAX_TIMEOUT):
            raise ValueError(
                f"timeout {self.timeout!r} is not a number of seconds above 0 and at most {MAX_TIMEOUT}, "
                "or null for no limit"
            )
        if not (isinstance(self.refusal, str) and self.refusal.strip()):
            raise ValueError(f"refusal {self.refusal!r} is not a text")

    def rule(self, label: str, direction: Direction) -> Rule | None:
        """The rule for `label`; None for a label that means "nothing wrong" and that the policy does not name.

        Raises ValueError for an unknown direction.
        """
        _require_choice("direction", direction, DIRECTIONS)
        named = self.labels.get(label, {})
        if direction in named:
            return named[direction]
        return None if is_benign(label) else self._default(direction)

    def _default(self, direction: Direction) -> Rule:
        return self.default.get(direction) or _default_rules()[direction]

    def decide(
        self, scores: Mapping[str, float | None], direction: Direction, recommended: Mapping[str, float] | None = None
    ) -> Verdict:
        """The verdict on a text with these scores: probabilities in [0, 1], or None, which never flags.

        A label is flagged where its score reaches the threshold of its rule; the most severe action among the
        flagged labels is the verdict's. `recommended` are the classifier's own thresholds, for rules that say auto.
        Raises ValueError for NaN and anything else outside [0, 1].
        """
        flagged: list[tuple[int, float, str]] = []
        for label, score in scores.items():
            if score is None:
                continue
            if not 0 <= score <= 1:  # written so that NaN is caught as well
                raise ValueError(f"the score of label '{label}' is {score}, not a probability from 0 to 1")
            rule = self.rule(label, direction)
            if rule is not None and rule.reached_by(score, (recommended or {}).get(label)):
                flagged.append((-ACTIONS.index(rule.action), -score, label))
        flagged.sort()  # worst action first, then highest score, then by name: the order of `scores` has no part in it
        action = ACTIONS[-flagged[0][0]] if flagged else "allow"
        return Verdict(bool(flagged), action, dict(scores), tuple(label for _, _, label in flagged))

    def unknown_labels(self, labels: tuple[str, ...]) -> list[str]:
        """The labels that this policy has rules of its own for and that are not among `labels`, a classifier's."""
        return [label for label, rules in self.labels.items() if label not in labels and self._changes(label, rules)]

    def _changes(self, label: str, rules: Rules) -> bool:
        """Whether these rules say anything that is not so by default: what nobody wrote must not be refused."""
        own = DEFAULT_POLICY.labels.get(label)
        return own is None or any(rule != own.get(d, self._default(d)) for d, rule in rules.items())


DEFAULT_POLICY = Policy()


def load_policy(path: str | Path) -> Policy:
    """Read a policy file; any mistake in it is a ValueError with file, line, what stands there and the choices."""
    return read_sections(Path(path), _policy)


def dump_policy(policy: Policy) -> str:
    """The policy as YAML with every rule spelled out; `load_policy` reads it back."""
    labels = {
        label: {d: asdict(rule) for d in DIRECTIONS if (rule := policy.rule(label, d))} for label in policy.labels
    }
    default = {d: asdict(policy.default.get(d) or _default_rules()[d]) for d in DIRECTIONS}
    settings = {"fail": policy.fail, "timeout": policy.timeout, "refusal": policy.refusal}
    content = settings | {"default": default, "labels": labels}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


# From YAML to a policy. `mark` is where a value's key stands, `where` how to name it in an error.

_RULE_KEYS = ("action", "threshold")
_POLICY_KEYS = ("fail", "timeout", "refusal", "default", "labels")
_Settings = TypeVar("_Settings", Policy, Rule)


def _policy(data: object) -> Policy:
    top = _keyed_section(data, None, "the policy", _POLICY_KEYS)
    policy = DEFAULT_POLICY
    # `default` comes before `labels`, which take from it what they leave out, wherever the two stand in the file.
    for key in (key for key in _POLICY_KEYS if key in top):
        value, mark = top[key], top.marks[key]
        if key == "default":
            value = {**policy.default, **_rules(value, mark, "default", policy.default)}
        elif key == "labels":
            value = _labels(value, mark, policy.default)
        policy = _with(policy, key, value, mark)
    return policy


def _labels(value: object, mark: yaml.Mark, default: Rules) -> dict[str, Rules]:
    """The rules of the labels that `value` names, and those of DEFAULT_POLICY that it leaves alone."""
    section = require_section(value, mark, "labels")
    merged = dict(DEFAULT_POLICY.labels)
    for label, rules in section.items():
        if not isinstance(label, str):
            raise mistake(section.marks[label], f"label {label!r} is not a text; put it in quotes")
        own = DEFAULT_POLICY.labels.get(label, {})
        merged[label] = {**own, **_rules(rules, section.marks[label], f"labels.{label}", {**default, **own})}
    return merged


def _rules(value: object, mark: yaml.Mark, where: str, default: Rules) -> dict[Direction, Rule]:
    """The rules of the directions that `value` names; of all of them where it is in the short form."""
    section = _keyed_section(value, mark, where, (*DIRECTIONS, *_RULE_KEYS))
    named = [direction for direction in DIRECTIONS if direction in section]
    if not named:
        return {direction: _rule(section, default[direction]) for direction in DIRECTIONS}
    for key in _RULE_KEYS:
        if key in section:
            raise mistake(section.marks[key], f"'{key}' stands beside '{named[0]}' in {where}; move it inside")
    return {
        d: _rule(_keyed_section(section[d], section.marks[d], f"{where}.{d}", _RULE_KEYS), default[d]) for d in named
    }


def _rule(section: Section, rule: Rule) -> Rule:
    for key, value in section.items():
        rule = _with(rule, key, value, section.marks[key])
    return rule


def _with(settings: _Settings, key: str, value: Any, mark: yaml.Mark) -> _Settings:
    """`settings` with one value replaced; what the dataclass objects to is a mistake at `mark`."""
    try:
        return replace(settings, **{key: value})
    except ValueError as error:
        raise mistake(mark, str(error)) from None


def _keyed_section(value: object, mark: yaml.Mark | None, where: str, keys: tuple[str, ...]) -> Section:
    """`value` if it is a mapping with no keys other than these."""
    section = require_section(value, mark, where)
    for key in section:
        if key not in keys:
            hint = did_you_mean(key, keys)
            raise mistake(section.marks[key], f"unknown key {key!r} in {where}; the keys are {', '.join(keys)}{hint}")
    return section

"""The policy: which score of which label, in which direction, leads to which action; read from a YAML file.

The documented example is `policy.yaml` beside this file; what a policy file leaves out is as in DEFAULT_POLICY.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml

from moderation.sections import Section, mistake, read_sections, require_section
from moderation.types import ACTIONS, DIRECTIONS, Action, Direction, Verdict

# What public classifiers call a text with nothing wrong in it, in lower case and without punctuation: `Non-Toxic`
# and `not_hate` are found as `nontoxic` and `nothate`.
BENIGN_LABELS = frozenset(
    {"acceptable", "benign", "casual", "clean", "harmless", "legit", "legitimate", "neutral", "normal", "ok", "okay"}
    | {"safe", "sfw"}
    | {no + wrong for no in ("no", "non", "not") for wrong in ("hate", "hateful", "offensive", "toxic")}
)


def is_benign(label: str) -> bool:
    """Whether `label` says that nothing is wrong (BENIGN_LABELS, whatever the case and the punctuation)."""
    return re.sub(r"[\W_]", "", label).lower() in BENIGN_LABELS


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the choice nearest to `name`, whatever the case; empty where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def _require_choice(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{what} {value!r} is not one of {', '.join(choices)}{did_you_mean(value, choices)}")


@dataclass(frozen=True)
class Rule:
    """`action` follows where a score reaches `threshold`, a probability in [0, 1]; ValueError for anything else."""

    action: Action = "warn"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        _require_choice("action", self.action, ACTIONS)
        # A bool is an int to Python, but `threshold: yes` is a mistake.
        is_number = isinstance(self.threshold, int | float) and not isinstance(self.threshold, bool)
        if not (is_number and 0 <= self.threshold <= 1):
            raise ValueError(f"threshold {self.threshold!r} is not a number from 0 to 1")


Rules = Mapping[Direction, Rule]


@dataclass(frozen=True)
class Policy:
    """What to do about scores.

    `fail` says what becomes of a text that the classifier failed on: closed blocks it, open allows it; `refusal` is
    what the user is told in place of a blocked text; `default` has a rule for each direction, and `labels` has the
    exceptions to it, for one direction or for each. Raises ValueError where `fail` or `refusal` is not usable.
    """

    fail: Literal["open", "closed"] = "closed"
    refusal: str = "I am sorry, but I cannot help with that."
    default: Rules = field(default_factory=lambda: {direction: Rule() for direction in DIRECTIONS})
    labels: Mapping[str, Rules] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _require_choice("fail", self.fail, ("open", "closed"))
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
        return None if is_benign(label) else self.default[direction]

    def decide(self, scores: Mapping[str, float | None], direction: Direction) -> Verdict:
        """The verdict on a text with these scores: probabilities in [0, 1], or None, which never flags.

        A label is flagged where its score reaches the threshold of its rule; the most severe action among the
        flagged labels is the verdict's. Raises ValueError for NaN and anything else outside [0, 1].
        """
        flagged: list[tuple[int, float, str]] = []
        for label, score in scores.items():
            if score is None:
                continue
            if not 0 <= score <= 1:  # written so that NaN is caught as well
                raise ValueError(f"the score of label '{label}' is {score}, not a probability from 0 to 1")
            rule = self.rule(label, direction)
            if rule is not None and score >= rule.threshold:
                flagged.append((-ACTIONS.index(rule.action), -score, label))
        flagged.sort()  # worst action first, then highest score, then by name: the order of `scores` has no part in it
        action = ACTIONS[-flagged[0][0]] if flagged else "allow"
        return Verdict(bool(flagged), action, dict(scores), tuple(label for _, _, label in flagged))


DEFAULT_POLICY = Policy()


def load_policy(path: str | Path) -> Policy:
    """Read a policy file; any mistake in it is a ValueError with file, line, what stands there and the choices."""
    return read_sections(Path(path), _policy)


def dump_policy(policy: Policy) -> str:
    """The policy as YAML with every rule spelled out; `load_policy` reads it back."""
    labels = {
        label: {d: asdict(rule) for d in DIRECTIONS if (rule := policy.rule(label, d))} for label in policy.labels
    }
    default = {d: asdict(policy.default[d]) for d in DIRECTIONS}
    content = {"fail": policy.fail, "refusal": policy.refusal, "default": default, "labels": labels}
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)


# From YAML to a policy. `mark` is where a value's key stands, `where` how to name it in an error.

_RULE_KEYS = ("action", "threshold")
_POLICY_KEYS = ("fail", "refusal", "default", "labels")
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
    section = require_section(value, mark, "labels")
    for label in section:
        if not isinstance(label, str):
            raise mistake(section.marks[label], f"label {label!r} is not a text; put it in quotes")
    return {label: _rules(rules, section.marks[label], f"labels.{label}", default) for label, rules in section.items()}


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

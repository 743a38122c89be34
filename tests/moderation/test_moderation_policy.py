"""The policy: what is decided, and what a policy file may say."""

from __future__ import annotations

import itertools
import math
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from moderation.labels import is_benign
from moderation.policy import DEFAULT_POLICY, Policy, Rule, dump_policy, load_policy
from moderation.types import ACTIONS, DIRECTIONS

LABELS = ["toxic", "threat", "needs caution", "safe", "no", "Überfall"]

rules = st.builds(Rule, st.sampled_from(ACTIONS), st.floats(0, 1) | st.just("auto"))
both = st.fixed_dictionaries(dict.fromkeys(DIRECTIONS, rules))
some = both | st.fixed_dictionaries({"input": rules}) | st.fixed_dictionaries({"output": rules})
policies = st.builds(
    Policy,
    fail=st.sampled_from(["auto", "open", "closed"]),
    refusal=st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp", "Co", "Cn"]), min_size=1)
    .filter(str.strip)
    .filter(lambda text: "\ufeff" not in text),
    default=both,
    timeout=st.none() | st.floats(0.01, 3600) | st.integers(1, 3600),
    # A file cannot unsay the default policy's own rule, only change it.
    labels=st.dictionaries(st.sampled_from(LABELS), some).map(lambda labels: {**DEFAULT_POLICY.labels, **labels}),
)
scores = st.dictionaries(st.sampled_from(LABELS), st.floats(0, 1) | st.none())
directions = st.sampled_from(DIRECTIONS)
steady = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # on a busy machine as well


@steady
@given(policies, scores, directions, st.data())
def test_raising_a_score_never_makes_the_action_milder(policy, scores, direction, data):
    before = policy.decide(scores, direction)
    raised = {
        label: data.draw(st.floats(score or 0, 1) if score is not None else st.none())
        for label, score in scores.items()
    }
    after = policy.decide(raised, direction)
    assert ACTIONS.index(after.action) >= ACTIONS.index(before.action)
    assert after.flagged >= before.flagged
    assert set(after.labels) >= set(before.labels)


@steady
@given(policies, scores, directions, st.randoms())
def test_the_order_of_the_scores_does_not_matter(policy, scores, direction, random):
    shuffled = list(scores.items())
    random.shuffle(shuffled)
    assert policy.decide(dict(shuffled), direction) == policy.decide(scores, direction)


@steady
@given(policies, scores, directions)
def test_a_verdict_agrees_with_the_rules(policy, scores, direction):
    verdict = policy.decide(scores, direction)
    reached = set()
    for label, score in scores.items():
        rule = policy.rule(label, direction)
        threshold = 0.5 if rule and rule.threshold == "auto" else rule and rule.threshold
        if rule and score is not None and score >= threshold:
            reached.add(label)
    severities = [ACTIONS.index(policy.rule(label, direction).action) for label in verdict.labels]
    assert set(verdict.labels) == reached
    assert verdict.flagged == bool(reached)
    assert severities == sorted(severities, reverse=True)
    assert verdict.action == (ACTIONS[max(severities)] if severities else "allow")
    assert verdict.scores == scores
    assert verdict.error is None


def test_a_threshold_is_reached_by_the_score_equal_to_it():
    assert DEFAULT_POLICY.decide({"toxic": 0.5}, "input").flagged
    assert not DEFAULT_POLICY.decide({"toxic": math.nextafter(0.5, 0)}, "input").flagged


def test_auto_is_what_the_classifier_recommends():
    recommended = {"toxic": 0.9, "threat": 0.0}
    scores = {"toxic": 0.8, "threat": 0.0, "insult": 0.5}
    assert DEFAULT_POLICY.decide(scores, "input", recommended).labels == ("insult", "threat")
    fixed = Policy(default=dict.fromkeys(DIRECTIONS, Rule("warn", 0.7)))
    assert fixed.decide(scores, "input", recommended).labels == ("toxic",)
    named = Policy(labels={"toxic": {"input": Rule("block", 0.8)}})
    assert named.decide({"toxic": 0.8}, "input", recommended).action == "block"


def test_a_document_is_flagged_for_nothing_but_injection():
    scores = {"violence": 1.0, "prompt_injection": 0.6}
    assert DEFAULT_POLICY.decide(scores, "document").action == "warn"
    assert DEFAULT_POLICY.decide(scores, "document", {"prompt_injection": 0.7}).action == "allow"
    assert DEFAULT_POLICY.decide(scores, "input").action == "warn"


def test_the_default_rule_for_injection_stays_unless_it_is_changed(write):
    assert load_policy(write("labels: {toxic: {action: block}}")).rule("prompt_injection", "document").action == "warn"
    assert load_policy(write("default: {action: block}")).rule("prompt_injection", "document") == Rule("warn")
    one = load_policy(write("labels: {prompt_injection: {input: {action: block}}}"))
    assert [one.rule("prompt_injection", d).action for d in DIRECTIONS] == ["block", "warn", "warn"]
    higher = load_policy(write("labels: {prompt_injection: {threshold: 0.9}}"))
    assert higher.rule("prompt_injection", "document") == Rule("warn", 0.9)
    off = load_policy(write("labels: {prompt_injection: {action: allow}}"))
    assert {off.rule("prompt_injection", d).action for d in DIRECTIONS} == {"allow"}


def test_only_rules_that_somebody_wrote_need_a_classifier_that_has_the_label(write):
    assert DEFAULT_POLICY.unknown_labels(("toxic",)) == []
    dumped = load_policy(write(dump_policy(DEFAULT_POLICY)))
    assert dumped.unknown_labels(("toxic",)) == []
    written = load_policy(write("labels: {prompt_injection: {threshold: 0.9}, insult: {action: warn}, toxic: {}}"))
    assert written.unknown_labels(("toxic",)) == ["prompt_injection", "insult"]


def test_the_worst_action_comes_first_then_the_highest_score():
    policy = Policy(labels={"threat": {"output": Rule("block", 0.2)}})
    verdict = policy.decide({"insult": 0.6, "toxic": 0.9, "threat": 0.3, "spam": None}, "output")
    assert verdict.labels == ("threat", "toxic", "insult")
    assert verdict.action == "block"
    assert policy.decide({"threat": 0.3}, "input").action == "allow"


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_that_is_no_probability_is_refused(score):
    with pytest.raises(ValueError, match=r"score of label 'toxic' is .* not a probability"):
        DEFAULT_POLICY.decide({"toxic": score}, "input")


@pytest.mark.parametrize("label", ["safe", "SAFE", "Non-Toxic", "not_hate", "NOT-HATE", "__casual__", "OK", "neutral"])
def test_a_label_for_nothing_wrong_is_not_flagged_unless_named(label):
    assert is_benign(label)
    assert not DEFAULT_POLICY.decide({label: 1.0}, "input").flagged
    named = Policy(labels={label: {"input": Rule("block")}})
    assert named.decide({label: 1.0}, "input").action == "block"
    assert not named.decide({label: 1.0}, "output").flagged


@pytest.mark.parametrize("label", ["toxic", "hate", "unsafe", "needs caution", "nsfw", "LABEL_0", "", "not safe"])
def test_other_labels_are_flagged(label):
    assert DEFAULT_POLICY.decide({label: 0.7}, "input").labels == (label,)


def test_an_unknown_direction_is_refused():
    with pytest.raises(
        ValueError, match="direction 'inptu' is not one of input, output, document; did you mean 'input'"
    ):
        DEFAULT_POLICY.rule("toxic", "inptu")


# Files


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "policy.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_the_shipped_file_says_what_the_default_policy_is():
    with resources.as_file(resources.files("moderation") / "policy.yaml") as path:
        assert load_policy(path) == DEFAULT_POLICY
    assert (DEFAULT_POLICY.fail, DEFAULT_POLICY.timeout) == ("auto", 30)
    warn, allow = Rule("warn", "auto"), Rule("allow", "auto")
    assert DEFAULT_POLICY.default == {"input": warn, "output": warn, "document": allow}
    assert DEFAULT_POLICY.labels == {"prompt_injection": {"document": Rule("warn", "auto")}}


def test_the_example_rules_of_the_shipped_file_are_valid(write):
    text = resources.files("moderation").joinpath("policy.yaml").read_text(encoding="utf-8")
    example = text[text.index("#   labels:") :]
    policy = load_policy(write("\n".join(line[4:] for line in example.splitlines() if line.startswith("#"))))
    assert policy.labels["violence"] == dict.fromkeys(DIRECTIONS, Rule("block", 0.3))
    assert policy.labels["harassment"] == {"output": Rule("block", "auto")}


@steady
@given(policies)
def test_a_dumped_policy_reads_back(tmp_path_factory, policy):
    path = tmp_path_factory.mktemp("dump") / "policy.yaml"
    path.write_text(dump_policy(policy), encoding="utf-8")
    again = load_policy(path)
    assert (again.fail, again.timeout, again.refusal) == (policy.fail, policy.timeout, policy.refusal)
    assert again.default == policy.default
    for label, direction in itertools.product([*LABELS, "other"], DIRECTIONS):
        assert again.rule(label, direction) == policy.rule(label, direction)
    assert dump_policy(again) == dump_policy(policy)


def test_the_short_form_the_long_form_and_what_is_left_out(write):
    policy = load_policy(
        write(
            """
            labels:
              toxic: {threshold: 1}
              threat: {output: {action: block}}
              safe: {}
            default: {action: allow, threshold: 0.25}
            refusal: Nein.
            fail: open
            """
        )
    )
    assert policy.fail == "open"
    assert policy.refusal == "Nein."
    assert policy.default == dict.fromkeys(DIRECTIONS, Rule("allow", 0.25))
    assert policy.rule("toxic", "input") == policy.rule("toxic", "output") == Rule("allow", 1)
    assert policy.rule("threat", "output") == Rule("block", 0.25)
    assert policy.rule("threat", "input") == Rule("allow", 0.25)
    assert policy.rule("safe", "input") == Rule("allow", 0.25)
    assert policy.rule("neutral", "input") is None


def test_half_a_default_leaves_the_other_half(write):
    policy = load_policy(write("default: {output: {action: block}}"))
    assert policy.default == {"input": Rule("warn"), "output": Rule("block"), "document": Rule("allow")}


def test_anchors_and_merge_keys_work(write):
    policy = load_policy(
        write("labels:\n  a: &rule {action: block, threshold: 0.9}\n  b: {<<: *rule, threshold: 0.1}\n  c: *rule\n")
    )
    assert policy.rule("b", "input") == Rule("block", 0.1)
    assert policy.rule("c", "output") == Rule("block", 0.9)


MALFORMED = {
    # text: (line or None, what the message says)
    "": (None, ["the policy is None, not a mapping"]),
    "- fail\n": (None, ["the policy is ['fail'], not a mapping"]),
    "fail": (None, ["the policy is 'fail', not a mapping"]),
    "fial: open": (1, ["unknown key 'fial'", "fail, timeout, refusal, default, labels", "did you mean 'fail'?"]),
    "\n1: open": (2, ["unknown key 1 in the policy"]),
    "fail: opne": (1, ["fail 'opne' is not one of auto, open, closed", "did you mean 'open'?"]),
    "fail: off": (1, ["fail False is not one of auto, open, closed"]),
    "timeout: 0": (1, ["timeout 0 is not a number of seconds above 0 and at most 3600", "null for no limit"]),
    "timeout: .nan": (1, ["timeout nan is not a number"]),
    "timeout: 1e6": (1, ["timeout '1e6' is not a number"]),
    "timeout: 3601": (1, ["timeout 3601 is not a number", "at most 3600"]),
    "timeout: yes": (1, ["timeout True is not a number"]),
    "default: {threshold: automatic}": (1, ["threshold 'automatic' is not a number from 0 to 1, or auto"]),
    "refusal: ''": (1, ["refusal '' is not a text"]),
    "refusal: 5": (1, ["refusal 5 is not a text"]),
    "refusal:": (1, ["refusal None is not a text"]),
    "default: block": (1, ["default is 'block', not a mapping"]),
    "default: {action: blok}": (1, ["action 'blok' is not one of allow, warn, block", "did you mean 'block'?"]),
    "default: {action: [block]}": (1, ["action ['block'] is not one of"]),
    "default:\n  input:\n    action: warn\n    threshold: 1.5": (4, ["threshold 1.5 is not a number from 0 to 1"]),
    "default: {threshold: -0.1}": (1, ["threshold -0.1 is not a number from 0 to 1"]),
    "default: {threshold: .nan}": (1, ["threshold nan is not a number from 0 to 1"]),
    "default: {threshold: .inf}": (1, ["threshold inf is not"]),
    "default: {threshold: '0.5'}": (1, ["threshold '0.5' is not a number from 0 to 1"]),
    "default: {threshold: yes}": (1, ["threshold True is not a number"]),
    "default: {threshold: }": (1, ["threshold None is not a number"]),
    "default:\n  inptu: {}": (2, ["unknown key 'inptu' in default", "did you mean 'input'?"]),
    "default: {input: warn}": (1, ["default.input is 'warn', not a mapping"]),
    "default: {input: {treshold: 1}}": (1, ["unknown key 'treshold' in default.input", "did you mean 'threshold'?"]),
    "default: {input: {input: {}}}": (1, ["unknown key 'input' in default.input; the keys are action, threshold"]),
    "default:\n  input: {}\n  action: warn": (3, ["'action' stands beside 'input' in default; move it inside"]),
    "labels:": (1, ["labels is None, not a mapping"]),
    "labels: [toxic]": (1, ["labels is ['toxic'], not a mapping"]),
    "labels:\n  toxic: 0.5": (2, ["labels.toxic is 0.5, not a mapping"]),
    "labels:\n  toxic:\n    outptu: {}": (3, ["unknown key 'outptu' in labels.toxic", "did you mean 'output'?"]),
    "labels:\n  no: {}": (2, ["label False is not a text; put it in quotes"]),
    "labels:\n  toxic: {}\n  threat: {}\n  toxic: {action: block}": (2, ["key 'toxic' stands 2 times"]),
    "labels: {[a]: {}}": (1, ["unhashable key"]),
    "labels: &a {x: *a}": (1, ["recursive"]),
    "fail: open\nlabels: {": (2, ["expected the node content, but found '<stream end>'"]),
    "fail: open: closed": (1, ["mapping values are not allowed here"]),
    "fail: !!python/object/apply:os.getcwd []": (1, ["could not determine a constructor"]),
    "--- {}\n--- {}": (2, ["another document"]),
    "fail: 2020-99-99": (None, ["not YAML: month must be in 1..12"]),
    "fail: \x07": (None, ["not YAML", "special characters are not allowed"]),
    "[" * 1000: (None, ["not YAML", "recursion"]),
}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text)[:60])
def test_a_malformed_file_is_one_clear_error(write, text):
    line, parts = MALFORMED[text]
    path = write(text)
    with pytest.raises(ValueError, match=r".") as caught:
        load_policy(path)
    message = str(caught.value)
    assert message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert all(part in message for part in parts), message


def test_an_unreadable_file_is_one_clear_error(write, tmp_path):
    with pytest.raises(ValueError, match=r"nothing\.yaml: No such file"):
        load_policy(tmp_path / "nothing.yaml")
    with pytest.raises(ValueError, match="Is a directory"):
        load_policy(tmp_path)
    with pytest.raises(ValueError, match=r"policy\.yaml: not UTF-8 text \(byte 9\)"):
        load_policy(write(b"refusal: \xff"))


def test_a_byte_order_mark_is_no_mistake(write):
    assert load_policy(write("\ufefffail: open")).fail == "open"

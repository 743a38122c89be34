"""The moderator: every text gets its verdict, whatever the classifier does."""

from __future__ import annotations

import logging
import math

import pytest

from moderation.classifiers import KeywordClassifier
from moderation.moderator import PolicyModerator, open_moderator
from moderation.policy import DEFAULT_POLICY, Policy, Rule
from moderation.types import Moderator, Verdict

WORDS = {"insult": ["fool"], "threat": ["kill"]}
BLOCK_THREATS = {"threat": {"output": Rule("block")}}
PRIVATE = "fool of a private text"


class Broken:
    """A classifier that does what it is told: raise an exception, or return a value."""

    labels = ("toxic",)

    def __init__(self, answer):
        self.answer = answer

    def scores(self, texts):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


BROKEN = {
    "raises": (Broken(RuntimeError(PRIVATE)), "raised RuntimeError"),
    "too few": (Broken([{"toxic": 0.1}]), "gave 1 results for 2 texts"),
    "too many": (Broken([{"toxic": 0.1}] * 3), "gave 3 results for 2 texts"),
    "none": (Broken(None), "raised TypeError"),
    "not a dict": (Broken([0.1, 0.2]), "raised TypeError"),
    "a text for a score": (Broken([{"toxic": PRIVATE}] * 2), "raised TypeError"),
    "nan": (Broken([{"toxic": math.nan}] * 2), "score of label 'toxic' is nan"),
    "out of range": (Broken([{"toxic": 1.5}] * 2), "score of label 'toxic' is 1.5"),
    "undeclared": (Broken([{PRIVATE: 0.1}] * 2), "1 labels that it does not declare"),
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize(("fail", "flagged", "action"), [("closed", True, "block"), ("open", False, "allow")])
def test_a_failing_classifier_is_a_verdict_and_one_line_in_the_log(how, fail, flagged, action, caplog):
    classifier, message = BROKEN[how]
    with caplog.at_level(logging.INFO, logger="parley.moderation"):
        verdicts = PolicyModerator(classifier, Policy(fail=fail)).check([PRIVATE, "  ", PRIVATE])
    assert verdicts[1] == Verdict(flagged=False, action="allow")
    for verdict in (verdicts[0], verdicts[2]):
        assert (verdict.flagged, verdict.action, verdict.scores, verdict.labels) == (flagged, action, {}, ())
        assert message in verdict.error
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("parley.moderation", "WARNING")
    assert message in record.getMessage()
    assert "2 of 2 texts " + ("blocked" if flagged else "allowed unchecked") in record.getMessage()
    assert "\n" not in record.getMessage()
    assert "private" not in caplog.text + str(verdicts)


def test_an_unusable_score_fails_its_own_text_only(caplog):
    moderator = PolicyModerator(Broken([{"toxic": 0.9}, {"toxic": math.nan}, {"toxic": None}]))
    first, second, third = moderator.check(["a", "b", "c"])
    assert (first.action, first.labels, first.error) == ("warn", ("toxic",), None)
    assert (second.action, second.flagged) == ("block", True)
    assert third == Verdict(flagged=False, action="allow", scores={"toxic": None})
    assert "1 of 3 texts blocked" in caplog.text


def test_a_classifier_that_stops_the_program_is_let_through():
    class Interrupted(Broken):
        def scores(self, texts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        PolicyModerator(Interrupted(None)).check(["a"])


def test_nan_in_one_window_of_a_long_text_is_not_lost(classifiers):
    moderator = open_moderator(classifiers["multi"], device="cpu")
    fine, failed = moderator.check(["good " * 40, "good " * 40 + "nan"])
    assert fine.error is None
    assert (failed.action, "nan" in failed.error) == ("block", True)


def test_verdicts_keep_the_order_of_the_texts_and_skip_blank_ones():
    asked = []

    class Recorder(KeywordClassifier):
        def scores(self, texts):
            asked.append(list(texts))
            return super().scores(texts)

    moderator: Moderator = PolicyModerator(Recorder(WORDS), Policy(labels=BLOCK_THREATS))
    verdicts = moderator.check(["", "fool", "good", " \n", "I kill, fool"], "output")
    assert asked == [["fool", "good", "I kill, fool"]]
    assert [verdict.action for verdict in verdicts] == ["allow", "warn", "allow", "allow", "block"]
    assert verdicts[4].labels == ("threat", "insult")
    assert moderator.check(["kill"])[0].action == "warn"  # as input
    assert moderator.check([]) == moderator.check([" "])[:0] == []
    assert len(asked) == 2


def test_a_batch_is_checked_as_its_texts_are_one_by_one(classifiers):
    moderator = open_moderator(classifiers["single"], device="cpu")
    texts = ["good day", "", "bad", "good " * 60 + "bad", "fine"]
    for together, text in zip(moderator.check(texts), texts, strict=True):
        (alone,) = moderator.check([text])
        assert together.scores == pytest.approx(alone.scores, abs=1e-6)
        assert (together.action, together.labels) == (alone.action, alone.labels)


def test_mistakes_of_the_caller_are_not_failures_of_the_classifier():
    moderator = PolicyModerator(KeywordClassifier(WORDS))
    with pytest.raises(ValueError, match="takes a list of texts"):
        moderator.check("You fool")
    with pytest.raises(ValueError, match="direction 'inptu' is not one of input, output"):
        moderator.check([""], "inptu")


def test_a_label_that_the_classifier_does_not_have_is_refused():
    policy = Policy(labels={"Insults": {"input": Rule("block")}})
    with pytest.raises(ValueError, match=r"label 'Insults'.* labels are insult, threat; did you mean 'insult'"):
        PolicyModerator(KeywordClassifier(WORDS), policy)


@pytest.mark.parametrize(
    ("policy", "on_input", "on_output"),
    [
        (DEFAULT_POLICY, True, True),  # the classifier may fail
        (Policy(fail="open"), False, False),
        (Policy(fail="open", labels=BLOCK_THREATS), False, True),
        (Policy(fail="open", default={"input": Rule("block"), "output": Rule()}), True, False),
    ],
)
def test_can_block(policy, on_input, on_output):
    moderator = PolicyModerator(KeywordClassifier(WORDS), policy)
    assert (moderator.can_block("input"), moderator.can_block("output")) == (on_input, on_output)
    assert moderator.refusal == policy.refusal


def test_a_rule_that_no_label_can_meet_does_not_block():
    default = {"input": Rule("block"), "output": Rule("block")}
    warn = {"input": Rule(), "output": Rule()}
    moderator = PolicyModerator(
        KeywordClassifier({"safe": ["good"], "insult": ["fool"]}),
        Policy(fail="open", default=default, labels={"insult": warn}),
    )
    assert not moderator.can_block("input")
    assert moderator.check(["good fool"])[0].action == "warn"


def test_a_moderator_from_a_model_and_a_policy_file(classifiers, tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("refusal: No.\nlabels: {threat: {action: block, threshold: 0.9}}\n")
    moderator = open_moderator(classifiers["multi"], path, "cpu")
    assert moderator.refusal == "No."
    assert [v.action for v in moderator.check(["kill", "bad", "good"])] == ["block", "warn", "allow"]
    with pytest.raises(ValueError, match=r"label 'threat'.* labels are safe, toxic"):
        open_moderator(classifiers["single"], path, "cpu")

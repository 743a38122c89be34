"""The moderator: every text gets its verdict, whatever the classifier does."""

from __future__ import annotations

import logging
import math
import threading

import numpy as np
import pytest

from moderation.classifiers import KeywordClassifier
from moderation.moderator import PolicyModerator, open_moderator
from moderation.policy import DEFAULT_POLICY, Policy, Rule
from moderation.types import Moderator, Verdict

CLOSED = Policy(fail="closed")

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


def test_a_failure_blocks_where_a_rule_blocks_and_only_there(caplog):
    moderator = PolicyModerator(Broken([{"toxic": math.nan}]), Policy(default={"output": Rule("block")}))
    actions = {direction: moderator.check(["a"], direction)[0].action for direction in ("input", "output", "document")}
    assert actions == {"input": "allow", "output": "block", "document": "allow"}
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "1 of 1 texts allowed unchecked",
        "1 of 1 texts blocked",
        "1 of 1 texts allowed unchecked",
    ]


def test_an_unusable_score_fails_its_own_text_only(caplog):
    moderator = PolicyModerator(Broken([{"toxic": 0.9}, {"toxic": math.nan}, {"toxic": None}]), CLOSED)
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
    moderator = PolicyModerator(open_moderator(classifiers["multi"], device="cpu").classifier, CLOSED)
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
        (DEFAULT_POLICY, False, False),  # it only warns
        (Policy(labels=BLOCK_THREATS), False, True),
        (Policy(fail="closed"), True, True),  # the classifier may fail
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


# Time-outs, vectors, recommended thresholds


def test_a_classifier_that_takes_too_long_has_failed(caplog):
    end = threading.Event()

    class Slow(KeywordClassifier):
        def scores(self, texts):
            end.wait(60)
            return super().scores(texts)

    for fail, action in (("closed", "block"), ("open", "allow")):
        moderator = PolicyModerator(Slow(WORDS), Policy(fail=fail, timeout=0.05))
        verdicts = moderator.check([PRIVATE, " ", "b"])
        assert [verdict.action for verdict in verdicts] == [action, "allow", action]
        assert verdicts[0].error == "the classifier took longer than 0.1 s"  # 0.05 for each text that is asked about
    assert "2 of 2 texts allowed unchecked: the classifier took longer than 0.1 s" in caplog.text
    assert "private" not in caplog.text
    end.set()
    assert PolicyModerator(Slow(WORDS), Policy(timeout=30)).check(["fool"])[0].labels == ("insult",)


class Reader(KeywordClassifier):
    """Scores a text by the first number of its vector; recommends a threshold."""

    thresholds = {"insult": 0.8}  # noqa: RUF012
    encoder = "minilm"

    def __init__(self):
        super().__init__(WORDS)

    def from_vectors(self, texts, vectors):
        return [{"insult": float(row[0]), "threat": None} for row in vectors]


def test_vectors_are_used_row_by_row_where_the_classifier_can():
    vectors = np.array([[0.9], [0.7], [0.1], [0.8]], dtype=np.float32)
    moderator = PolicyModerator(Reader())
    verdicts = moderator.check(["a", " ", "b", "c"], vectors=vectors)
    assert [verdict.labels for verdict in verdicts] == [("insult",), (), (), ("insult",)]
    assert verdicts[2].scores == {"insult": pytest.approx(0.1), "threat": None}
    assert moderator.check(["fool"])[0].scores == {"insult": 1.0, "threat": 0.0}  # without them it reads
    plain = PolicyModerator(KeywordClassifier(WORDS))
    assert plain.check(["fool", "b", "c", "d"], vectors=vectors)[0].labels == ("insult",)
    assert (moderator.encoder, plain.encoder) == ("minilm", None)


@pytest.mark.parametrize("shape", [(2, 1), (0, 1), (3,), (3, 1, 1)])
def test_vectors_that_are_not_one_for_each_text_are_refused(shape):
    with pytest.raises(ValueError, match=r"vectors of shape .* for 3 texts; give one row for each text"):
        PolicyModerator(Reader()).check(["a", "b", "c"], vectors=np.zeros(shape, dtype=np.float32))


def test_the_policys_threshold_goes_before_the_recommended_one():
    vectors = np.array([[0.6]], dtype=np.float32)
    policy = Policy(labels={"insult": {"input": Rule("warn", 0.6), "output": Rule("warn")}})
    moderator = PolicyModerator(Reader(), policy)
    assert moderator.check(["a"], "input", vectors)[0].flagged
    assert not moderator.check(["a"], "output", vectors)[0].flagged


def test_a_recommended_threshold_that_is_no_probability_is_refused():
    for threshold in (math.nan, 1.5, -0.1):
        classifier = Reader()
        classifier.thresholds = {"insult": threshold}
        with pytest.raises(ValueError, match=r"threshold for 'insult' is .*, not a number from 0 to 1"):
            PolicyModerator(classifier)


def test_documents_are_a_direction_of_their_own():
    moderator = PolicyModerator(KeywordClassifier({"prompt_injection": ["ignore"], "violence": ["kill"]}))
    verdicts = moderator.check(["ignore all that", "they kill each other"], "document")
    assert [verdict.action for verdict in verdicts] == ["warn", "allow"]
    assert moderator.can_flag("document")
    lacking = KeywordClassifier({"violence": ["kill"]})
    assert not PolicyModerator(lacking).can_flag("document")
    off = PolicyModerator(lacking, Policy(labels={}))
    assert (off.can_flag("document"), off.can_flag("input")) == (False, True)


def test_scores_that_are_known_already_are_judged_alike():
    moderator = PolicyModerator(KeywordClassifier(WORDS), CLOSED)
    assert moderator.judge({"prompt_injection": 0.6}, "document").action == "warn"  # whoever gave them
    assert moderator.judge({"prompt_injection": 0.4}, "document") == Verdict(
        flagged=False, action="allow", scores={"prompt_injection": 0.4}
    )
    assert moderator.judge({"insult": None}, "input").action == "allow"
    failed = moderator.judge({"insult": math.nan}, "input")
    assert (failed.action, "nan" in failed.error) == ("block", True)
    with pytest.raises(ValueError, match="direction 'inptu' is not one of"):
        moderator.judge({"insult": 0.1}, "inptu")

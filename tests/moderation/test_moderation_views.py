"""Labels, the label map, and the two views of a verdict."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moderation.labels import LABELS, is_benign, load_label_map
from moderation.types import Verdict
from moderation.views import HAZARD_LABELS, HAZARDS, LEVELS, hazards, level

verdicts = st.builds(
    Verdict,
    flagged=st.booleans(),
    action=st.sampled_from(["allow", "warn", "block"]),
    scores=st.dictionaries(st.sampled_from([*LABELS, *HAZARDS, "safe", "toxic"]), st.floats(0, 1) | st.none()),
    error=st.none() | st.just("it broke"),
)


def verdict(**scores: float | None) -> Verdict:
    return Verdict(False, "allow", {name.replace("__", "/").replace("_", "-"): s for name, s in scores.items()})


def test_the_labels_are_those_of_openai_and_two_of_ours():
    of_openai = (
        "harassment harassment/threatening hate hate/threatening illicit illicit/violent self-harm self-harm/intent "
        "self-harm/instructions sexual sexual/minors violence violence/graphic"
    )
    assert list(LABELS) == [*of_openai.split(), "prompt_injection", "unsafe"]
    assert not any(is_benign(label) for label in LABELS)


# Levels


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        (0.0, "casual"),
        (0.1249, "casual"),
        (0.125, "possibly needs caution"),
        (0.25, "possibly needs caution"),
        (0.3749, "possibly needs caution"),
        (0.375, "probably needs caution"),
        (0.5, "probably needs caution"),
        (0.625, "needs caution"),
        (0.75, "needs caution"),
        (0.875, "needs intervention"),
        (1.0, "needs intervention"),
    ],
)
def test_the_level_is_the_highest_score_to_the_nearest_quarter(score, expected):
    assert level(verdict(violence=0.0, hate=score, sexual=None)) == expected


def test_the_level_of_what_nobody_judged_is_unknown():
    assert level(Verdict(False, "allow")) is None
    assert level(verdict(violence=None)) is None
    assert level(verdict(safe=0.99)) is None  # that nothing is wrong is no score of what is wrong
    assert level(Verdict(True, "block", error="the classifier raised OSError")) is None
    assert level(verdict(safe=0.99, toxic=0.01)) == "casual"


@given(verdicts)
def test_every_verdict_has_a_level_or_none(verdict):
    assert level(verdict) in {*LEVELS, None}


# Hazards


def test_hazards_are_the_highest_score_of_their_labels():
    found = hazards(
        verdict(hate=0.2, hate__threatening=0.6, self_harm=0.0, self_harm__intent=0.3, sexual=0.1, sexual__minors=None)
    )
    assert list(found) == [f"S{number}" for number in range(1, 15)]
    known = {code: score for code, score in found.items() if score is not None}
    assert known == {"S1": 0.6, "S10": 0.6, "S11": 0.3, "S12": 0.1}


def test_a_guards_own_code_goes_before_its_labels():
    found = hazards(Verdict(False, "allow", {"illicit/violent": 1.0, "S1": 0.0, "S9": 1.0, "S14": 0.5}))
    assert (found["S1"], found["S9"], found["S14"]) == (0.0, 1.0, 0.5)


def test_harassment_violence_and_injection_are_no_hazard():
    found = hazards(Verdict(True, "warn", {"harassment": 1.0, "violence": 1.0, "prompt_injection": 1.0, "unsafe": 1.0}))
    assert set(found.values()) == {None}


@given(verdicts)
def test_every_hazard_is_a_probability_that_the_verdict_has_or_none(verdict):
    found = hazards(verdict)
    assert set(found) == set(HAZARDS)
    assert set(found.values()) <= {*verdict.scores.values(), None}
    for code, score in found.items():
        judged = [verdict.scores.get(label) for label in (code, *HAZARD_LABELS.get(code, ()))]
        assert (score is None) == all(each is None for each in judged)


# The label map


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "map.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_label_map_is_yaml_or_json(write):
    content = {"toxic": "harassment", "LABEL_1": None, "safe": None, "séxe": "sexual/minors"}
    assert load_label_map(write(json.dumps(content))) == content
    assert load_label_map(write("toxic: harassment\nLABEL_1: null\nsafe:\nséxe: sexual/minors\n")) == content
    assert load_label_map(write("{}")) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("toxic: harasment", r"map\.yaml:1: 'toxic' is mapped to 'harasment'; .*did you mean 'harassment'\?"),
        ("a: hate\nb: 0.5", r"map\.yaml:2: 'b' is mapped to 0\.5; the labels are harassment, .*, or null"),
        ("a: [hate]", r"map\.yaml:1: 'a' is mapped to \['hate'\]"),
        ("1: hate", r"map\.yaml:1: name 1 is not a text; put it in quotes"),
        ("safe: unsafe", r"map\.yaml:1: 'safe' says that nothing is wrong; it cannot be 'unsafe', map it to null"),
        ("a: hate\na: sexual", r"map\.yaml:1: key 'a' stands 2 times"),
        ("[toxic]", r"the label map is \['toxic'\], not a mapping"),
        ("{", r"map\.yaml"),
    ],
)
def test_a_mistake_in_a_label_map_is_one_line_with_the_remedy(write, text, message):
    with pytest.raises(ValueError, match=message):
        load_label_map(write(text))


def test_nan_is_no_level():
    # The policy lets no NaN into a verdict; a view of one made by hand must not pass it off as a level.
    with pytest.raises(ValueError, match="NaN"):
        level(verdict(hate=math.nan))

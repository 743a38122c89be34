"""The gate: figures against those of `evaluate.py rag`, intervals by hand arithmetic and invariances, bounds
that noise does not pass, and files that are refused before anything is done."""

from __future__ import annotations

import random
import string
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tools.evaluation.rag_figures import figures, is_right
from tools.improving.figures import FIGURES, Compared, compare
from tools.improving.gate import BOUNDS, DEFAULT, Line, judge, read_gate


def row(number: int, right: bool, answerable: bool = True, seconds: float = 1.0, **more: Any) -> dict[str, Any]:
    """As tools/evaluation/rag.py writes them."""
    return {
        "question": f"q{number}",
        "answers": ["a"] if answerable else [],
        "reply": f"r{right}",
        "found": True,
        "found_passage": True if answerable else None,
        "exact": right and answerable,
        "f1": float(right and answerable),
        "contained": right and answerable,
        "refused": right and not answerable,
        "flagged": False,
        "sentences": 1,
        "supported": int(right),
        "wrong_source": 0,
        "rightly_cited": 0,
        "citations": 0,
        "right_citations": 0,
        "unsupported": [],
        "sources": [],
        "seconds": seconds,
        **more,
    }


def drawn(seed: int, num: int = 40) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    found = []
    for number in range(num):
        sentences, citations = rng.randint(1, 4), rng.randint(0, 3)
        more = {
            "f1": rng.random(),
            "found": rng.random() < 0.8,
            "flagged": rng.random() < 0.1,
            "refused": rng.random() < 0.3,
            "sentences": sentences,
            "supported": rng.randint(0, sentences),
            "wrong_source": rng.randint(0, 1),
            "rightly_cited": rng.randint(0, sentences),
            "citations": citations,
            "right_citations": rng.randint(0, citations),
        }
        answerable = number % 3 > 0  # the same questions for all
        found.append(row(number, rng.random() < 0.5, answerable, rng.random(), **more))
    return found


def test_figures_are_those_of_the_report() -> None:
    old, new = drawn(1), drawn(2)
    compared = compare(old, new)
    for rows, side in ((old, "old"), (new, "new")):
        told = figures(rows)
        for name in FIGURES.keys() - {"right_replies"}:
            assert getattr(compared[name], side) == pytest.approx(told[name]), name
    assert compared["right_replies"].new == pytest.approx(sum(map(is_right, new)) / len(new))


def test_better_is_positive_whatever_the_direction() -> None:
    old, new = drawn(1), drawn(2)
    there, back = compare(old, new), compare(new, old)
    for name, figure in FIGURES.items():
        forth, other = there[name], back[name]
        assert forth.gain is not None
        sign = -1 if figure.lower_is_better else 1
        assert forth.gain == pytest.approx(sign * (forth.new - forth.old))
        assert forth.gain == pytest.approx(-other.gain)
        assert forth.gain_interval == pytest.approx((-other.gain_interval[1], -other.gain_interval[0]))


def test_the_interval_is_that_of_paired_differences() -> None:
    """Of a mean of differences d the bootstrap's interval is near mean +- 1.96 std(d) / sqrt(n)."""
    rng = np.random.default_rng(5)
    hard = rng.random(300) < 0.5  # both fail on the same questions
    old = [row(number, bool(not fails)) for number, fails in enumerate(hard)]
    new = [row(number, bool(not fails) or number % 20 == 0) for number, fails in enumerate(hard)]
    found = compare(old, new)["answer_contained"]
    differences = np.array([each["contained"] - before["contained"] for each, before in zip(new, old, strict=True)])
    half = 1.96 * differences.std() / np.sqrt(len(differences))
    assert found.gain_interval is not None
    assert found.gain_interval == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.008)
    # Unpaired it would hold 0: two shares of about a half from 300 questions differ by 0.08 by chance.
    assert found.gain_interval[0] > 0
    assert found.old_interval is not None
    assert found.old_interval[1] - found.old_interval[0] > 0.1


def test_the_same_answers_differ_by_nothing() -> None:
    for name, each in compare(drawn(1), drawn(1)).items():
        assert (each.gain, each.gain_interval) == (0.0, (0.0, 0.0)), name


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different questions"):
        compare(drawn(1), drawn(1)[1:])


def test_noise_does_not_pass_a_gain() -> None:
    """Two models that answer by the same chances: of 40 pairs hardly one may pass `gain: 0` (2.5 % by design)."""
    rng = random.Random(0)
    gate = (Line("answer_contained", "gain", 0.0),)
    passed = 0
    for _ in range(40):
        old, new = ([row(number, rng.random() < 0.5) for number in range(60)] for _ in range(2))
        passed += judge(gate, _only("answer_contained", old, new))[0].passed
    assert passed <= 4


def _only(name: str, old: Any, new: Any) -> dict[str, Compared]:
    return {name: compare(old, new)[name]}


@pytest.mark.parametrize(
    ("bound", "value", "found", "passes"),
    [
        ("min", 0.7, (0.5, 0.7), True),
        ("min", 0.71, (0.5, 0.7), False),
        ("max", 0.7, (0.5, 0.7), True),
        ("max", 0.6, (0.5, 0.7), False),
        ("gain", 0.0, (0.5, 0.7), True),
        ("gain", 0.0, (0.5, 0.5), False),
        ("gain", 0.15, (0.5, 0.7), False),  # better by 0.2, but perhaps only by 0.1
        ("loss", 0.11, (0.5, 0.5), True),
        ("loss", 0.09, (0.5, 0.5), False),  # as good, but not surely
        ("loss", 0.0, (0.5, 0.7), True),
        ("min", 0.0, (0.5, None), False),
        ("gain", 0.0, (0.5, None), False),
        ("gain", 0.0, (None, 0.5), False),
        ("loss", 0.0, (None, 0.5), True),
        ("loss", 0.5, (0.5, None), False),
    ],
)
def test_each_bound(bound: str, value: float, found: tuple[float | None, float | None], passes: bool) -> None:
    old, new = found
    gain = None if old is None or new is None else new - old
    interval = None if gain is None else (gain - 0.1, gain + 0.1)
    compared = Compared(old, new, gain, None, None, interval)
    assert judge((Line("f1", bound, value),), {"f1": compared})[0].passed == passes


def test_a_share_is_of_the_old_figure() -> None:
    compared = {"median_seconds": Compared(2.0, 2.9, -0.9, None, None, (-0.95, -0.85))}
    assert judge((Line("median_seconds", "loss", 0.5, True),), compared)[0].passed
    assert not judge((Line("median_seconds", "loss", 0.4, True),), compared)[0].passed


def test_the_gate_that_ships() -> None:
    lines = read_gate()
    assert any(line.bound == "gain" for line in lines)
    better = [row(number, True, number % 2 > 0) for number in range(40)]
    worse = [row(number, number % 4 > 0, number % 2 > 0) for number in range(40)]
    assert all(verdict.passed for verdict in judge(lines, compare(worse, better)))
    assert not all(verdict.passed for verdict in judge(lines, compare(better, worse)))
    assert not all(verdict.passed for verdict in judge(lines, compare(better, better)))  # as good is no reason


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("f1: {gain: 0}\nexact: {gain: 0}\n", (":2:", "unknown figure 'exact'", "did you mean exact_match", "f1")),
        ("f1: {gains: 0}\n", (":1:", "unknown bound 'gains'", "min, max, gain, loss")),
        ("f1: 0.5\n", (":1:", "f1 needs bounds", "gain: 0.05")),
        ("\n\nf1: {gain: much}\n", (":3:", "'much'", "a number")),
        ("f1: {min: 50%}\n", (":1:", "'50%'", "a number")),
        ("f1: {gain: true}\n", (":1:", "True", "a number")),
        ("f1: {gain: .nan}\n", (":1:", "nan", "a number")),
        ("f1: {loss: -0.1}\n", (":1:", "-0.1", "0 or more")),
        ("f1: {min: 0.9, max: 0.1}\n", (":1:", "can never be", "0.9")),
        ("f1: {gain: 0, gain: 1}\n", (":1:", "twice")),
        ("f1: {gain: 0}\nf1: {loss: 0}\n", (":2:", "has a line already")),
        ("- f1\n", ("figure: {bound: value}",)),
        ("", ("figure: {bound: value}",)),
        ("f1: {gain: 0\n", (":2", "not YAML")),
        ("? [a]\n: {gain: 0}\n", ("gate.yaml",)),
        ("f1: {gain: 2021-99-99}\n", ("gate.yaml",)),
    ],
)
def test_a_wrong_gate_names_the_line_and_the_remedy(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"gate\.yaml") as error:
        read_gate(file)
    for word in words:
        assert word in str(error.value)


NAMES = st.sampled_from([*FIGURES, "nonsense"])
VALUES = st.one_of(st.floats(0, 1), st.sampled_from(["10%", "x", None, True, -1, [1]]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(NAMES, st.dictionaries(st.sampled_from([*BOUNDS, "other"]), VALUES, max_size=3), max_size=3))
def test_any_content_is_read_as_written_or_refused(tmp_path: Path, content: Any) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(yaml.safe_dump(content))
    try:
        lines = read_gate(file)
    except ValueError as error:
        assert str(file) in str(error)  # noqa: PT017
        return
    assert {(line.figure, line.bound) for line in lines} == {(f, b) for f, bounds in content.items() for b in bounds}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet=string.printable, max_size=60) | st.text(max_size=30))
def test_any_text_is_a_gate_or_a_mistake_in_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "gate.yaml"
    file.write_text(text, encoding="utf-8", errors="replace", newline="")
    with pytest.raises(ValueError, match=r"gate\.yaml"):
        read_gate(file)


def test_the_gate_of_the_documentation_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "improve.md").read_text()
    (tmp_path / "gate.yaml").write_text(page.split("```yaml\n")[1].split("```")[0])
    assert len(read_gate(tmp_path / "gate.yaml")) == 5
    assert DEFAULT.is_file()

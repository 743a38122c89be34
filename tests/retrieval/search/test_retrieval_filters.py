"""Conditions on documents: what they parse to, what they hold for, and what is refused."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.search.filters import Condition, Filter

DOCUMENT: dict[str, str | int | float | bool] = {
    "source": "docs/Guide.md",
    "title": "The Guide",
    "id": "docs/Guide.md",
    "year": 1990,
    "edition": "12",
    "price": 9.5,
    "date": "2024-05-31",
    "lang": "de",
    "draft": True,
}
OPERATORS = ["=", "!=", ">=", "<=", ">", "<"]

names = st.text(st.characters(blacklist_categories=("Cs", "Z", "Cc"), blacklist_characters="=!<>"), min_size=1)
values = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1).map(str.strip).filter(bool)
plain_values = values.filter(lambda value: value[0] not in "=<>")
fillers = st.text(" \t", max_size=3)


def passes(*conditions: str, **document: Any) -> bool:
    """Whether a document passes; DOCUMENT where none is given."""
    return Filter.parse(conditions).passes(document or DOCUMENT)


@given(names, st.sampled_from(OPERATORS), plain_values, fillers, fillers)
def test_a_condition_is_parsed_into_its_three_parts(name: str, sign: str, value: str, left: str, right: str) -> None:
    assert Filter.parse([f"{left}{name}{right}{sign}{left}{value}{right}"]).conditions == (
        Condition(name, sign, value),
    )


@pytest.mark.parametrize(
    "text",
    ["", " ", "year", "year=", "=1990", "year 1990", ">=1990", "a b=c", "year==1990", "year=>1990", "a<>b", "!=x"],
)
def test_what_is_no_condition_is_refused_and_named(text: str) -> None:
    with pytest.raises(ValueError, match="is no condition; write FIELD=VALUE") as error:
        Filter.parse(["year=1990", text])
    assert f"'{text}'" in str(error.value)


def test_a_long_condition_is_parsed_in_linear_time() -> None:
    value = " " * 200_000 + "x" + " " * 200_000 + "y"
    assert Filter.parse([f"a={value}"]).conditions[0].value == value.strip()


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False), st.integers(-(10**20), 10**20), st.booleans())
def test_numbers_compare_as_numbers_whether_stored_as_such_or_as_text(
    stored: float, wanted: int, as_text: bool
) -> None:
    document = {"n": str(stored) if as_text else stored}
    for sign, compare in [
        ("=", operator.eq),
        ("!=", operator.ne),
        (">=", operator.ge),
        ("<=", operator.le),
        (">", operator.gt),
        ("<", operator.lt),
    ]:
        assert Condition("n", sign, str(wanted)).holds(document) is compare(stored, wanted)


@given(st.dates(), st.dates())
def test_iso_dates_sort_as_they_should(stored: Any, wanted: Any) -> None:
    assert Condition("date", ">=", wanted.isoformat()).holds({"date": stored.isoformat()}) is (stored >= wanted)
    assert Condition("date", "<", wanted.isoformat()).holds({"date": stored.isoformat()}) is (stored < wanted)


@given(st.text() | st.integers() | st.floats() | st.booleans() | st.none(), values | st.floats().map(str))
def test_unequal_is_the_opposite_of_equal_whatever_is_stored(stored: Any, value: str) -> None:
    document = {} if stored is None else {"n": stored}
    assert Condition("n", "!=", value).holds(document) is not Condition("n", "=", value).holds(document)


@given(st.sampled_from(OPERATORS), values)
def test_a_missing_field_meets_unequal_alone(sign: str, value: str) -> None:
    assert Condition("absent", sign, value).holds(DOCUMENT) is (sign == "!=")


@pytest.mark.parametrize(
    "condition",
    [
        "source=docs/*",
        "source=docs/Guide.md",
        "source=*.md",
        "source!=DOCS/*",
        "source!=docs/guide.md",
        "title=the guide",
        "title=THE ?uide",
        "id=docs/*",
        "year=1990",
        "year=1990.0",
        "year>=1990",
        "year<2000",
        "year>989",  # as texts "1990" comes before "989"
        "edition>9",
        "price<10",
        "price=9.50",
        "date>=2024",
        "date<2024-06",
        "lang!=en",
        "lang=D?",
        "draft=true",
        "author!=Ada",
    ],
)
def test_conditions_that_hold(condition: str) -> None:
    assert passes(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "source=docs",
        "source=DOCS/*",
        "source=other/*",
        "source!=docs/*",
        "title=guide",
        "year>1990",
        "year=199",
        "year!=1990",
        "edition<9",
        "date>2024-06",
        "draft=false",
        "draft=1",
        "author=*",
        "author>=A",
    ],
)
def test_conditions_that_do_not_hold(condition: str) -> None:
    assert not passes(condition)


def test_all_conditions_must_hold_and_none_lets_everything_pass() -> None:
    assert passes("year>=1990", "lang=de", "source=docs/*")
    assert not passes("year>=1990", "lang=en", "source=docs/*")
    assert passes()
    assert not Filter()
    assert Filter.parse(["year>=1990"])


def test_brackets_in_names_mean_themselves() -> None:
    assert passes("source=docs/[draft]*.md", source="docs/[draft] a.md")
    assert not passes("source=docs/[draft].md", source="docs/d.md")


def test_names_are_not_taken_for_numbers() -> None:
    assert not passes("id=7", id="007")
    assert passes("id=007", id="007")
    assert not passes("source=1e3", source="1000")


@pytest.mark.parametrize("text", ["nan", "inf", "-Infinity", "1_000"])
def test_words_that_float_would_take_for_numbers_are_texts(text: str) -> None:
    assert passes(f"name={text}", name=text)
    assert not passes(f"name!={text}", name=text)
    assert not passes("name=1000", name=text)


def test_large_integers_compare_exactly_and_never_fail() -> None:
    assert not passes("n=9007199254740993", n=9007199254740992)  # equal as floats
    assert passes("n>1e300", n=10**400)
    assert passes(f"n={'9' * 5000}", n="9" * 5000)  # more digits than Python turns into an integer


def test_filters_with_equal_conditions_are_equal() -> None:
    assert Filter.parse(["a=1", "b>2"]) == Filter.parse([" a = 1 ", "b>2"])
    assert len({Filter.parse(["a=1"]), Filter.parse(["a=1"]), Filter()}) == 2

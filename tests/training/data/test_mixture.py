"""`path:weight,path:weight` -> sources."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data.mixture import Source, parse_mixture


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        ("a.jsonl", [("a.jsonl", 1)]),
        ("a.jsonl:2,b.jsonl", [("a.jsonl", 2), ("b.jsonl", 1)]),
        (" a.jsonl : 0.5 , b.jsonl:1e-3 ", [("a.jsonl", 0.5), ("b.jsonl", 0.001)]),
        (r"C:\data\a.jsonl", [(r"C:\data\a.jsonl", 1)]),
        (r"C:\data\a.jsonl:3,D:/b.csv", [(r"C:\data\a.jsonl", 3), ("D:/b.csv", 1)]),
        ("http://host:8000/a.jsonl", [("http://host:8000/a.jsonl", 1)]),
        ("http://host:8000/a.jsonl:4", [("http://host:8000/a.jsonl", 4)]),
        ("https://u:5@host/a.jsonl?v=1:2", [("https://u:5@host/a.jsonl?v=1", 2)]),
        ("http://host:8000", [("http://host:8000", 1)]),
        ("http://[::1]:8000", [("http://[::1]:8000", 1)]),
        ("hf://owner/name/config@test:0.25", [("hf://owner/name/config@test", 0.25)]),
        ("hf://owner/name", [("hf://owner/name", 1)]),
        ("odd:name.jsonl", [("odd:name.jsonl", 1)]),
        (["a,b.jsonl:2", "c.jsonl"], [("a,b.jsonl", 2), ("c.jsonl", 1)]),
        ([{"location": "a:1", "weight": 2}, Source("b", 3)], [("a:1", 2), ("b", 3)]),
    ],
)
def test_sources_and_weights(mixture, expected):
    assert [(source.location, source.weight) for source in parse_mixture(mixture)] == expected


def test_a_format_for_all_that_name_none():
    mixed = ["a.jsonl", {"location": "b.jsonl", "format": "text", "columns": {"x": "text"}}]
    sources = parse_mixture(mixed, "oig")
    assert [source.format for source in sources] == ["oig", "text"]
    assert sources[1].columns == {"x": "text"}
    of_all = [source.columns for source in parse_mixture(mixed, columns={"y": "text"})]
    assert of_all == [{"y": "text"}, {"x": "text"}]


@pytest.mark.parametrize(
    ("mixture", "message"),
    [
        ("", "no data"),
        ([], "no data"),
        ("a.jsonl,,b.jsonl", "has no path"),
        ("a.jsonl:0", r"weight of 'a.jsonl' is 0; a weight is above 0"),
        ("a.jsonl:-2", "is -2"),
        ("a.jsonl:1e999", "is inf"),
        ("a.jsonl:1,a.jsonl:2", "'a.jsonl' is named twice"),
        ([{"location": "a", "wait": 2}], "location, weight, format and columns, not location, wait"),
        ([{"location": "a", "weight": "much"}], "must be a number, not 'much'"),
    ],
)
def test_mistakes_are_named(mixture, message):
    with pytest.raises(ValueError, match=message):
        parse_mixture(mixture)


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z/.]*[a-z]", fullmatch=True), st.floats(1e-6, 1e6)),
        min_size=1,
        unique_by=lambda each: each[0],
    )
)
def test_what_is_written_is_read(pairs):
    text = ",".join(f"{location}:{weight!r}" for location, weight in pairs)
    assert [(source.location, source.weight) for source in parse_mixture(text)] == pairs


def test_a_list_from_a_command_line():
    """As Hydra hands it over."""
    omegaconf = pytest.importorskip("omegaconf")
    text = "train: ['one,two.jsonl:2', {location: faq.csv, weight: 0.5, columns: {question: prompt}}]"
    first, second = parse_mixture(omegaconf.OmegaConf.create(text).train, "pairs")
    assert first == Source("one,two.jsonl", 2.0, "pairs")
    assert second == Source("faq.csv", 0.5, "pairs", {"question": "prompt"})
    assert type(second.columns) is dict

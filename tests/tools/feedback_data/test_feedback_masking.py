"""Masking: addresses, numbers and keys are gone whatever stands around them, and ordinary text stays."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools.feedback_data.masking import CLASSES, Masker

AROUND = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
GAPS = st.sampled_from(["", " ", "-", ".", "/", "\u00a0"])


def masked(text: str, *classes: str) -> str:
    return Masker(classes or CLASSES)(text)


@given(AROUND, st.emails(), AROUND)
def test_no_address_remains(before: str, address: str, after: str) -> None:
    mask = Masker(["emails"])
    found = mask(f"{before} {address} {after}")
    assert address not in found
    assert address.rpartition("@")[2] not in found.replace(before, "").replace(after, "")
    assert mask.counts["emails"] >= 1


@given(
    AROUND,
    st.sampled_from(["+41", "+1", "+358", "0049", "+ 44"]),
    st.lists(st.text("0123456789", min_size=2, max_size=3), min_size=4, max_size=4),
    GAPS,
)
def test_no_international_number_remains(before: str, country: str, groups: list[str], gap: str) -> None:
    number = country + " " + gap.join(groups)
    found = masked(f"{before} {number}, they said", "phones")
    assert number not in found
    assert "".join(groups) not in re.sub(r"\D", "", found.removeprefix(before))


NUMBERS = """
+41 44 668 18 00 | +41 (0)44 668 18 00 | 0041446681800 | 044 668 18 00 | (044) 668 18 00 | 044/6681800 | 0171-1234567
415-234-5678 | (415) 234-5678 | 415.234.5678 | 1-800-234-5678 | +1 (415) 234-5678 | +358 9 1234 567 | 0800 123 4567
01 23 45 67 89 | 01.23.45.67.89 | 020 7946 0958 | Tel. 66 81 800 | phone: 5551234 | call me on 234 5678 | 0٤٤ ٦٦٨ 18 00
"""


@pytest.mark.parametrize("number", [each.strip() for each in re.split(r"[|\n]", NUMBERS.strip())])
def test_numbers_of_several_countries(number: str) -> None:
    found = masked(f"You reach her under {number}; ask for Anna.", "phones")
    assert not re.search(r"\d{3}", found), found
    assert found.endswith("; ask for Anna.")


@pytest.mark.parametrize(
    "key",
    [
        *("hf_abcdefghijklmnopqrstuvwxyz", "sk-proj-abcdefghijklmnop1234", "AKIAIOSFODNN7EXAMPLE", "ghp_" + "a1" * 18),
        *("5f4dcc3b5aa765d61d8327deb882cf99", "aB3dE5gH7jK9mN1pQ3rS5tU7vW9xY1zA", "eyJhbGciOiJI.eyJzdWIiOiIx.c2ln"),
        "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_keys_are_hidden_wherever_they_stand(key: str) -> None:
    mask = Masker(["keys"])
    for text in (key, f"It is {key}.", f'{{"x": "{key}"}}', f"export X={key}\n"):
        assert key not in mask(text)
    assert mask.counts["keys"] == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("password: hunter22", "password: <hidden>"),
        ("the password is hunter2!", "the password is <hidden>"),
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "AWS_SECRET_ACCESS_KEY=<hidden>"),
        ("https://anna:geheim@example.org/x", "https://<hidden>@example.org/x"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer <hidden>"),
    ],
)
def test_what_is_called_a_key(text: str, expected: str) -> None:
    assert masked(text, "keys") == expected


@pytest.mark.parametrize(
    "text",
    [
        "The war lasted from 1939 to 1945, or 1939-1945; see 2024-01-15 10:30:00.",
        "On 01.02.2024 10:30 the 1 000 000th visitor paid 12,345,678.90 francs, 0.123456789 of it as tax.",
        "Zurich has 443,037 inhabitants [1], and pi is 3.14159265358979.",
        "The secret is patience. Is the password required? A token is a word. @anna, see you at 8!",
        "Version 10.0.19045.3693 at 192.168.100.200; 50 % + 20 % = 70 %.",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    mask = Masker(CLASSES)
    assert mask(text) == text
    assert not any(mask.counts.values())


@given(st.text() | st.text("0123456789+-. ()@ab:=/password\n"))
def test_a_masked_text_stays_as_it_is(text: str) -> None:
    once = masked(text)
    again = Masker(CLASSES)
    assert again(once) == once
    assert not any(again.counts.values())


def test_only_what_is_asked_for() -> None:
    text = "anna@example.org, +41 44 668 18 00"
    assert masked(text, "emails") == "<email>, +41 44 668 18 00"
    assert masked(text, "phones") == "anna@example.org, <phone>"
    assert Masker()(text) == text
    with pytest.raises(ValueError, match="cannot mask 'names'; choose of: keys,emails,phones"):
        Masker(["emails", "names"])


@pytest.mark.timeout(20)
def test_long_texts_take_no_long_time() -> None:
    for text in ("a" * 200_000, "0" * 200_000, "1 " * 100_000, "a@" * 100_000, "tel " * 50_000, "a.b-" * 50_000):
        masked(text)

"""What a model or a document says cannot take over the terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.text import printable


@pytest.mark.parametrize(
    "attack",
    [
        "\x1b[2J",  # clears the screen
        "\x1b]52;c;ZXZpbA==\x07",  # writes to the clipboard
        "\x9b31m",  # colours, in the eight-bit form
        "\rerror: none",  # writes over the line
        "\x08\x08\x08",
        "\u202egnp.exe",  # turns the direction round
        "\u2067right to left",
    ],
)
def test_no_control_character_reaches_the_terminal(attack: str) -> None:
    shown = printable(f"before {attack} after")
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert attack[0] not in shown


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_only_line_breaks_and_tabs_are_left_of_the_controls(text: str) -> None:
    assert {char for char in printable(text) if unicodedata.category(char) == "Cc"} <= {"\n", "\t"}


@pytest.mark.parametrize("text", ["two\nlines\tand a tab", "Zürich 你好 👩‍👩‍👧 🇨🇭 עברית", "1 < 2 [bold]x[/bold] \\"])
def test_ordinary_text_is_shown_as_it_is(text: str) -> None:
    assert printable(text) == text

"""Entry points of our own."""

from __future__ import annotations

import pytest

from chatbot.asking import open_asker
from common.plugins import GROUPS, plugin
from moderation.screener import open_screener
from retrieval.encoders import open_encoder


def test_each_group_has_its_member() -> None:
    assert plugin("parley.encoder") is open_encoder
    assert plugin("parley.asker") is open_asker
    assert plugin("parley.screener") is open_screener
    assert all(callable(plugin(group)) for group in GROUPS)


def test_an_unknown_group_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown group .*known: parley"):
        plugin("parley.coder")

"""Entry points of our own."""

from __future__ import annotations

import pytest

from chatbot.engines import open_engine
from common.plugins import GROUPS, plugin
from retrieval.encoders import open_encoder


def test_each_group_has_its_member() -> None:
    assert plugin("parley.encoder") is open_encoder
    assert plugin("parley.engine") is open_engine
    assert all(callable(plugin(group)) for group in GROUPS)


def test_an_unknown_group_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown group .*known: parley"):
        plugin("parley.coder")

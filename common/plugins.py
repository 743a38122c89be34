"""What one folder needs of another that it may not import: found by name, among the entry points of what is installed.

    encoder = plugin("parley.encoder")("minilm")

A group has one member: ours, from pyproject.toml. So `moderation` can run the sentence encoder of `retrieval`, and a
build can have its passages screened by `moderation`, while neither knows the other.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

GROUPS = {
    "parley.encoder": "(name, device) -> a sentence encoder, see retrieval.encoders.open_encoder",
    "parley.screener": "(name, device) -> who judges passages, see moderation.screener.open_screener",
    "parley.asker": "(engine, model, device) -> who asks a chat model one thing, see chatbot.asking.open_asker",
    "parley.speaker": "(mode, Speaker's settings) -> who tries a model, see chatbot.speaking.open_speaking",
}


def plugin(group: str) -> Any:
    """What is registered for `group`. Raises ValueError where it is not one of GROUPS, or nothing is."""
    if group not in GROUPS:
        raise ValueError(f"unknown group '{group}'; known: {', '.join(GROUPS)}")
    found = [entry for entry in entry_points(group=group) if entry.dist is not None and entry.dist.name == "parley"]
    if not found:
        raise ValueError(f"this installation of parley lacks {group}; install it again: pip install --editable .")
    return found[0].load()

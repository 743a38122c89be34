"""The embedded default: a head over the sentence encoder; see `moderation.head`."""

from __future__ import annotations

from collections.abc import Mapping

from moderation.head.classifier import HeadClassifier


def open_head(name: str, device: str | None, label_map: Mapping[str, str | None]) -> HeadClassifier:
    """The head that comes with Parley for the name `default`, or the trained one in the directory `name`."""
    del label_map  # its labels are ours
    return HeadClassifier.open(None if name == "default" else name, device=device)

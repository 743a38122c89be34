"""Our own labels for texts of a public set that comes without any; kept by the sum of the text, not the text itself.

annotations.json: part ("train", "test") -> the first 12 hexadecimal digits of the SHA-256 of a text -> letters of
what one reader saw in it, one for each label (CODES), "u" where it is wrong in a way without a label, "" where it is
harmless. Texts on which one may well disagree are left out.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from importlib import resources

CODES = {
    "i": "illicit",
    "v": "violence",
    "h": "hate",
    "r": "harassment",
    "s": "sexual",
    "m": "sexual/minors",
    "d": "self-harm",
    "u": "unsafe",
}


def annotation(text: str) -> tuple[str, tuple[str, ...]] | None:
    """(part, labels found) of a text that was annotated; no labels: it is harmless. None for any other text."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    found = _annotations().get(digest)
    return None if found is None else (found[0], tuple(CODES[letter] for letter in found[1]))


@functools.cache
def _annotations() -> Mapping[str, tuple[str, str]]:
    text = resources.files("moderation.head").joinpath("annotations.json").read_text(encoding="utf-8")
    parts: dict[str, dict[str, str]] = json.loads(text)
    return {digest: (part, letters) for part, rows in parts.items() for digest, letters in rows.items()}

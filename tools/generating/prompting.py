"""What a model is asked, from templates and data. Data stands within tags, and cannot write these tags itself.

Special tokens and role markers are broken up by the engine, in all that it is sent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from chatbot.conversation import Conversation
from chatbot.rendering import broken_up
from common.files import read_json

TEMPLATE_KEYS = ("actor", "reward", "rlhf")
_OLD_KEYS = {"rlhs": "rlhf"}  # as ChatLLaMA's code read it
TAGS = ("system", "user", "assistant", "conversation", "response", "example", "notes", "passage")
_FORGED = re.compile(rf"<(?:/\s*)?(?:{'|'.join(TAGS)})\b", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


def tagged(tag: str, text: str) -> str:
    """`<tag>`, the text and `</tag>`, a line each at least. The text's own tags of ours are broken up by a space."""
    return f"<{tag}>\n{harmless(text)}\n</{tag}>"


def harmless(text: str) -> str:
    """`text` with our tags broken up: `</response>` -> `< /response>`."""
    return broken_up(text, _FORGED)


def transcript(conversation: Conversation) -> str:
    """The messages in order, each within a tag of its role."""
    return "\n".join(tagged(message.role, message.content) for message in conversation)


def load_templates(path: Path | None) -> dict[str, str]:
    """The texts of a templates.json by what they are for; none without a file.

    A value is a text, or an object with the text as `template`. Raises ValueError for anything else, and for a key that
    is none of TEMPLATE_KEYS.
    """
    if path is None:
        return {}
    given = read_json(path)
    if not isinstance(given, dict):
        raise ValueError(f"{path}: must be an object with texts for {', '.join(TEMPLATE_KEYS)}")
    found = {}
    for key, value in given.items():
        name = _OLD_KEYS.get(key, key)
        text = value.get("template") if isinstance(value, dict) else value
        if name not in TEMPLATE_KEYS:
            raise ValueError(f"{path}: unknown key '{key}'; known: {', '.join(TEMPLATE_KEYS)}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{path}: '{key}' must be a text that is not empty")
        found[name] = text
    return found


def placeholders(template: str, known: tuple[str, ...], where: str) -> set[str]:
    """The placeholders `{name}` in a template. ValueError for one that is not `known`."""
    used = set(_PLACEHOLDER.findall(template))
    if unknown := used - set(known):
        raise ValueError(
            f"{where}: unknown placeholder '{{{min(unknown)}}}'; known: {', '.join(f'{{{name}}}' for name in known)}"
        )
    return used


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its placeholders replaced, in one pass: braces in a value stay as they are."""
    return _PLACEHOLDER.sub(lambda match: values[match[1]], template)

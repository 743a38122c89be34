"""The labels: OpenAI's moderation categories, `prompt_injection` and the overall `unsafe`; and reading a label map.

Source of the names: https://platform.openai.com/docs/guides/moderation (Content classifications). A classifier may
have labels of its own beside them. One that cannot judge a label says None for it, never 0.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from moderation.sections import mistake, read_sections, require_section

INJECTION = "prompt_injection"

# label -> what it says about a text
LABELS: Mapping[str, str] = {
    "harassment": "insults, bullying, language meant to harass anyone",
    "harassment/threatening": "harassment with violence or serious harm towards its target",
    "hate": "hatred for what people are: race, gender, religion, nationality, orientation, disability, caste",
    "hate/threatening": "hate with violence or serious harm towards its target",
    "illicit": "advice or instructions on how to do wrong: fraud, theft, drugs, hacking",
    "illicit/violent": "illicit, with violence or getting a weapon",
    "self-harm": "suicide, cutting, eating disorders: promoted, encouraged or described",
    "self-harm/intent": "the writer says they do or will harm themselves",
    "self-harm/instructions": "how to harm oneself",
    "sexual": "meant to arouse, or promoting sexual services",
    "sexual/minors": "sexual content with someone under 18",
    "violence": "death, violence or injury",
    "violence/graphic": "death, violence or injury in graphic detail",
    INJECTION: "instructions that mean to take over the model: from a user, or hidden in a document",
    "unsafe": "anything of the above, or of what else the classifier looks for",
}

# What public classifiers call a text with nothing wrong in it, in lower case and without punctuation: `Non-Toxic`
# and `not_hate` are found as `nontoxic` and `nothate`.
BENIGN_LABELS = frozenset(
    {"acceptable", "benign", "casual", "clean", "harmless", "legit", "legitimate", "neutral", "normal", "ok", "okay"}
    | {"safe", "sfw"}
    | {no + wrong for no in ("no", "non", "not") for wrong in ("hate", "hateful", "offensive", "toxic")}
)


def is_benign(label: str) -> bool:
    """Whether `label` says that nothing is wrong (BENIGN_LABELS, whatever the case and the punctuation)."""
    return re.sub(r"[\W_]", "", label).lower() in BENIGN_LABELS


def did_you_mean(name: object, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` with the choice nearest to `name`, whatever the case; empty where none is near."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean '{by_lower[near[0]]}'?" if near else ""


def load_label_map(path: str | Path) -> dict[str, str | None]:
    """A YAML or JSON file that maps a classifier's names to LABELS, or to null for a name to leave out.

    Raises ValueError with file, line and the remedy for anything else, and where a name that says that nothing is
    wrong ("safe") is mapped to a label: its score is high for harmless texts.
    """
    return read_sections(Path(path), _label_map)


def _label_map(data: object) -> dict[str, str | None]:
    section = require_section(data, None, "the label map")
    for name, label in section.items():
        mark = section.marks[name]
        if not isinstance(name, str):
            raise mistake(mark, f"name {name!r} is not a text; put it in quotes")
        if label is not None and label not in tuple(LABELS):  # a list cannot be looked up in a mapping
            hint = did_you_mean(label, LABELS)
            raise mistake(mark, f"'{name}' is mapped to {label!r}; the labels are {', '.join(LABELS)}, or null{hint}")
        if label is not None and is_benign(name):
            raise mistake(mark, f"'{name}' says that nothing is wrong; it cannot be '{label}', map it to null")
    return dict(section)

"""The model card: what a head is, what it was measured at, and what it cannot do."""

from __future__ import annotations

from typing import Any

from moderation.head.model import Head

_SEEN = [
    "Read these with care: some sentences of `templates.yaml` were written, and settings chosen, after looking at",
    "held-back rows of alpaca_seed, nq_q, clinc, banking77, malicious_instruct and tdc2023 that earlier heads got",
    "wrong. On those sources the figures are too good to expect on other texts. The texts of hh_harmless_q were",
    "labelled by one reader, who left out those on which one may well disagree; other readers would differ.",
    "",
]


def card(head: Head) -> str:
    """README.md of a head's directory, from what it records of itself."""
    measured: dict[str, Any] = dict(head.about.get("measured", {}))
    blocks = ", ".join(head.blocks) or "none: it should warn, not block"
    never = ", ".join(label for label in head.labels if label not in head.judged) or "none"
    lines = [
        "# Moderation head",
        "",
        f"A small classifier over sentence vectors of `{head.encoder}` and the words of the text. It gives each of",
        f"{', '.join(head.labels)} a probability. Labels it cannot judge (too few rows to learn from): {never}.",
        "",
        "What it was made of, its recipe and all figures are in `head.json`. The texts it learned from are not in it.",
        "",
        "## Measured on rows that it did not learn from",
        "",
        *_table(measured),
        "",
        *(_SEEN if head.about.get("recipe", {}).get("templates") else []),
        f"Labels that meet the gate for blocking (recall 0.90 at 1% false positives, AUPRC 0.80, ECE 0.05): {blocks}.",
        "",
        "## What it cannot do",
        "",
        "- **Texts unlike those it learned from.** Recall and false positives on other texts are worse than the",
        "  figures here, and its probabilities are less well calibrated there. Measure it on your own texts:",
        "  `python -m moderation evaluate FILE`.",
        "- **Arguments.** Harmless posts of forums and talk pages are flagged far more often than questions and",
        "  instructions, above all those of a forum that it learned nothing from.",
        "- **Identity terms.** Sentences that only name a religion, an origin, a gender or an orientation are flagged",
        "  more often than others. Do not act on a flag alone.",
        "- **Quoted speech.** It does not tell a slur from a report of one, nor fiction, satire or counter-speech from",
        "  what they speak about.",
        "- **Crises.** It is no way to find people in danger. Most ways of saying that one wants to die have none of",
        "  the words it knows, and a flag under `self-harm` helps nobody: show where to find help.",
        "- **Intent.** It sees one text at a time, in English, without the conversation around it. A harmful request",
        "  in harmless words passes.",
        "- **Hidden instructions.** `prompt_injection` knows common jailbreaks and calls to ignore instructions. A",
        "  plain task that stands in a document where it does not belong looks harmless to it, and documents about",
        "  language models, chat templates and servers are often flagged.",
        "",
    ]
    return "\n".join(lines)


def _table(measured: dict[str, Any]) -> list[str]:
    if not measured:
        return ["Nothing was held back."]
    lines = ["| label | rows | positives | AUPRC | recall at its threshold | ECE |", "|---|---|---|---|---|---|"]
    for label, f in measured["labels"].items():
        cells = ("-" if f[key] is None else f"{f[key]:.3f}" for key in ("auprc", "recall_at_threshold", "ece"))
        lines.append(f"| {label} | {f['rows']} | {f['positives']} | {' | '.join(cells)} |")
    lines += ["", "| source | flagged by any label |", "|---|---|"]
    lines += [f"| {source}, harmless texts | {share:.2%} |" for source, share in measured["false_positives"].items()]
    lines += [f"| {source}, harmful texts | {share:.1%} |" for source, share in measured["recall"].items()]
    return lines

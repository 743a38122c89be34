"""Plain text: paragraphs between blank lines, and a title where the first line looks like one."""

from __future__ import annotations

from retrieval.types import Block

MAX_TITLE_CHARS = 100


def read_plain(text: str) -> tuple[str, list[Block]]:
    """Title ('' if the text shows none) and paragraphs of a plain text with '\\n' line ends."""
    blocks: list[Block] = []
    paragraph: list[str] = []
    for number, line in enumerate([*text.split("\n"), ""], start=1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            blocks.append(Block(" ".join(" ".join(paragraph).split()), number - len(paragraph), number - 1))
            paragraph = []
    if len(blocks) > 1 and _is_title(blocks[0]):
        return blocks[0].text, blocks[1:]
    return "", blocks


def _is_title(block: Block) -> bool:
    """One short line that does not end as a sentence or a list does."""
    return block.start == block.end and len(block.text) <= MAX_TITLE_CHARS and block.text[-1] not in ".!?:;,…。！？"

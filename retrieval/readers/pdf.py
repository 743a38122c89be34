"""PDF: the text of each page as paragraphs, through pypdf."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

from retrieval.readers.encodings import clean_text
from retrieval.readers.limits import LeftOut
from retrieval.readers.plain import MAX_TITLE_CHARS
from retrieval.types import Block

if TYPE_CHECKING:
    from pypdf import PdfReader

_SENTENCE_ENDS = (".", "!", "?", ":", "…", '."', ".”", ".)", "。", "！", "？")
_FULL_LINE = 0.8  # of the page's usual line length: a shorter line that ends a sentence ends a paragraph
_ITEM = re.compile(r"(?:[•‣▪◦●○–—*]|\(?\d{1,3}[.)]|\(?[a-z]\))\s")
_INDENT = re.compile(r" {3,}|\t")
_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_NO_TITLE = re.compile(
    r"(?i)untitled|document\d*$|microsoft word|slide \d|\(anonymous\)"
    r"|.*\.(docx?|dvi|tex|indd|pdf|pptx?|qxd|rtf|ps|txt)$"
)


def read_pdf(file: BinaryIO, left_out: LeftOut, progress: Callable[[], None]) -> tuple[str, list[Block]]:
    """Title ('' if there is none) and the paragraphs with their pages.

    `progress` is called before each page. Pages that cannot be read are counted in `left_out`. Raises ValueError for
    a file that is encrypted, has no text or is no PDF.
    """
    try:
        from pypdf import PdfReader
        from pypdf.errors import DependencyError, PyPdfError
    except ImportError:
        raise ValueError("reading .pdf needs the package pypdf: pip install pypdf") from None
    try:
        reader = PdfReader(file)
        if reader.is_encrypted and not reader.decrypt(""):
            raise ValueError("it is encrypted")
        num_pages = len(reader.pages)
    except DependencyError:
        raise ValueError("it is encrypted in a way that needs the package 'cryptography' to read") from None
    except PyPdfError as error:
        raise ValueError(f"it is not a sound pdf file ({_one_line(error)})") from None
    blocks: list[Block] = []
    first_line = ""
    left_out.num_parts = num_pages
    for number in range(1, num_pages + 1):
        progress()
        try:
            text = clean_text(reader.pages[number - 1].extract_text()).translate(_LIGATURES)
        except MemoryError:
            raise
        except Exception as error:  # whatever a broken page makes pypdf raise, the others may be sound
            left_out.add(f"page {number}", _one_line(error))
            continue
        first_line = first_line or next((line.strip() for line in text.split("\n") if line.strip()), "")
        blocks.extend(Block(paragraph, number, number) for paragraph in paragraphs(text))
    if not blocks:
        if left_out.num_left_out:
            raise ValueError(f"none of its pages can be read ({left_out.summary('pages')})")
        raise ValueError("it holds no text; its pages may be scanned images, which need OCR first")
    return _title(reader) or _as_title(first_line), blocks


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a page, each on one line, words that were divided at line ends joined.

    Blank lines, indentation and list marks part them, and short lines that end a sentence.
    """
    lines = [line.rstrip() for line in text.split("\n")]
    lengths = sorted(len(line.strip()) for line in lines if line.strip())
    usual = lengths[len(lengths) * 3 // 4] if lengths else 0
    found: list[list[str]] = []
    open_paragraph = False
    for line in lines:
        bare = line.strip()
        if not bare:
            open_paragraph = False
            continue
        if not open_paragraph or _ITEM.match(bare) or _INDENT.match(line):
            found.append([])
        found[-1].append(bare)
        open_paragraph = not (bare.endswith(_SENTENCE_ENDS) and len(bare) < _FULL_LINE * usual)
    return [joined for each in found if (joined := _join(each))]


def _join(lines: list[str]) -> str:
    pieces: list[str] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        divided = line[-1:] in "-\u00ad\u2010" and line[-2:-1].isalpha() and following[:1].islower()
        pieces.append(line[:-1] if divided else f"{line} ")
    return " ".join("".join(pieces).replace("\u00ad", "").split())


def _title(reader: PdfReader) -> str:
    """The title in the file's own description, '' where there is none or a program made it up."""
    try:
        given = reader.metadata.title if reader.metadata else None
    except MemoryError:
        raise
    except Exception:  # a broken description costs the title alone
        given = None
    title = " ".join(clean_text(str(given or "")).split())
    return title if 3 <= len(title) <= 2 * MAX_TITLE_CHARS and not _NO_TITLE.match(title) else ""


def _as_title(line: str) -> str:
    """The first line where it looks like a title."""
    line = " ".join(line.split())
    letters = sum(character.isalpha() for character in line)
    is_title = 3 <= len(line) <= MAX_TITLE_CHARS and letters * 2 > len(line) and not line.endswith((".", ",", ";", ":"))
    return line if is_title else ""


def _one_line(error: Exception) -> str:
    text = " ".join(clean_text(str(error)).split())
    return f"{type(error).__name__}: {text[:150]}" if text else type(error).__name__

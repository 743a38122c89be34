"""docx: through mammoth to HTML, and that through the reader of web pages.

A docx is a zip of XML files. Only the XML that text is read from is unpacked, within bounds; a copy of it, without
images and whatever else there is, goes to mammoth.
"""

from __future__ import annotations

import html
import io
import re
import zipfile
import zlib
from typing import Any, BinaryIO

from retrieval.readers.limits import Limits
from retrieval.readers.web import read_html
from retrieval.types import Block

MAX_PARTS = 10_000
_FREE_PART_BYTES = 20_000_000  # a part this large harms nobody, whatever its ratio
_PIECE_BYTES = 1 << 18
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # what old .doc files and encrypted .docx files begin with
_READ = re.compile(r"\[Content_Types\]\.xml|_rels/.*\.rels|docProps/core\.xml|.*\.xml|.*/_rels/[^/]*\.rels")
_LEADS_OUT = re.compile(r"[/\\]|[A-Za-z]:|(?:.*[/\\])?\.\.(?:[/\\]|$)")
_DECLARED_ENCODING = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([\w.:-]*)""")
_ENCODINGS = (b"utf-8", b"utf-16", b"us-ascii", b"ascii", b"iso-8859-1", b"windows-1252")
_CORE_TITLE = re.compile(r"<dc:title\b[^>]*>([^<]*)<")
_TITLE_STYLE = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => p:fresh"


def read_docx(file: BinaryIO, limits: Limits) -> tuple[str, list[Block]]:
    """Title ('' if there is none) and the paragraphs; `start` and `end` count them, from 1.

    Raises ValueError for a file that is encrypted, dangerous to unpack or no docx.
    """
    try:
        import mammoth
    except ImportError:
        raise ValueError("reading .docx needs the package mammoth: pip install mammoth") from None
    if file.read(len(_OLE)) == _OLE:
        raise ValueError("it is encrypted, or an old .doc file; save it as .docx without a password")
    parts = _read_parts(file, limits)
    if "word/document.xml" not in parts and not any(name.endswith(".rels") for name in parts):
        raise ValueError("it is not a docx file (it holds no word/document.xml)")
    try:
        converted = mammoth.convert_to_html(
            _packed(parts),
            include_embedded_style_map=False,
            convert_image=_no_image,
            style_map=_TITLE_STYLE,
            external_file_access=False,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except MemoryError:
        raise
    except Exception as error:  # mammoth raises whatever the XML makes it stumble over
        text = " ".join(str(error).split())[:150]
        raise ValueError(f"it is not a sound docx file ({type(error).__name__}: {text})") from None
    title, blocks = read_html(converted.value.replace("↑</a>", "</a>"))
    title = _core_title(parts.get("docProps/core.xml", b"")) or title
    return title, [Block(block.text, i, i, block.heading) for i, block in enumerate(blocks, start=1)]


def _read_parts(file: BinaryIO, limits: Limits) -> dict[str, bytes]:
    """The XML in the zip, by name, unpacked; ValueError for what nobody should unpack."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
            _check_directory(infos, limits)
            budget = limits.max_unpacked_mb * 1_000_000
            parts: dict[str, bytes] = {}
            for info in infos:
                if _READ.fullmatch(info.filename):
                    part = _unpack(archive, info, budget, limits)
                    budget -= len(part)
                    _check_xml(info.filename, part)
                    parts[info.filename] = part
            return parts
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"it is not a sound docx file ({reason[:150]})") from None


def _check_directory(infos: list[zipfile.ZipInfo], limits: Limits) -> None:
    if len(infos) > MAX_PARTS:
        raise ValueError(f"it holds {len(infos):,} parts, more than {MAX_PARTS:,}")
    if len({info.filename for info in infos}) < len(infos):
        raise ValueError("it holds two parts of the same name")
    for info in infos:
        if _LEADS_OUT.match(info.filename):
            raise ValueError(f"it holds a part whose path leads out of it ({info.filename[:80]!r})")
        if info.flag_bits & 1:
            raise ValueError("it is encrypted")
        if info.file_size > max(_FREE_PART_BYTES, limits.max_ratio * info.compress_size):
            raise _is_bomb(limits)
    if sum(info.file_size for info in infos if _READ.fullmatch(info.filename)) > limits.max_unpacked_mb * 1_000_000:
        raise _is_bomb(limits)


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, budget: int, limits: Limits) -> bytes:
    """The real size counts here, whatever the directory says."""
    pieces: list[bytes] = []
    with archive.open(info) as part:
        while piece := part.read(_PIECE_BYTES):
            pieces.append(piece)
            budget -= len(piece)
            if budget < 0:
                raise _is_bomb(limits)
    return b"".join(pieces)


def _check_xml(name: str, part: bytes) -> None:
    """No docx needs a document type; entities can stand for other files, and for gigabytes."""
    plain = part.replace(b"\0", b"") if b"\0" in part else part  # UTF-16 spells it with zeros
    if b"<!DOCTYPE" in plain or b"<!ENTITY" in plain:
        raise ValueError(f"its part {name[:80]!r} declares XML entities")
    declared = _DECLARED_ENCODING.match(plain.lstrip(b"\xef\xbb\xbf\xff\xfe\xfe\xff \r\n"))
    if declared and declared[1].lower() not in _ENCODINGS:
        raise ValueError(f"its part {name[:80]!r} is in an encoding that no docx uses")


def _packed(parts: dict[str, bytes]) -> BinaryIO:
    """A zip of the parts, in memory, not compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    packed.seek(0)
    return packed


def _no_image(image: Any) -> list[Any]:  # noqa: ARG001
    return []


def _core_title(core: bytes) -> str:
    found = _CORE_TITLE.search(core.decode("utf-8", "replace"))
    title = " ".join(html.unescape(found[1]).split()) if found else ""
    return "" if title.lower() in ("", "untitled", "word document", "title") else title[:200]


def _is_bomb(limits: Limits) -> ValueError:
    return ValueError(
        f"it unpacks to more than {limits.max_unpacked_mb} MB, or to more than {limits.max_ratio} times its size, as a "
        "zip bomb does"
    )

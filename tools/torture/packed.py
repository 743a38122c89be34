"""Hostile contents of the formats that are packed or structured: records, gzip, docx, pdf. See `hostile.py`."""

# ruff: noqa: ARG001, ARG005  # all that make contents take the same arguments
from __future__ import annotations

import gzip
import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Literal

Content = Callable[[random.Random, Path], bytes]
Expected = Literal["read", "refused", "any"]

_TYPES = (
    b'<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    b'<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
    b'<Default Extension="xml" ContentType="application/xml"/></Types>'
)
_RELATIONS = (
    b'<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
    b'<Relationship Id="r1" Target="word/document.xml" '
    b'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"/></Relationships>'
)
_WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"


def contents(size: int, good: str) -> dict[str, tuple[str, Expected, str, Content]]:
    """By kind: suffix, what must become of it, the reason to give, and what makes it from a random source and the
    path of the secret. `good` is a sentence that sound parts hold, `size` the bytes of large ones."""
    return {**_record_contents(size, good), **_docx_contents(size, good), **_pdf_contents(size, good)}


def _record_contents(size: int, good: str) -> dict[str, tuple[str, Expected, str, Content]]:
    record = json.dumps({"id": "good", "title": "Good", "text": good}).encode() + b"\n"

    def deep(rng: random.Random, secret: Path) -> bytes:
        depth = rng.randint(50_000, 200_000)
        return record + b'{"id": 1, "text": ' + rng.choice([b"[", b'{"a":']) * depth + b"\n" + record

    def strange(rng: random.Random, secret: Path) -> bytes:
        rows: list[object] = [
            {"id": f"../../{secret}", "text": good, "url": f"file://{secret}"},
            {"id": "a\nb", "text": good, "metadata": {"x": {"y": [1, 2]}, "big": 10**30}},
            {"id": "a", "title": "\ud800", "text": f"{good} \udfff\u0000"},
            {"id": "a", "text": good, "meta": {str(i): i for i in range(1000)}},
            {"text": 5}, {"text": ""}, [], 5, None, {"text": None}, {"id": [], "text": good},
        ]  # fmt: skip
        rng.shuffle(rows)
        lines = [json.dumps(row).encode() for row in rows]
        return b"\n".join([*lines, b'{"id": 1, "text": "x", "n": NaN}', b'{"n": ' + b"9" * 5000 + b"}", b"\xff\xfe{"])

    def long_line(rng: random.Random, secret: Path) -> bytes:
        return record + b'{"id": "long", "text": "' + b"x" * 11_000_000 + b'"}\n' + record

    def bomb(rng: random.Random, secret: Path) -> bytes:
        piece = rng.choice([b"\0", b" ", b"\n", b'{"text": "'])
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        first = packer.compress(record) + packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(piece * (4_000_000 // len(piece))) + packer.flush(zlib.Z_FULL_FLUSH)
        return first + block * rng.randint(100, 1000)

    def cut(rng: random.Random, secret: Path) -> bytes:
        packed = gzip.compress(b"".join(_numbered(good, 2000)))
        return packed[: rng.randint(20, len(packed) - 1)]

    def flipped(rng: random.Random, secret: Path) -> bytes:
        return mutated(gzip.compress(b"".join(_numbered(good, 200))), rng)

    return {
        "json nested": (".jsonl", "read", "1 of 3 records left out (line 2", deep),
        "json strange": (".jsonl", "read", "records left out", strange),
        "json long line": (".jsonl", "read", "longer than", long_line),
        "gzip bomb": (".jsonl.gz", "any", "gzip bomb", bomb),
        "gzip cut": (".jsonl.gz", "any", "cut off", cut),
        "gzip flipped": (".jsonl.gz", "any", "", flipped),
    }


def _numbered(good: str, num: int) -> list[bytes]:
    return [json.dumps({"id": i, "text": f"{good} {i}"}).encode() + b"\n" for i in range(num)]


def docx(body: str, more: dict[str, bytes] | None = None, before: str = "") -> bytes:
    """A small docx: `body` is the XML inside <w:body>, `before` what stands before the root element."""
    document = (
        f'<?xml version="1.0" encoding="UTF-8"?>{before}<w:document xmlns:w="{_WORD}">'
        f"<w:body>{body}</w:body></w:document>"
    )
    parts = {"[Content_Types].xml": _TYPES, "_rels/.rels": _RELATIONS, "word/document.xml": document.encode()}
    return _zip({**parts, **(more or {})})


def paragraph(text: str, style: str = "") -> str:
    """A paragraph for `docx`."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{text}</w:t></w:r></w:p>"


def _zip(parts: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, part in parts.items():
            archive.writestr(name, part)
    return packed.getvalue()


def _docx_contents(size: int, good: str) -> dict[str, tuple[str, Expected, str, Content]]:
    sound = docx(paragraph(good) * 5)

    def bomb(rng: random.Random, secret: Path) -> bytes:
        filler = b"<w:p/>" if rng.random() < 0.5 else b" "
        return docx(paragraph(good), {"word/footnotes.xml": filler * (rng.randint(50, 150) * 1_000_000 // len(filler))})

    def liar(rng: random.Random, secret: Path) -> bytes:
        """The directory says that a part is small."""
        data = bytearray(docx(paragraph(good), {"word/styles.xml": b" " * 30_000_000}))
        entry = data.rfind(b"word/styles.xml") - 46
        data[entry + 24 : entry + 28] = (1000).to_bytes(4, "little")
        return bytes(data)

    def escape(rng: random.Random, secret: Path) -> bytes:
        name = rng.choice(["../../outside/secret.txt", "/etc/passwd", "word/../../x.xml", "C:\\x", "..\\x"])
        return docx(paragraph(good), {name: b"<x/>"})

    def entities(rng: random.Random, secret: Path) -> bytes:
        laughs = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
        declared = rng.choice([
            f'<!DOCTYPE d [<!ENTITY x SYSTEM "file://{secret}">]>',
            f'<!DOCTYPE d SYSTEM "file://{secret}">',
            f'<!DOCTYPE d [<!ENTITY a0 "ha">{laughs}<!ENTITY x "&a11;">]>',
        ])  # fmt: skip
        return docx(paragraph("&x;"), before=declared)

    def hidden_entities(rng: random.Random, secret: Path) -> bytes:
        part = f'<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE d [<!ENTITY x SYSTEM "file://{secret}">]><d>&x;</d>'
        return docx(paragraph(good), {"word/styles.xml": part.encode("utf-16")})

    def outside(rng: random.Random, secret: Path) -> bytes:
        relations = (
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships"><Relationship Id="x1" '
            f'TargetMode="External" Target="file://{secret}" '
            'Type="http://schemas.openxmlformats.org/officeDocument/2006/relationships/image"/></Relationships>'
        )
        image = (
            '<w:p><w:r><w:drawing><a:blip xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
            'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" r:link="x1"/>'
            "</w:drawing></w:r></w:p>"
        )
        more = {
            "word/_rels/document.xml.rels": relations.encode(),
            "mammoth/style-map": b"p => pre:fresh\n" * rng.randint(1, 9),
        }
        return docx(paragraph(good) + image, more)

    def nested(rng: random.Random, secret: Path) -> bytes:
        depth = rng.randint(500, 50_000)
        return docx("<w:p><w:r>" * depth + "<w:t>x</w:t>" + "</w:r></w:p>" * depth + paragraph(good))

    def parts(rng: random.Random, secret: Path) -> bytes:
        return docx(paragraph(good), {f"word/part{i}.xml": b"<x/>" for i in range(10_100)})

    return {
        "zip bomb": (".docx", "refused", "zip bomb", bomb),
        "zip liar": (".docx", "refused", "", liar),
        "zip escape": (".docx", "refused", "leads out", escape),
        "zip parts": (".docx", "refused", "parts", parts),
        "docx entities": (".docx", "refused", "entities", entities),
        "docx hidden entities": (".docx", "refused", "entities", hidden_entities),
        "docx outside": (".docx", "read", "", outside),
        "docx nested": (".docx", "any", "", nested),
        "docx large": (".docx", "any", "", lambda rng, secret: docx(paragraph(good) * (size // 50))),
        "docx cut": (".docx", "refused", "not a sound", lambda rng, secret: sound[: rng.randint(30, len(sound) - 30)]),
        "docx flipped": (".docx", "any", "", lambda rng, secret: mutated(sound, rng)),
        "docx encrypted": (".docx", "refused", "encrypted", lambda rng, secret: _OLE + rng.randbytes(4000)),
    }


_OLE = bytes.fromhex("d0cf11e0a1b11ae1")


def pdf(pages: list[bytes], more: list[bytes] | None = None, trailer: bytes = b"", kids: bytes = b"") -> bytes:
    """A small pdf: a content stream for each page, further objects from number 4 + 2 * len(pages) on, more entries of
    the trailer, and another /Kids array instead of the right one."""
    numbers = [4 + 2 * i for i in range(len(pages))]
    drawing = b"/XObject << /X %d 0 R >>" % (4 + 2 * len(pages)) if more else b""
    listed = kids or b" ".join(b"%d 0 R" % number for number in numbers)
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Count %d /Kids [%s] >>" % (len(pages), listed),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    for number, page in zip(numbers, pages, strict=True):
        objects.append(
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R "
            b"/Resources << /Font << /F1 3 0 R >> %s >> >>" % (number + 1, drawing)
        )
        objects.append(stream(page))
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, each in enumerate([*objects, *(more or [])], start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, each)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(offsets) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (len(offsets) + 1, trailer, start)
    return bytes(out)


def stream(data: bytes, entries: bytes = b"", packed: bytes | None = None) -> bytes:
    """A stream object, packed by Flate; `packed` replaces what is in it."""
    packed = zlib.compress(data) if packed is None else packed
    return b"<< /Filter /FlateDecode /Length %d %s >>\nstream\n%s\nendstream" % (len(packed), entries, packed)


def show(*lines: str) -> bytes:
    """The content stream of a page with these lines of text."""
    shown = b"".join(b"(%s) Tj T* " % line.encode("cp1252").replace(b"(", b"\\(") for line in lines)
    return b"BT /F1 12 Tf 14 TL 50 750 Td " + shown + b"ET"


def _pdf_contents(size: int, good: str) -> dict[str, tuple[str, Expected, str, Content]]:
    sound = pdf([show(good), show(f"{good} Again.")])

    def bomb(rng: random.Random, secret: Path) -> bytes:
        return pdf([b"q " * (rng.randint(20, 60) * 1_000_000), show(good)])

    def slow(rng: random.Random, secret: Path) -> bytes:
        return pdf([b"(x) Tj " * (size // 8) + show(good)])

    def loop(rng: random.Random, secret: Path) -> bytes:
        return pdf([show(good)], kids=rng.choice([b"2 0 R", b"4 0 R 2 0 R", b"2 0 R 2 0 R", b"99 0 R", b"1 0 R 4 0 R"]))

    def tree(rng: random.Random, secret: Path) -> bytes:
        """Ten levels of ten times the same child: a billion pages and more."""
        first = 4 + 2
        level = b"<< /Type /Pages /Count 99999999 /Kids [" + b"%d 0 R " * 10 + b"] >>"
        levels = [level % ((first + i + 1,) * 10) for i in range(10)]
        return pdf([show(good)], [*levels, level % ((4,) * 10)], kids=b"%d 0 R" % first)

    def form(rng: random.Random, secret: Path) -> bytes:
        """A drawing that draws itself."""
        entries = b"/Type /XObject /Subtype /Form /BBox [0 0 9 9] /Resources << /XObject << /X 6 0 R >> >>"
        return pdf([show(good) + b" /X Do"], [stream(b"/X Do " * rng.randint(1, 4), entries)])

    def previous(rng: random.Random, secret: Path) -> bytes:
        start = sound.rfind(b"xref\n0")
        return pdf([show(good), show(f"{good} Again.")], trailer=b"/Prev %d" % rng.choice([start, 0, 10**12]))

    def nested(rng: random.Random, secret: Path) -> bytes:
        return pdf([rng.choice([b"[", b"<<", b"<< /a ["]) * rng.randint(1000, size // 10)])

    def outside(rng: random.Random, secret: Path) -> bytes:
        name = str(secret).encode()
        embedded = b"<< /Type /Filespec /F (%s) /UF (%s) >>" % (name, name)
        return pdf([show(good)], [embedded], trailer=b"/Info << /Title 6 0 R >>").replace(
            b"/Length", b"/F (%s) /Length" % name, 1
        )

    def encrypted(rng: random.Random, secret: Path) -> bytes:
        from pypdf import PdfReader, PdfWriter

        writer = PdfWriter(clone_from=PdfReader(io.BytesIO(sound)))
        writer.encrypt("secret" + str(rng.random()), algorithm=rng.choice(["RC4-40", "RC4-128"]))
        target = io.BytesIO()
        writer.write(target)
        return target.getvalue()

    def cut(rng: random.Random, secret: Path) -> bytes:
        return sound[: rng.randint(1, len(sound) - 30)]

    return {
        "pdf bomb": (".pdf", "any", "", bomb),
        "pdf slow": (".pdf", "any", "", slow),
        "pdf loop": (".pdf", "any", "", loop),
        "pdf tree": (".pdf", "any", "", tree),
        "pdf form": (".pdf", "any", "", form),
        "pdf previous": (".pdf", "any", "", previous),
        "pdf nested": (".pdf", "any", "", nested),
        "pdf outside": (".pdf", "any", "", outside),
        "pdf encrypted": (".pdf", "refused", "encrypted", encrypted),
        "pdf scanned": (".pdf", "refused", "scanned", lambda rng, secret: pdf([b"q Q"] * rng.randint(1, 20))),
        "pdf cut": (".pdf", "any", "", cut),
        "pdf flipped": (".pdf", "any", "", lambda rng, secret: mutated(sound, rng)),
    }


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, removed or doubled."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 12)):
        i = rng.randrange(len(out))
        kind = rng.random()
        if kind < 0.7:
            out[i] = rng.randrange(256)
        elif kind < 0.85:
            del out[i : i + rng.randint(1, 30)]
        else:
            out[i:i] = out[i : i + rng.randint(1, 300)]
    return bytes(out)

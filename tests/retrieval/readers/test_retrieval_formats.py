"""The readers of JSON Lines, pdf and docx: bytes -> documents, or the reason why not."""

from __future__ import annotations

import io
import json
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retrieval.readers.limits import LeftOut, Limits
from retrieval.readers.pdf import paragraphs, read_pdf
from retrieval.readers.records import Record, read_records
from retrieval.readers.word import read_docx
from retrieval.types import Block, Passage
from tools.torture.packed import docx, paragraph, pdf, show

# Records -------------------------------------------------------------------------------------------------------------


def records(data: bytes, **limits: int) -> tuple[list[Record], str]:
    """The good records, and what is said of the others."""
    left_out = LeftOut()
    found = list(read_records(io.BytesIO(data), Limits(**limits), left_out, lambda: None))
    return found, left_out.summary("records")


def rows(*values: object) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def test_a_record() -> None:
    value = {
        "id": 7,
        "title": " A\ntitle ",
        "text": "One\nline.\n \n\nTwo.\x00",
        "meta": {"a": [1], "b": None, "c": 1.5},
    }
    found, said = records(b"\n" + rows({**value, "url": "u", "vector": [1, 2], "a": "beside"}))
    assert said == ""
    assert found == [
        ("7", "A title", [Block("One line.", 2, 2), Block("Two.", 2, 2)], {"a": "[1]", "url": "u", "c": 1.5})
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"id": 1}', "no 'text'"),
        (b'{"text": 1}', "its 'text' is not a string"),
        (b'{"text": " "}', "its 'text' is empty"),
        (b'{"text": ' + b"[" * 10**5, "JSON nested too deeply"),
        (b'{"text": "x", "n": ' + b"9" * 5000 + b"}", "not JSON that can be read: a number is too long"),
        (b'{"text": "' + b"x" * 2000 + b'"}', "longer than 1,000 bytes"),
        (b"\0\1\2", "not JSON"),
        (b"\xff\0\0\1" * 20, "it is not text"),
    ],
)
def test_broken_records_are_counted_with_their_lines(line: bytes, reason: str) -> None:
    limit = 10**6 if len(line) > 3000 else 1000
    found, said = records(
        b"\n".join([rows({"text": "a"}).strip(), line, *[b"bad"] * 4, b"", b'{"text": "b"}']), max_line_chars=limit
    )
    assert [(name, blocks[0].start) for name, _, blocks, _ in found] == [("1", 1), ("8", 8)]
    assert said.startswith(f"5 of 7 records left out (line 2: {reason}")
    assert said.endswith("; line 3: not JSON: Expecting value; line 4: not JSON: Expecting value; and 2 more)")


def test_records_with_the_same_id_stay_apart() -> None:
    found, said = records(rows(*({"id": name, "text": "x"} for name in ["a", "a", "a@2", "a", 5, "5", None, ""])))
    assert [name for name, *_ in found] == ["a", "a@2", "a@2@3", "a@4", "5", "5@6", "7", "8"]
    assert said == "the id of an earlier record: '@' and the line number were added to it (4 records)"


@given(st.lists(st.integers(0, 10**9).map(str), max_size=300), st.integers(1, 50))
def test_only_ids_that_repeat_are_changed(names: list[str], size: int) -> None:
    found, _ = records(rows(*({"id": name, "text": "x" * size} for name in names)))
    seen: set[str] = set()
    for name, (given_name, *_) in zip(names, found, strict=True):
        assert (given_name == name) == (name not in seen)
        seen |= {name, given_name}
    assert len({each[0] for each in found}) == len(names)


def test_many_ids_are_told_apart() -> None:
    found, said = records(rows(*({"id": i, "text": "x"} for i in range(5000))))
    assert ([name for name, *_ in found], said) == ([str(i) for i in range(5000)], "")


def test_metadata_is_bounded_and_storable() -> None:
    meta = {"long": "x" * 1001, "big": 10**30, "bad": "\ud800\x1b", "deep": {"a": 1}}
    many = {f"k{i}": i for i in range(60)}
    found, said = records(
        rows({"text": "x", "metadata": {**meta, **many}}) + b'{"text": "x", "metadata": {"n": NaN}}\n'
    )
    kept = found[0][3]
    assert len(kept) == 50
    assert (kept["big"], kept["bad"], kept["deep"]) == (str(10**30), "\ufffd ", '{"a": 1}')
    assert found[1][3] == {"n": "NaN"}
    assert "metadata 'long', longer than 1,000 characters, left out (1 records)" in said
    assert "metadata beyond 50 values left out (13 records)" in said


def test_a_long_or_strange_id_is_one_short_line() -> None:
    found, _ = records(rows(*({"id": name, "text": "x"} for name in ("a" * 5000, "a" * 4999, "a\nb\ud800\u202e"))))
    assert [len(name) for name, *_ in found[:2]] == [299, 299]
    assert found[0][0] != found[1][0]
    assert found[2][0] == "a\\u000ab\\ud800\\u202e"


def test_a_title_stands_for_a_text_that_is_empty() -> None:
    assert records(rows({"title": "T", "text": ""}))[0] == [("1", "T", [Block("T", 1, 1)], {})]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_records_in_other_encodings(encoding: str) -> None:
    text = "".join(json.dumps({"text": f"Grüße {i}"}, ensure_ascii=False) + "\n" for i in range(5000))
    found, said = records(text.encode(encoding))
    assert ([blocks[0].text for _, _, blocks, _ in found], said) == ([f"Grüße {i}" for i in range(5000)], "")


# pdf -----------------------------------------------------------------------------------------------------------------


def read_pages(data: bytes) -> tuple[str, list[Block], str]:
    left_out = LeftOut()
    title, blocks = read_pdf(io.BytesIO(data), left_out, lambda: None)
    return title, blocks, left_out.summary("pages")


def test_pdf_paragraphs_and_pages() -> None:
    lines = [
        *(
            "On bridges",
            "The old bridge over the river was built by a well-known engi-",
            "neer of the time. It stands.",
        ),
        *("It was opened in 1932, and it carries eight lanes of traf-", "fic every day of the year."),
    ]
    first = show(*lines)
    title, blocks, said = read_pages(pdf([first, show("Second page."), show("1. one", "2. two")]))
    assert (title, said) == ("On bridges", "")
    assert blocks == [
        Block(
            "On bridges The old bridge over the river was built by a well-known engineer of the time. It stands.", 1, 1
        ),
        Block("It was opened in 1932, and it carries eight lanes of traffic every day of the year.", 1, 1),
        Block("Second page.", 2, 2),
        Block("1. one", 3, 3),
        Block("2. two", 3, 3),
    ]


def test_paragraphs_of_a_page() -> None:
    text = (
        "A first line that is long enough here\nand goes on.\n\nBlank above.\n    Indented.\n• item\n(a) other\nco-\nOp"
    )
    assert paragraphs(text) == [
        *(
            "A first line that is long enough here and goes on.",
            "Blank above.",
            "Indented.",
            "• item",
            "(a) other co- Op",
        )
    ]


def test_pdf_made_by_another_program() -> None:
    pytest.importorskip("reportlab", reason="needs reportlab, which writes pdf files")
    from reportlab.lib.styles import getSampleStyleSheet
    from reportlab.platypus import PageBreak, Paragraph, SimpleDocTemplate

    words = [f"word{i}" for i in range(400)]
    body = getSampleStyleSheet()["BodyText"]
    target = io.BytesIO()
    halves = [Paragraph(" ".join(words[:200]) + ".", body), PageBreak(), Paragraph(" ".join(words[200:]) + ".", body)]
    SimpleDocTemplate(target, title="Of words", author="x").build(halves)
    title, blocks, said = read_pages(target.getvalue())
    assert (title, said) == ("Of words", "")
    for page, expected in ((1, words[:200]), (2, words[200:])):
        assert " ".join(block.text for block in blocks if block.start == page) == " ".join(expected) + "."


def test_encrypted_pdf() -> None:
    pypdf = pytest.importorskip("pypdf")
    for password, opens in (("", True), ("secret", False)):
        writer = pypdf.PdfWriter(clone_from=pypdf.PdfReader(io.BytesIO(pdf([show("Some text.")]))))
        writer.encrypt(user_password=password, owner_password="owner", algorithm="RC4-128")  # noqa: S106
        target = io.BytesIO()
        writer.write(target)
        if opens:
            assert [block.text for block in read_pages(target.getvalue())[1]] == ["Some text."]
        else:
            with pytest.raises(ValueError, match=r"^it is encrypted$"):
                read_pages(target.getvalue())


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"%PDF-1.4\n", "it is not a sound pdf file"),
        (b"", "it is not a sound pdf file"),
        (pdf([b"q Q"] * 3), "it holds no text; its pages may be scanned images"),
    ],
)
def test_pdf_that_cannot_be_read(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_pages(data)


# docx ----------------------------------------------------------------------------------------------------------------


def read_word(data: bytes, **limits: int) -> tuple[str, list[Block]]:
    return read_docx(io.BytesIO(data), Limits(**limits))


def test_docx() -> None:
    row = "<w:tr>" + "".join(f"<w:tc>{paragraph(text)}</w:tc>" for text in ("Ann", "42")) + "</w:tr>"
    body = [
        *(paragraph("Report", "Heading1"), paragraph("First."), paragraph("Setup", "Heading2"), paragraph("A &lt; B")),
        *(f"<w:tbl>{row}</w:tbl>", paragraph(""), paragraph("Last.")),
    ]
    assert read_word(docx("".join(body))) == (
        "Report",
        [Block("First.", 1, 1), *(Block(t, i, i, "Setup") for i, t in ((2, "A < B"), (3, "Ann | 42"), (4, "Last.")))],
    )


def test_docx_title_comes_from_its_properties() -> None:
    core = b'<p xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:title>Mine &amp; yours</dc:title></p>'
    assert read_word(docx(paragraph("x"), {"docProps/core.xml": core}))[0] == "Mine & yours"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a sound docx"),
        (b"PK\x03\x04", "not a sound docx"),
        (docx(paragraph("x"))[:-30], "not a sound docx"),
        (docx("<w:p>"), "not a sound docx"),
        (docx(paragraph("&x;"), before='<!DOCTYPE d [<!ENTITY x "y">]>'), "'word/document.xml' declares XML entities"),
        (docx(paragraph("x"), {"../x": b""}), "a part whose path leads out of it"),
        (docx(paragraph("x"), {"word/x.xml": b" " * 10**7, "word/y.xml": b" " * 10**7}), "as a zip bomb does"),
        (docx(paragraph("x"), {"x.bin": b" " * 3 * 10**7}), "as a zip bomb does"),
        (docx(paragraph("x"), {"word/x.xml": b'<?xml version="1.0" encoding="cp037"?><x/>'}), "in an encoding that no"),
        (bytes.fromhex("d0cf11e0a1b11ae1") + b"x" * 100, "it is encrypted, or an old .doc file"),
    ],
)
def test_docx_that_cannot_be_read(data: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_word(data, max_unpacked_mb=15)


def test_a_zip_that_is_no_docx() -> None:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(ValueError, match="it is not a docx file"):
        read_word(target.getvalue())


def test_places_are_named_by_their_unit() -> None:
    places = [Passage("", "", "", "a", 3, 4, unit).location for unit in ("line", "page", "paragraph", "record")]
    assert places == ["a:3", "a p. 3", "a par. 3", "a record 3"]

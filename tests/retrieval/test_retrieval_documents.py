"""Files and folders to Documents: what is found, decoded, refused and skipped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from retrieval.documents import READERS, decode, read_documents
from retrieval.types import Document


def read(*paths: Path | str) -> tuple[list[Document], dict[str, str]]:
    """The documents, and the reasons for what was skipped."""
    skipped: dict[str, str] = {}
    return list(read_documents(paths, skipped.__setitem__)), skipped


def write(folder: Path, **files: str | bytes) -> None:
    """`a__b_txt='x'` writes a/b.txt."""
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def test_a_folder_is_read_in_order_with_its_own_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, docs__b_txt="b", docs__a__z_md="z", docs__a__y_HTML="y", docs__c_htm="c", docs__d_markdown="d")
    monkeypatch.chdir(tmp_path)
    documents, skipped = read("./docs/")
    assert [document.id for document in documents] == [
        "docs/a/y.HTML",
        "docs/a/z.md",
        "docs/b.txt",
        "docs/c.htm",
        "docs/d.markdown",
    ]
    assert all(document.source == document.id for document in documents)
    assert skipped == {}
    assert read(".")[0][0].id == "docs/a/y.HTML"


def test_hidden_files_and_folders_are_passed_over_unless_named(tmp_path: Path) -> None:
    write(tmp_path, _hidden_txt="no", _git__a_txt="no", a_txt="yes")
    assert [Path(d.id).name for d in read(tmp_path)[0]] == ["a.txt"]
    assert [d.text for d in read(tmp_path / ".hidden.txt", tmp_path / ".git")[0]] == ["no", "no"]


def test_what_cannot_be_read_in_a_folder_is_skipped_with_a_reason(tmp_path: Path) -> None:
    write(tmp_path, a_txt="yes", b_pdf="%PDF", c_txt=b"a\0b", d_txt=" \n\n", README="no suffix")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, skipped = read(tmp_path)
    assert [d.text for d in documents] == ["yes"]
    reasons = {Path(name).name: reason for name, reason in skipped.items()}
    assert set(reasons) == {"b.pdf", "c.txt", "d.txt", "README", "link.txt", "pipe.txt"}
    assert "unknown kind '.pdf'" in reasons["b.pdf"]
    assert "not text" in reasons["c.txt"]
    assert "no text" in reasons["d.txt"]
    assert "broken link" in reasons["link.txt"]
    assert "regular file" in reasons["pipe.txt"]


def test_links_inside_a_folder_are_followed_once_and_those_that_lead_out_are_skipped(tmp_path: Path) -> None:
    write(tmp_path, docs__a__x_txt="x", outside__y_txt="y")
    docs = tmp_path / "docs"
    (docs / "b").symlink_to(docs / "a")
    (docs / "loop").symlink_to(docs)
    (docs / "z.txt").symlink_to(docs / "a" / "x.txt")
    (docs / "circle").symlink_to(docs / "circle")
    (docs / "out").symlink_to(tmp_path / "outside")
    (docs / "out.txt").symlink_to(tmp_path / "outside" / "y.txt")
    documents, skipped = read(docs)
    assert [d.text for d in documents] == ["x"]
    assert sorted(Path(name).name for name in skipped) == ["circle", "out", "out.txt"]
    assert sum("leads out" in reason for reason in skipped.values()) == 2


def test_a_file_reached_twice_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, docs__a_txt="a", docs__b_txt="b")
    (tmp_path / "other").symlink_to(tmp_path / "docs")
    documents, _ = read(tmp_path / "docs" / "b.txt", tmp_path / "docs", tmp_path / "other", tmp_path / "docs" / "a.txt")
    assert [d.text for d in documents] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "'{}' does not exist; name files (.htm"),
        ("a.docx", b"x", "cannot read '{}': unknown kind '.docx'; known kinds: .htm"),
        ("a", b"x", "cannot read '{}': unknown kind ''"),
        ("a.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "cannot read '{}': it is not text"),
        ("a.txt", bytes(range(1, 32)) * 4, "cannot read '{}': it is not text"),
        ("a.txt", b"\xff\xfea", "cannot read '{}': it is not text (it begins as UTF-16"),
        ("a" * 300, None, "cannot read '{}': File name too long"),
        ("a.md", b"", "cannot read '{}': it holds no text"),
    ],
)
def test_a_named_file_that_cannot_be_read_is_an_error(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"does not exist|cannot read") as error:
        read(path)
    assert message.format(path) in str(error.value)


def test_a_missing_name_is_found_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a")
    with pytest.raises(ValueError, match="does not exist"):
        next(read_documents([tmp_path / "a.txt", tmp_path / "missing"], lambda *_: None))


def test_a_folder_without_a_readable_document_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, empty__a_png="x", binary__a_txt=b"\0", good__a_txt="a")
    for folder in ("empty", "binary"):
        with pytest.raises(ValueError, match=f"{folder}' holds no document that can be read; known kinds: .htm"):
            read(tmp_path / "good", tmp_path / folder)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_file_that_may_not_be_opened_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a", b_txt="b")
    (tmp_path / "b.txt").chmod(0)
    assert list(read(tmp_path)[1].values()) == ["Permission denied"]


def test_a_name_that_is_not_utf8_can_be_printed_and_stored(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    (document,) = read(tmp_path)[0]
    assert document.id.endswith("/caf\\xe9.txt")
    assert document.title.encode("utf-8")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16-le", "utf-16-be", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, end: str) -> None:
    text = end.join(["Grüße", "", "Die Straße – “schön”.", "Ende."])
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "a.txt").write_bytes(mark + text.encode(encoding))
    (document,) = read(tmp_path / "a.txt")[0]
    assert document.title == "Grüße"
    (block,) = document.blocks
    assert (block.text, block.start, block.end) == ("Die Straße – “schön”. Ende.", 3, 4)


def test_a_few_control_characters_become_spaces() -> None:
    assert decode(b"red \x1b[31m text\x0c" + b"." * 200) == "red  [31m text " + "." * 200


@pytest.mark.parametrize(
    ("name", "title"), [("getting-started_guide.txt", "Getting started guide"), ("README.md", "README"), ("-.md", "-")]
)
def test_without_a_title_the_file_name_is_made_readable(tmp_path: Path, name: str, title: str) -> None:
    (tmp_path / name).write_text("Only a sentence that ends as sentences do.")
    assert read(tmp_path / name)[0][0].title == title


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


SOUP = st.text(alphabet=st.sampled_from("<>!-/=\"'&;#`~*_[]()|:> \n\tab1dpvithr?\\x\u2028\x1c"), max_size=200)


@pytest.mark.parametrize("suffix", sorted(READERS))
@given(content=st.one_of(st.binary(max_size=200), SOUP.map(str.encode)))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_sound_document_or_a_value_error(scratch: Path, suffix: str, content: bytes) -> None:
    path = scratch / f"a{suffix}"
    path.write_bytes(content)
    try:
        (document,) = read(path)[0]
    except ValueError:
        return
    num_lines = decode(content).count("\n") + 1
    assert document.title.strip()
    last = 0
    for block in document.blocks:
        assert block.text.strip()
        assert 1 <= block.start <= block.end <= num_lines
        assert block.start >= last
        last = block.start
        if suffix in (".md", ".txt"):
            assert block.text.count("\n") in (0, block.end - block.start)

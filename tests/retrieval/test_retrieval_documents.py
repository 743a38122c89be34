"""Files and folders to Documents: what is found, decoded, refused and skipped."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from retrieval.documents import find_files, printable_path, read_documents
from retrieval.readers.encodings import decode
from retrieval.readers.files import READERS, Job, kind_of, read_file
from retrieval.readers.limits import LeftOut
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
    write(tmp_path, a_txt="yes", b_exe="MZ", c_txt=b"a\0b", d_txt=" \n\n", README="no suffix")
    (tmp_path / "link.txt").symlink_to(tmp_path / "nowhere.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    documents, skipped = read(tmp_path)
    assert [d.text for d in documents] == ["yes"]
    reasons = {Path(name).name: reason for name, reason in skipped.items()}
    assert set(reasons) == {"b.exe", "c.txt", "d.txt", "README", "link.txt", "pipe.txt"}
    assert "unknown kind '.exe'" in reasons["b.exe"]
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
        ("missing.txt", None, "'{}' does not exist; name files (.docx, .htm"),
        ("a.doc", b"x", "cannot read '{}': unknown kind '.doc'; known kinds: .docx, .htm"),
        ("a.gz", b"x", "cannot read '{}': unknown kind '.gz'"),
        ("a.stdin", b"x", "cannot read '{}': unknown kind '.stdin'"),
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
        with pytest.raises(ValueError, match=f"{folder}' holds no document that can be read; known kinds: .docx"):
            read(tmp_path / folder)


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


@pytest.mark.parametrize(
    ("name", "title"), [("getting-started_guide.txt", "Getting started guide"), ("README.md", "README"), ("-.md", "-")]
)
def test_without_a_title_the_file_name_is_made_readable(tmp_path: Path, name: str, title: str) -> None:
    (tmp_path / name).write_text("Only a sentence that ends as sentences do.")
    assert read(tmp_path / name)[0][0].title == title


def test_one_bad_file_among_good_ones_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path, good__a_txt="a", bad__a_txt=b"\0", b_txt=b"\0")
    documents, skipped = read(tmp_path / "b.txt", tmp_path / "good", tmp_path / "bad")
    assert [d.text for d in documents] == ["a"]
    assert sorted(Path(name).parent.name for name in skipped) == sorted([tmp_path.name, "bad"])
    with pytest.raises(ValueError, match=r"cannot read '.*b.txt': it is not text .*\(and 1 other files\)"):
        read(tmp_path / "b.txt", tmp_path / "bad")


def test_files_carry_what_tells_whether_they_have_changed(tmp_path: Path) -> None:
    write(tmp_path, docs__a_txt="four")
    os.utime(tmp_path / "docs" / "a.txt", ns=(1, 1_234_567_890))
    named, inside = find_files([tmp_path / "docs" / "a.txt"], pytest.fail), find_files([tmp_path / "docs"], pytest.fail)
    assert [(file.size, file.mtime_ns) for file in (*named, *inside)] == [(4, 1_234_567_890)] * 2
    assert (named[0].folder, inside[0].folder) == ("", (tmp_path / "docs").as_posix())


# Patterns ------------------------------------------------------------------------------------------------------------

TREE = ("a.md", "b.txt", "x/c.md", "x/d.txt", "x/y/e.md", "x/y/f.MD", "z1/g.md", "z2/h.md", ".git/i.md", "[k]/j.md")


@pytest.mark.parametrize(
    "pattern", ["*.md", "**/*.md", "*/*.md", "x/**/*.md", "x/*", "z?/*.md", "z[12]/*", "z[!1]/*", "**", "x/**", "?.txt"]
)
def test_patterns_find_what_the_shell_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    for name in TREE:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    shell = f"shopt -s globstar; printf '%s\\n' {pattern}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    expected = find_files(done.stdout.split("\n")[:-1], pytest.fail)
    assert {file.source for file in find_files([pattern], pytest.fail)} == {file.source for file in expected}
    assert expected


def test_a_name_with_wildcards_that_exists_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "[k]").mkdir()
    (tmp_path / "[k]" / "a*.md").write_text("a")
    (tmp_path / "[k]" / "ab.md").write_text("b")
    assert [d.text for d in read(tmp_path / "[k]" / "a*.md")[0]] == ["a"]
    assert [d.text for d in read(tmp_path / "[k]")[0]] == ["a", "b"]


def test_a_pattern_without_matches_is_an_error_and_links_do_not_lead_out(tmp_path: Path) -> None:
    write(tmp_path, docs__a_txt="a", docs__b_png="b", out__c_txt="c")
    (tmp_path / "docs" / "x").symlink_to(tmp_path / "out")
    documents, skipped = read(tmp_path / "docs" / "*")
    assert [d.text for d in documents] == ["a"]
    assert {Path(name).name: reason.split(" ")[0] for name, reason in skipped.items()} == {
        "b.png": "unknown",
        "x": "it",
    }
    for pattern, message in [("*.md", "matches no file"), ("*.png", "holds no document"), ("no/*.md", "is no folder")]:
        with pytest.raises(ValueError, match=message):
            read(tmp_path / "docs" / pattern)


def test_a_pattern_does_not_walk_where_nothing_can_match(tmp_path: Path) -> None:
    write(tmp_path, a_txt="a", sub__b_txt="b")
    (tmp_path / "sub" / "out").symlink_to(tmp_path.parent)  # would be reported if it were seen
    assert [d.text for d in read(tmp_path / "*.txt")[0]] == ["a"]
    assert read(tmp_path / "*.txt")[1] == {}


# Records, corpora, standard input ------------------------------------------------------------------------------------


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_records_are_documents_of_their_own(tmp_path: Path) -> None:
    first = {"id": "x", "title": "T", "text": "one\n\ntwo", "metadata": {"year": 1990}, "url": "u"}
    rows = jsonl(first, {"text": "b"})
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "a.ndjson").write_text(rows)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    documents, skipped = read(tmp_path)
    assert skipped == {}
    assert [Path(d.id).name for d in documents] == [
        *("a.jsonl#x", "a.jsonl#2", "a.jsonl.gz#x", "a.jsonl.gz#2", "a.ndjson#x", "a.ndjson#2")
    ]
    for first, second in zip(documents[::2], documents[1::2], strict=True):
        assert (first.title, first.text, first.unit) == ("T", "one\n\ntwo", "record")
        assert dict(first.meta) == {"year": 1990, "url": "u"}
        assert {(block.start, block.end) for block in first.blocks} == {(1, 1)}
        assert (second.title, second.blocks[0].start, Path(second.source).suffix) == ("", 2, Path(first.source).suffix)


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
@pytest.mark.parametrize("beside", ["queries.jsonl", "qrels"])
def test_of_a_beir_folder_only_the_corpus_is_read(tmp_path: Path, name: str, beside: str) -> None:
    folder = tmp_path / "docs" / "beir"
    folder.mkdir(parents=True)
    rows = jsonl({"_id": "d1", "title": "T", "text": "x", "metadata": {}}).encode()
    (folder / name).write_bytes(gzip.compress(rows) if name.endswith("gz") else rows)
    (folder / "answers.jsonl").write_text(jsonl({"_id": "a", "text": "no"}))
    documents, _ = read(folder)
    assert len(documents) == 2  # without queries or judgements it is a folder as any other
    if beside == "qrels":
        (folder / "qrels").mkdir()
        (folder / "qrels" / "test.tsv").write_text("q\td\t1\n")
    else:
        (folder / beside).write_text(jsonl({"_id": "q", "text": "no"}))
    for path in (folder, tmp_path / "docs", tmp_path / "**"):
        documents, skipped = read(path)
        assert [Path(d.id).name for d in documents] == [f"{name}#d1"]
        assert skipped == {}
    assert [d.text for d in read(folder / "answers.jsonl")[0]] == ["no"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"A title\n\nSome text.\n", [("stdin", "A title", "Some text.", "line")]),
        (b"Only text.", [("stdin", "Standard input", "Only text.", "line")]),
        (b'\n \n{"id": "a", "text": "x"}\nbad\n', [("stdin#a", "", "x", "record")]),
        (b'\xef\xbb\xbf{"text": "x"}', [("stdin#1", "", "x", "record")]),
        (b'{"no": "x"}\n', [("stdin", "Standard input", '{"no": "x"}', "line")]),
        (b'{"text": broken\n', [("stdin", "Standard input", '{"text": broken', "line")]),
        ("Grüße".encode("utf-16"), [("stdin", "Standard input", "Grüße", "line")]),
        (b'{"text": "' + b"x" * 3_000_000 + b'"}', [("stdin#1", "", "x" * 3_000_000, "record")]),
    ],
)
def test_standard_input(data: bytes, expected: list[tuple[str, str, str, str]], tmp_path: Path) -> None:
    code = (
        "import json, sys; from retrieval.documents import read_documents\n"
        "skips = []\nfor d in read_documents(['-'], lambda *skip: skips.append(skip)):\n"
        "    print(json.dumps([d.id, d.title, d.text, d.unit]))\nprint(json.dumps(skips))\n"
    )
    root = Path(__file__).resolve().parent.parent.parent
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], input=data, cwd=root, env=environment, capture_output=True)
    assert done.stderr == b""
    *documents, skips = [json.loads(line) for line in done.stdout.splitlines()]
    assert [tuple(document) for document in documents] == expected
    assert [source for source, _ in skips] == (["stdin"] if b"bad" in data else [])
    assert list(tmp_path.iterdir()) == []


# Names ---------------------------------------------------------------------------------------------------------------


@example(["\ud800"])
@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=12), max_size=3))
def test_a_printed_path_stands_on_one_line_and_names_one_file(parts: list[str]) -> None:
    path = Path("/", *parts)
    shown = printable_path(path)
    assert shown.isprintable()
    assert shown.encode()
    other = Path("/", *(part.encode("unicode_escape").decode() for part in parts))
    assert (printable_path(other) == shown) == (other == path)


def test_ids_of_records_and_files_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(jsonl({"id": "b.md", "text": "x"}, {"id": "b.jsonl#1", "text": "y"}))
    (tmp_path / "a.jsonl#b.md").write_text("z")
    (tmp_path / "a.jsonl#b.jsonl").write_text(jsonl({"text": "w"}))
    (tmp_path / "C#.md").write_text("v")
    documents, _ = read(tmp_path)
    assert len({document.id for document in documents}) == 5
    assert any(document.id.endswith("/C#.md") for document in documents)


# Any bytes -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


SOUP = st.text(alphabet=st.sampled_from("<>!-/=\"'&;#`~*_[]()|:> \n\tab1dpvithr?\\x\u2028\x1c"), max_size=200)


@pytest.mark.parametrize("suffix", sorted(READERS))
@example(content=b'{"":0,"text":"!","":NaN}')
@given(content=st.one_of(st.binary(max_size=200), SOUP.map(str.encode)))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_sound_document_or_a_value_error(scratch: Path, suffix: str, content: bytes) -> None:
    path = scratch / f"a{suffix}"
    path.write_bytes(content)
    assert kind_of(path) == suffix
    try:
        (document,) = read_file(Job(str(path), path.name, str(scratch.resolve())), LeftOut(), lambda: None)
    except ValueError:
        return
    num_lines = decode(content).count("\n") + 1
    assert document.title.strip() or document.unit == "record"  # a record need not have one
    last = 0
    for block in document.blocks:
        assert block.text.strip()
        assert 1 <= block.start <= block.end <= num_lines
        assert block.start >= last
        last = block.start
        if suffix in (".md", ".txt", ".rst"):
            assert block.text.count("\n") in (0, block.end - block.start)

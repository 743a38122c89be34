"""Files -> raw rows: every kind and compression, places, broken rows and broken files, bounded memory."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from training.data.decoding import Raw, is_known, read_raw

ROWS = [{"text": "Zürich\r\nis a city"}, {"text": 'a "quoted", part\n\nand 你好'}, {"text": "third"}]


def read(path: Path, format_: str | None = None) -> list[Raw]:
    return list(read_raw(path, path.name, format_))


def values(path: Path, format_: str | None = None) -> list[object]:
    rows = read(path, format_)
    assert [row.problem for row in rows] == [None] * len(rows)
    return [row.value for row in rows]


def json_lines(rows: list[dict[str, str]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)


def as_csv(rows: list[dict[str, str]], delimiter: str) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


CONTENTS = {
    ".jsonl": json_lines(ROWS),
    ".ndjson": json_lines(ROWS),
    ".json": json.dumps(ROWS).encode(),
    ".csv": as_csv(ROWS, ","),
    ".tsv": as_csv(ROWS, "\t"),
}
COMPRESSIONS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: bytes(pyarrow.compress(data, "zstd", asbytes=True)),  # another library than the one that reads
}


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", CONTENTS)
def test_every_kind_in_every_compression(tmp_path, suffix, compression):
    path = tmp_path / f"rows{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](CONTENTS[suffix]))
    assert values(path) == ROWS
    assert is_known(path)


@pytest.mark.parametrize("batch", [1, 2500])
def test_parquet_and_both_forms_of_arrow(tmp_path, batch):
    rows = [{"text": f"text {i}", "turns": [{"role": "user", "content": str(i)}]} for i in range(2500)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=batch * 40)
    with pyarrow.ipc.new_stream(str(tmp_path / "b.arrow"), table.schema) as stream:
        stream.write_table(table, max_chunksize=batch)
    with pyarrow.ipc.new_file(str(tmp_path / "c.arrow"), table.schema) as file:
        file.write_table(table, max_chunksize=batch)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        assert values(tmp_path / name) == rows
    assert read(tmp_path / "a.parquet")[16].place == "a.parquet row 17"


def test_places_are_lines_or_numbers_of_rows(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\n{"text": "two"}')
    (tmp_path / "a.json").write_bytes(b'[{"text": "one"},\n\n{"text": "two"}]')
    (tmp_path / "a.csv").write_bytes(b'text,n\n"one\nmore",1\ntwo,2\n')
    assert [row.place for row in read(tmp_path / "a.jsonl")] == ["a.jsonl:1", "a.jsonl:3"]
    assert [row.place for row in read(tmp_path / "a.json")] == ["a.json row 1", "a.json row 2"]
    assert [row.place for row in read(tmp_path / "a.csv")] == ["a.csv:2", "a.csv:4"]


def test_byte_order_marks_and_line_ends(tmp_path):
    for suffix, content in CONTENTS.items():
        (tmp_path / f"a{suffix}").write_bytes(codecs.BOM_UTF8 + content)
        assert values(tmp_path / f"a{suffix}") == ROWS
    (tmp_path / "b.jsonl").write_bytes(json_lines(ROWS).replace(b"\n", b"\r\n"))
    assert values(tmp_path / "b.jsonl") == ROWS
    (tmp_path / "b.txt").write_bytes(codecs.BOM_UTF8 + b"one\r\ntwo\r\n")
    assert values(tmp_path / "b.txt") == [{"text": "one\ntwo\n"}]
    assert values(tmp_path / "b.txt", "lines") == [{"text": "one"}, {"text": "two"}]


def test_ways_to_take_a_text_apart(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# Title\n\nOne line,\nanother.\n   \n\nThe end.")
    assert [(row.place, row.value["text"]) for row in read(path)] == [("a.md", path.read_text())]
    assert [(row.place, row.value["text"]) for row in read(path, "paragraphs")] == [
        ("a.md:1", "# Title"),
        ("a.md:3", "One line,\nanother."),
        ("a.md:7", "The end."),
    ]
    assert [row.place for row in read(path, "lines")] == ["a.md:1", "a.md:3", "a.md:4", "a.md:7"]


def test_json_under_other_names(tmp_path):
    pairs = [["prompt", "response"]]
    for name, content, expected in (
        ("pairs.txt", json.dumps(pairs).encode(), pairs),  # Speaker's examples are called so
        ("lines.json", json_lines(ROWS), ROWS),
        ("one.json", b'{"text": ["a", "b"], "score": [1, 2]}', [{"text": ["a", "b"], "score": [1, 2]}]),
        ("data.json", json.dumps({"version": 1, "data": ROWS}).encode(), ROWS),
        ("text.txt", b"[1] A note, no JSON", [{"text": "[1] A note, no JSON"}]),
    ):
        (tmp_path / name).write_bytes(content)
        assert values(tmp_path / name) == expected, name
    assert values(tmp_path / "pairs.txt", "text") == [{"text": json.dumps(pairs)}]


def test_a_broken_row_does_not_take_the_others_with_it(tmp_path):
    bad = (b'{"text": "b', b'{"text": "\xff"}', b"[" * 100_000, b'{"n": ' + b"1" * 5000 + b"}")
    for line in bad:
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
        rows = read(tmp_path / "a.jsonl")
        assert [row.value for row in rows] == [{"text": "a"}, None, {"text": "c"}]
        assert rows[1].place == "a.jsonl:2"
        assert rows[1].problem
    (tmp_path / "a.csv").write_bytes(b'text,n\na,1\nb,1,2\n\xff,1\n"c"d,1\n"e",\n')
    rows = read(tmp_path / "a.csv")
    assert [row.value for row in rows] == [{"text": "a", "n": "1"}, None, None, None, {"text": "e", "n": None}]
    assert [row.problem for row in rows][1:4] == [
        "3 cells where the first line names 2 columns",
        "not UTF-8 text",
        "not a row of a table (',' expected after '\"')",
    ]
    (tmp_path / "b.csv").write_bytes(b'text\na\n"open\nb\n')
    assert [bool(row.problem) for row in read(tmp_path / "b.csv")] == [False, True]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", codecs.BOM_UTF16_LE + "{}".encode("utf-16-le"), "a.jsonl: UTF-16 text; convert it first: iconv"),
        ("a.txt", "Zürich".encode("latin-1"), r"a.txt: not UTF-8 text \(byte 1\); convert it first"),
        ("a.json", '["Zürich"]'.encode("latin-1"), "a.json: not UTF-8 text"),
        ("a.json", b'[{"text": "a"},\n{"text": }]', "a.json:2: not JSON: Expecting value"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: the first line must name the columns, each differently"),
        ("a.jsonl.gz", gzip.compress(json_lines(ROWS * 100))[:-20], "a.jsonl.gz: broken or cut off"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz: broken or cut off"),
        ("a.jsonl.zst", zstandard.compress(json_lines(ROWS * 100))[:-20], "a.jsonl.zst: broken or cut off"),
        ("a.jsonl.zst", b"no zstandard", "a.jsonl.zst: broken or cut off"),
        ("a.parquet", b"PAR1 and nothing else", "a.parquet: broken or cut off"),
        ("a.arrow", b"\xff\xff\xff\xff and nothing else", "a.arrow: broken or cut off"),
        ("a.parquet.gz", b"", "compressed within"),
        ("a.xlsx", b"", "a.xlsx: unknown kind of file; known: .jsonl"),
    ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / name)


def test_several_frames_of_zstandard(tmp_path):
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(zstandard.compress(json_lines([row])) for row in ROWS))
    assert values(tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".jsonl.gz", ".jsonl.zst"])
def test_an_empty_file_has_no_rows(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_bytes(COMPRESSIONS.get(Path(suffix).suffix, bytes)(b""))
    assert read(tmp_path / f"a{suffix}") == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    """A file of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    table = pyarrow.Table.from_pylist(ROWS * 20)
    parquet.write_table(table, folder / "a.parquet")
    with pyarrow.ipc.new_stream(str(folder / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    packed = {f".jsonl{name}": pack(CONTENTS[".jsonl"] * 20) for name, pack in COMPRESSIONS.items()}
    return CONTENTS | packed | {f".{name}": (folder / f"a.{name}").read_bytes() for name in ("parquet", "arrow")}


@given(st.data())
def test_damage_is_named_or_harmless(whole, tmp_path_factory, data):
    """Bytes changed anywhere, or the end missing: rows, or one line that begins with the file's name."""
    suffix = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[suffix])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    path.write_bytes(content)
    try:
        assert all(isinstance(row, Raw) for row in read_raw(path, path.name))
    except ValueError as error:
        assert re.match(rf"damaged{re.escape(suffix)}\b[^\n]*$", str(error))  # noqa: PT017  # most raise nothing


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_comes_back_from_json_lines_and_tables(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("any")
    rows = [{"text": text} for text in texts]
    (folder / "a.jsonl").write_bytes(json_lines(rows))
    assert values(folder / "a.jsonl") == rows
    for suffix, delimiter in ((".csv", ","), (".tsv", "\t")):
        if "\0" not in "".join(texts):  # Python's tables had none before 3.11
            (folder / f"a{suffix}").write_bytes(as_csv(rows, delimiter))
            assert values(folder / f"a{suffix}") == rows


def test_a_long_cell_of_a_table(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text\n" + b"x" * 300_000 + b"\n")
    assert len(read(tmp_path / "a.csv")[0].value["text"]) == 300_000


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path, suffix):
    """200 MB of rows, read in a process of its own, which may take 60 MB more than for a hundredth of them."""
    line = {"text": "some words of a row " * 100}
    for name, num in (("small", 1_000), ("large", 100_000)):
        path = tmp_path / f"{name}{suffix}"
        if suffix == ".parquet":
            schema = pyarrow.schema([("text", pyarrow.string())])
            with parquet.ParquetWriter(path, schema) as writer:
                for _ in range(num // 1000):
                    writer.write_table(pyarrow.Table.from_pylist([line] * 1000, schema))
            continue
        piece = as_csv([line] * 500, ",").partition(b"\n")[2] if suffix == ".csv" else json_lines([line] * 500)
        with {".gz": gzip.open, ".zst": zstandard.open}.get(path.suffix, open)(path, "wb") as file:
            file.write(b"text\n" if suffix == ".csv" else b"")
            for _ in range(num // 500):
                file.write(piece)
    code = (
        "import re, sys; from pathlib import Path; from training.data.decoding import read_raw\n"
        "num = sum(raw.problem is None for raw in read_raw(Path(sys.argv[1]), 'x'))\n"
        # getrusage would begin with the peak of the process that started this one.
        "print(num, re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])"
    )
    peaks = {}
    for name, num in (("small", 1_000), ("large", 100_000)):
        path = str(tmp_path / f"{name}{suffix}")
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        count, peak = map(int, done.stdout.split())
        assert count == num
        peaks[name] = peak // 1024  # MiB
    assert peaks["small"] < 100
    assert peaks["large"] - peaks["small"] < 60, peaks

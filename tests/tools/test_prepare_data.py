"""Preparing data: known sets become what training and the index read, from a fake hub on 127.0.0.1, and any other."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from file_server import COMMIT, Site, serving
from hypothesis import given
from hypothesis import strategies as st

from common.files import sha256_of
from retrieval.documents import read_documents
from tools.preparing.data import default_name
from tools.preparing.datasets import KNOWN_DATA, document, known_data, moderated, name_by_split, question
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import ChatRow, LabelledRow, PairRow, PreferenceRow, TextRow

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import json, sys
from click.testing import CliRunner
from tools.prepare_data import cli
results = [CliRunner().invoke(cli, arguments) for arguments in json.loads(sys.argv[1])]
print(json.dumps([(each.exit_code, each.stderr, repr(each.exception)) for each in results]))
"""
OIG = {"text": "\n<human>: Hi\n<bot>: Hello!", "metadata": {"source": "x"}}
LONG = {
    "text": "Doc [1] ...\nQuestion: why?\nAnswer: so",
    "prompt": "Doc [1] ...\nQuestion: why?",
    "completion": "\nAnswer: so",
}
HH = {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello!", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"}
SHP = {"post_id": "x", "history": "Why?", "human_ref_A": "So.", "human_ref_B": "No.", "labels": 1, "score_ratio": 3.0}
WIKIPEDIA = [
    {"id": "12", "url": "https://simple/Zurich", "title": "Zürich", "text": "Zürich is a city.\n\nIt has a lake."},
    {"id": "13", "url": "https://simple/None", "title": "None", "text": "  "},
    {"id": "14", "url": "https://simple/Bern", "title": "Bern", "text": "Bern is a city."},
]


def environment(home: Path, site: Site | None) -> dict[str, str]:
    address = site.url if site else "http://127.0.0.1:9"
    settings = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home / "hf"), "PARLEY_HOME": str(home)}
    return os.environ | settings


def run(*runs: list[str], home: Path, site: Site | None = None) -> list[tuple[int, str]]:
    """(exit code, stderr) of each command, all in one process."""
    arguments = json.dumps([[*each, "--retries", "0"] for each in runs])
    command = [sys.executable, "-c", DRIVER, arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(home, site), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert not [each for each in results if "SystemExit" not in each[2] and each[2] != "None"], results
    return [(code, said) for code, said, _ in results]


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def zst(content: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(content)


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


def rows_of(folder: Path, *wanted: type, **source: Any) -> list[Any]:
    return [row for _, row in read_rows(Source(str(folder), **source), wanted, Report())]


def visible(folder: Path) -> list[str]:
    files = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if not path.name.startswith("."))


# Known sets -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """All known sets, small, as the hub lays them out; the folder they are in, and what was said of each."""
    site = Site()
    oig = {
        "unified_chip2.jsonl": lines(OIG),
        "unified_ni.jsonl.gz": gzip.compress(lines(OIG, OIG)),
        "README.md": b"x" * 200,
    }
    site.add_repo("laion/OIG", oig | {"unified_ni.jsonl": lines(OIG, OIG)}, "datasets")
    tagged = [
        {"text": "<human>: How are you?", "metadata": {"labels": ["casual"]}},
        {"text": "Input: Hurt him\nOutput: needs intervention | hate"},
        {"text": "nobody knows"},
    ]
    site.add_repo("ontocord/OIG-moderation", {"OIG_safety_v0.2.jsonl": lines(*tagged)}, "datasets")
    long = {f"fine-tune/{name}.jsonl.zst": zst(lines(LONG)) for name in ("booksum", "natural_questions_10_200_docs")}
    long["pretrain/arxiv.jsonl.zst"] = zst(lines({"text": "A long text."}))
    site.add_repo("togethercomputer/Long-Data-Collections", long, "datasets")
    asked = [{"question": "who", "answer": ["he", "him"]}, {"question": "what", "answer": []}]
    open_ = {f"nq_open/{split}-00000-of-00001.parquet": parquet(asked) for split in ("train", "validation")}
    site.add_repo("google-research-datasets/nq_open", open_, "datasets")
    shp = {f"{subject}/{split}.json": lines(SHP) for subject in ("askbaking", "legaladvice")
           for split in ("train", "validation", "test")}  # fmt: skip
    site.add_repo("stanfordnlp/SHP", shp | {"README.md": b"x"}, "datasets")
    hh = {f"{part}/{split}.jsonl.gz": gzip.compress(lines(HH)) for part in ("harmless-base", "helpful-online")
          for split in ("train", "test")}  # fmt: skip
    hh["red-team-attempts/red_team_attempts.jsonl.gz"] = gzip.compress(lines({"transcript": "x"}))
    site.add_repo("Anthropic/hh-rlhf", hh, "datasets")
    wiki = {f"20231101.simple/train-0000{n}-of-00002.parquet": parquet(WIKIPEDIA[n : n + 2]) for n in (0, 1)}
    site.add_repo("wikimedia/wikipedia", wiki | {"20231101.de/train-00000-of-00001.parquet": b"x" * 200}, "datasets")
    home = tmp_path_factory.mktemp("known")
    names = [*KNOWN_DATA, "wikipedia-simple", "oig-small-chip2"]
    with serving(site):
        answers = run(*([name] for name in names), home=home, site=site)
    assert [code for code, _ in answers] == [0] * len(names), answers
    return home / "data", dict(zip(names, (said for _, said in answers), strict=True))


def test_each_known_set_is_what_its_use_says(prepared: tuple[Path, dict[str, str]]) -> None:
    data, said = prepared
    (chip2,) = rows_of(data / "oig-chip2", ChatRow)
    assert [message.content for message in chip2.conversation] == ["Hi", "Hello!"]
    assert len(rows_of(data / "oig", ChatRow, format="oig")) == 3, "of two versions of a file one is read"
    for name in ("booksum", "natural-questions"):
        (pair,) = rows_of(data / name, ChatRow, PairRow)
        assert (pair.prompt, pair.completion) == (LONG["prompt"], LONG["completion"])
    (text,) = rows_of(data / "long-data-collections" / "pretrain", TextRow)
    assert text == TextRow("A long text.")
    for split in ("train", "validation"):
        (chat,) = rows_of(data / "nq-open" / split, ChatRow)
        assert [message.content for message in chat.conversation] == ["who", "he"]
        assert [row.chosen for row in rows_of(data / "shp" / split, PreferenceRow)] == ["So.", "So."]
    for split in ("train", "test"):
        assert [row.rejected for row in rows_of(data / "hh-rlhf" / split, PreferenceRow)] == ["What?", "What?"]
    labelled = rows_of(data / "oig-moderation", LabelledRow)
    assert [(row.text, row.labels["label"]) for row in labelled] == [
        ("How are you?", ("casual",)),
        ("Hurt him", ("needs intervention", "hate")),
    ]
    assert f"data={data / 'booksum'}" in said["booksum"]


def test_wikipedia_becomes_documents(prepared: tuple[Path, dict[str, str]]) -> None:
    folder = prepared[0] / "wikipedia-simple"
    skipped: list[Any] = []
    documents = list(read_documents([folder], lambda *what: skipped.append(what)))
    assert [(each.title, each.meta) for each in documents] == [
        ("Zürich", {"url": "https://simple/Zurich"}),
        ("Bern", {"url": "https://simple/Bern"}),
    ]
    assert skipped == []
    assert visible(folder) == [f"20231101.simple/train-0000{n}-of-00002.jsonl.gz" for n in (0, 1)]


def test_rows_left_out_are_counted(prepared: tuple[Path, dict[str, str]]) -> None:
    assert "wikipedia-simple: 2 rows kept, 2 left out (2 x no text)" in prepared[1]["wikipedia-simple"]
    assert "oig-moderation: 2 rows kept, 1 left out (1 x no tag)" in prepared[1]["oig-moderation"]
    assert "nq-open: 2 rows kept, 2 left out (2 x no answer)" in prepared[1]["nq-open"]


def test_only_what_belongs_to_a_set_is_taken(prepared: tuple[Path, dict[str, str]]) -> None:
    data = prepared[0]
    assert visible(data / "oig") == ["unified_chip2.jsonl", "unified_ni.jsonl.gz"]
    assert visible(data / "hh-rlhf") == [
        f"{split}/{part}.jsonl.gz" for split in ("test", "train") for part in ("harmless-base", "helpful-online")
    ]
    assert visible(data / "shp")[:2] == ["test/askbaking.jsonl", "test/legaladvice.jsonl"]
    assert not [path for path in data.iterdir() if path.name.startswith(".")]


def test_the_record_says_what_each_file_was_made_of(prepared: tuple[Path, dict[str, str]]) -> None:
    folder = prepared[0] / "wikipedia-simple"
    record = json.loads((folder / ".parley.json").read_text())
    assert record["source"] == f"hf://wikimedia/wikipedia@{COMMIT}"
    assert {name: entry["sha256"] for name, entry in record["files"].items()} == {
        name: sha256_of(folder / name) for name in visible(folder)
    }
    assert [entry["rows_kept"] for entry in record["files"].values()] == [1, 1]


# Any other ------------------------------------------------------------------------------------------------------------


def test_a_hub_data_set_or_a_part_of_it(tmp_path: Path) -> None:
    site = Site()
    files = {"a/one.jsonl": lines(OIG), "a/two.jsonl": lines(OIG), "b/three.csv": b"text\nx\n", "README.md": b"words"}
    site.add_repo("owner/set.v1", files | {"dataset_infos.json": b"{}", "load.py": b"raise SystemExit"}, "datasets")
    sources = (["hf://owner/set.v1"], ["hf://owner/set.v1/a", "--only", "*two*"], ["hf://owner/set.v1/b/three.csv@v1"])
    with serving(site):
        answers = run(*sources, ["hf://owner/set.v1/c"], ["hf://owner"], home=tmp_path, site=site)
    assert [code for code, _ in answers] == [0, 0, 0, 2, 2], answers
    assert visible(tmp_path / "data" / "set.v1") == ["a/one.jsonl", "a/two.jsonl", "b/three.csv"]
    assert visible(tmp_path / "data" / "a") == ["a/two.jsonl"]
    assert visible(tmp_path / "data" / "three") == ["b/three.csv"]
    assert site.num_asked("/revision/v1") == 1
    assert "set.v1/c: holds no data; known: .jsonl" in answers[3][1]
    assert "'hf://owner' is no data set" in answers[4][1]


def test_a_url_and_local_files(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "chats.jsonl").write_bytes(lines(OIG))
    (folder / "notes.md").write_text("A note.")
    (folder / "image.png").write_bytes(b"png")
    site = Site({"/x/rows.jsonl.gz": gzip.compress(lines(OIG)), "/page.html": b"<p>Text</p>", "/x.zip": b"PK"})
    with serving(site):
        urls = [
            f"{site.url}/x/rows.jsonl.gz?key=secret",
            f"{site.url}/page.html",
            f"{site.url}/x.zip",
            f"{site.url}/no.csv",
        ]
        answers = run(*([url] for url in urls), [str(folder)], [str(folder / "chats.jsonl"), "--name", "mine"],
                      [str(folder / "none.jsonl")], home=tmp_path)  # fmt: skip
    assert [code for code, _ in answers] == [0, 0, 2, 2, 0, 0, 2], answers
    assert visible(tmp_path / "data" / "rows") == ["rows.jsonl.gz"]
    assert "secret" not in (tmp_path / "data" / "rows" / ".parley.json").read_text()
    assert "the first rows are of the format oig" in answers[0][1]
    assert visible(tmp_path / "data" / "page") == ["page.html"]
    assert "documents for the index" in answers[1][1]
    assert "holds no data" in answers[2][1]
    assert "the server does not have it" in answers[3][1]
    assert visible(tmp_path / "data" / "given") == visible(tmp_path / "data" / "mine") == ["chats.jsonl"]
    assert "unknown data '" in answers[6][1]
    record = json.loads((tmp_path / "data" / "mine" / ".parley.json").read_text())
    assert record["asked"] == str(folder / "chats.jsonl")


def test_what_was_prepared_is_checked_and_not_fetched_again(tmp_path: Path) -> None:
    site = Site({"/rows.jsonl": lines(OIG)})
    with serving(site):
        url = f"{site.url}/rows.jsonl"
        assert run([url], home=tmp_path)[0][0] == 0
        num = len(site.asked)
        file = tmp_path / "data" / "rows" / "rows.jsonl"
        ((code, said), (other, _), (part, why_part)) = run(
            [url], [f"{url}?v=2", "--name", "rows"], [url, "--only", "x"], home=tmp_path
        )
        assert (code, len(site.asked)) == (0, num), said
        assert "with the sums that its files had" in said
        file.write_bytes(b"damaged")
        ((damaged, reason), (forced, _)) = run([url], [url, "--force"], home=tmp_path)
    assert other == 0, "what a query says may be secret: it is not recorded"
    assert (part, "--force replaces it, --name makes another" in why_part) == (2, True), why_part
    assert (damaged, "1 of 1 files are not what was fetched (rows.jsonl)" in reason) == (2, True), reason
    assert (forced, file.read_bytes()) == (0, lines(OIG))


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    site = Site()
    site.add_repo("laion/OIG", {"unified_chip2.jsonl": lines(*[OIG] * 10)}, "datasets")
    site.always[f"/datasets/laion/OIG/resolve/{COMMIT}/unified_chip2.jsonl"] = (403, {"X-Error-Code": "GatedRepo"})
    huge = {"train.jsonl": lines(*[OIG] * 10)}
    site.add_repo("owner/huge", huge, "datasets")
    site.repos["datasets/owner/huge"]["siblings"][0]["lfs"]["size"] = 10**18
    site.add_repo("owner/wrong", huge, "datasets")
    site.repos["datasets/owner/wrong"]["siblings"][0]["lfs"]["sha256"] = "0" * 64
    site.add_repo("ontocord/OIG-moderation", {"OIG_safety_v0.2.jsonl": lines({"text": "x"})}, "datasets")
    expected = {
        "oig-chip2": "it asks for its terms to be accepted; accept them on its page and set HF_TOKEN",
        "hf://owner/none": "the hub has no such data set, or it is private; check the name and HF_TOKEN",
        "hf://owner/huge": "huge needs 1,000,000 TB",
        "hf://owner/wrong": f"expected {'0' * 64}",
        "oig-moderation": "no row can be used (1 x no tag)",
        "nope": "unknown data 'nope'; known: oig, oig-chip2",
    }
    with serving(site):
        answers = run(*([source] for source in expected), home=tmp_path, site=site)
        ((code, said),) = run(["hf://owner/huge"], home=tmp_path)
    for (each, why), reason in zip(answers, expected.values(), strict=True):
        assert (each, reason in why) == (2, True), why
        assert "Traceback" not in why
    assert (code, "the hub cannot be reached; or set HF_ENDPOINT" in said) == (2, True), said
    assert visible(tmp_path / "data") == [] or all("/." in f"/{name}" for name in visible(tmp_path / "data"))


def test_a_killed_run_is_gone_on_with(tmp_path: Path) -> None:
    words = random.Random(0).randbytes(15_000_000).hex()
    files = {
        "part0.jsonl": lines(OIG),
        "part1.jsonl": lines(*(words[i : i + 10_000] for i in range(0, len(words), 10_000))),
    }
    site = Site(slow=0.003)
    site.add_repo("owner/set", files, "datasets")
    part = tmp_path / "data" / ".set.part" / ".part1.jsonl.part"
    with serving(site):
        process = subprocess.Popen(
            [sys.executable, "tools/prepare_data.py", "hf://owner/set"], cwd=ROOT, env=environment(tmp_path, site),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        while not (part.with_name(part.name + ".json").exists() and part.stat().st_size > 20_000_000):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (tmp_path / "data" / "set").exists()
        site.slow = 0.0
        site.asked.clear()
        assert run(["hf://owner/set"], home=tmp_path, site=site)[0][0] == 0
    assert {name: (tmp_path / "data" / "set" / name).read_bytes() for name in files} == files
    asked = [headers.get("Range") for path, headers in site.asked if "/resolve/" in path]
    assert len(asked) == 1, "what was whole is not fetched again"
    assert str(asked[0]) >= "bytes=16777216-"


@pytest.mark.parametrize("killed", ["fetched", "converting", "converted"])
def test_a_kill_around_a_conversion(killed: str, tmp_path: Path) -> None:
    """The states that a kill can leave: the source alone, half of what it becomes, both."""
    site = Site()
    name = "20231101.simple/train-00000-of-00001"
    site.add_repo("wikimedia/wikipedia", {f"{name}.parquet": parquet(WIKIPEDIA * 20)}, "datasets")
    with serving(site):
        assert run(["wikipedia-simple", "--name", "expected"], home=tmp_path, site=site)[0][0] == 0
        scratch = tmp_path / "data" / ".wikipedia-simple.part"
        raw = scratch / f"{name}.jsonl.gz.raw.parquet"
        raw.parent.mkdir(parents=True)
        raw.write_bytes(site.files[f"/datasets/wikimedia/wikipedia/resolve/{COMMIT}/{name}.parquet"])
        record = {f"{name}.jsonl.gz.raw.parquet": {"num_bytes": raw.stat().st_size, "sha256": sha256_of(raw)}}
        made = tmp_path / "data" / "expected" / f"{name}.jsonl.gz"
        if killed != "fetched":
            (scratch / f"{name}.jsonl.gz").write_bytes(made.read_bytes()[: None if killed == "converted" else 50])
        (scratch / ".gathered.json").write_text(json.dumps(record))
        site.asked.clear()
        assert run(["wikipedia-simple"], home=tmp_path, site=site)[0][0] == 0
    assert not [path for path, _ in site.asked if "/resolve/" in path], "the source is not fetched again"
    assert visible(tmp_path / "data" / "wikipedia-simple") == [f"{name}.jsonl.gz"]
    assert (tmp_path / "data" / "wikipedia-simple" / f"{name}.jsonl.gz").read_bytes() == made.read_bytes()


# Rows and names -------------------------------------------------------------------------------------------------------


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.sampled_from(["text", "label", "labels", "metadata", "question", "answer", "title", "url"]),
                        inner, max_size=4)))  # fmt: skip
def test_rows_of_anything_become_rows_or_are_left_out(row: Any) -> None:
    if not isinstance(row, dict):
        return
    for parse, keys in ((document, {"id", "title", "text", "metadata"}), (question, {"messages"}),
                        (moderated, {"text", "label"})):  # fmt: skip
        try:
            made = parse(row)
        except ValueError:
            continue
        assert set(made) == keys
        json.dumps(made)


@pytest.mark.parametrize(
    ("row", "text", "label"),
    [
        ({"text": "Hi", "labels": ["casual"]}, "Hi", ["casual"]),
        ({"prompt": "Hi", "tags": "Needs Caution | hate"}, "Hi", ["needs caution", "hate"]),
        ({"text": "User: Hi\nAssistant:", "metadata": {"safety_label": "casual"}}, "Hi", ["casual"]),
        ({"text": "Input: a\nb\nOutput: casual"}, "a\nb", ["casual"]),
    ],
)
def test_tags_wherever_they_stand(row: dict[str, Any], text: str, label: list[str]) -> None:
    assert moderated(row) == {"text": text, "label": label}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("askbaking/train.json", "train/askbaking.jsonl"),
        ("helpful-base/test.jsonl.gz", "test/helpful-base.jsonl.gz"),
        ("nq_open/validation-00000-of-00001.parquet", "validation/nq_open-00000-of-00001.parquet"),
    ],
)
def test_names_by_split(name: str, expected: str) -> None:
    assert name_by_split(name) == expected


@pytest.mark.parametrize("name", ["train.json", "a/other.json", "a/train"])
def test_names_without_a_split(name: str) -> None:
    with pytest.raises(ValueError, match="does not say of which split"):
        name_by_split(name)


def test_names_of_folders(tmp_path: Path) -> None:
    (tmp_path / "a.b").mkdir()
    given = {
        "oig-chip2": "oig-chip2", "wikipedia-zh-yue": "wikipedia-zh-yue", "hf://o/set.v1": "set.v1",
        "hf://o/set.v1@main": "set.v1", "hf://o/set/x/part.jsonl.zst@v1": "part", "hf://o/set/folder": "folder",
        "https://h/x/rows.csv.gz?a=b.c": "rows", "https://h/": "download", str(tmp_path / "a.b"): "a.b",
        str(tmp_path / "c.jsonl"): "c", str(tmp_path / ".h"): "h",
    }  # fmt: skip
    assert {source: default_name(source) for source in given} == given


def test_languages_of_wikipedia() -> None:
    names: Iterable[str] = ("wikipedia-en", "wikipedia", "wikipedia-", "wikipedia-EN", "wikipedia-../x")
    assert [known_data(name) is not None for name in names] == [True, False, False, False, False]

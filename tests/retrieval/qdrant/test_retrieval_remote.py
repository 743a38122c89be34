"""An uploaded index against the local one it came from, in the embedded Qdrant and over HTTP; and what is refused."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_server import KEY, Routes, serving

from retrieval.encoders import HashEncoder
from retrieval.index.manifest import IndexSettings, read_manifest, write_manifest
from retrieval.qdrant.connection import MEMORY, WORDS, connect, point_id, query_vector, term_id, words_vector
from retrieval.qdrant.retriever import QdrantRetriever, is_remote, open_remote, upload, upload_command
from retrieval.retriever import Retriever
from retrieval.scoring.calibration import Calibration
from retrieval.scoring.fusion import METHODS, FusionSettings
from retrieval.scoring.lexical import LexicalSettings, parse_query
from retrieval.search.filters import Filter
from retrieval.types import Hit
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.updating import update_index

SUBJECTS = ("bridge", "tower", "river", "harbour", "castle", "garden", "station", "museum", "market", "theatre")
QUERIES = ["When was the bridge opened?", "castle number14", "built in 1820", "the garden by the market", "zzz of"]


def records(num: int, **extra: Any) -> list[dict[str, Any]]:
    """Documents of one passage each, no two alike."""
    rng = np.random.default_rng(0)
    return [
        {
            "id": f"d{i}",
            "title": f"The {SUBJECTS[i % 10]}",
            "text": f"The {SUBJECTS[i % 10]} number{i} was built in {1800 + i}. It stands near the "
            + " and the ".join(rng.choice(SUBJECTS, 1 + i % 5)),
            "metadata": {"year": 1800 + i, "kind": SUBJECTS[i % 10], "old": i < 10, **extra},
        }
        for i in range(num)
    ]


def write_records(path: Path, content: Sequence[dict[str, Any]]) -> Path:
    """As JSON Lines."""
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in content))
    return path


class NoisyEncoder(HashEncoder):
    """The hash encoder with noise, so that no two texts are equally near to a third, and all has one order."""

    name = "noisy"

    @property
    def fingerprint(self) -> str:
        """Not the hash encoder's."""
        return "noisy"

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """See `Encoder`."""
        noise = [np.random.default_rng(zlib.crc32(text.encode())).normal(0, 0.02, self.dim) for text in texts]
        vectors = (super().encode(texts) + np.array(noise)).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


ENCODER = NoisyEncoder()


@pytest.fixture(scope="module")
def shared_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of sixty documents, that no test changes."""
    folder = tmp_path_factory.mktemp("remote")
    build_index([write_records(folder / "docs" / "a.jsonl", records(60))], folder / "index", ENCODER)
    return folder / "index"


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    """The embedded Qdrant, left empty."""
    opened = connect(MEMORY)
    yield opened
    for collection in opened.get_collections().collections:
        opened.delete_collection(collection.name)


@pytest.fixture
def remote(client: QdrantClient, shared_index: Path) -> QdrantRetriever:
    """`shared_index`, uploaded."""
    upload(shared_index, MEMORY, "shared")
    return QdrantRetriever.open(MEMORY, "shared", ENCODER)


def assert_same(found: list[Hit], expected: list[Hit]) -> None:
    """The same passages with the same scores; those of about equal scores may come in another order."""
    np.testing.assert_allclose([hit.score for hit in found], [hit.score for hit in expected], atol=2e-6)
    assert [hit.confidence for hit in found] == pytest.approx([hit.confidence for hit in expected], abs=2e-6)
    last = expected[-1].score + 1e-5 if expected else 0.0  # of several that are as good as the last, any may be there
    clear = [[hit for hit in hits if hit.score > last] for hits in (found, expected)]
    for hits in clear:
        hits.sort(key=lambda hit: (round(hit.score, 4), hit.passage.id))
    assert [hit.passage for hit in clear[0]] == [hit.passage for hit in clear[1]]


def test_it_finds_what_the_local_index_finds(remote: QdrantRetriever, shared_index: Path) -> None:
    local = Retriever.open(shared_index, ENCODER)
    for k in (1, 5, 100):
        for found, expected in zip(remote.search(QUERIES, k), local.search(QUERIES, k), strict=True):
            assert_same(found, expected)
    assert remote.floor == local.floor
    assert str(remote) == f"{local} in 'shared' at memory"
    assert sum(hit.passage.meta["year"] == 1814 for hit in remote.search(["castle number14"], 60)[0]) == 1


def test_equal_scores_come_in_the_order_of_the_documents(client: QdrantClient, tmp_path: Path) -> None:
    documents = write_records(tmp_path / "docs" / "a.jsonl", records(60))
    build_index([documents], tmp_path / "index", "hash", IndexSettings(fusion=FusionSettings(smoothing=0)))
    upload(tmp_path / "index", MEMORY, "equal")
    hits = QdrantRetriever.open(MEMORY, "equal").search(["zzz"], 40)[0]
    assert len({hit.score for hit in hits[-10:]}) == 1  # nothing in them is like it
    assert hits == sorted(hits, key=lambda hit: (-hit.score, hit.passage.start))
    local = Retriever.open(tmp_path / "index").search(["zzz"], 40)[0]
    assert [hit.passage.id for hit in hits] == [hit.passage.id for hit in local]


@pytest.mark.parametrize("method", METHODS)
def test_every_fusion_ranks_as_it_does_locally(client: QdrantClient, tmp_path: Path, method: Any) -> None:
    # More documents than are taken from either side, so that some have no rank there.
    documents = write_records(tmp_path / "docs" / "a.jsonl", records(150))
    settings = IndexSettings(fusion=FusionSettings(method=method), lexical=LexicalSettings(k1=0.9, b=0.4))
    build_index([documents], tmp_path / "index", ENCODER, settings, floor=0.25)
    upload(tmp_path / "index", MEMORY, "fused")
    remote, local = QdrantRetriever.open(MEMORY, "fused", ENCODER), Retriever.open(tmp_path / "index", ENCODER)
    assert remote.floor == 0.25
    for k in (8, 50):
        for found, expected in zip(remote.search(QUERIES, k), local.search(QUERIES, k), strict=True):
            assert_same(found, expected)


def test_follow_up_questions_are_searched_with_their_conversation(remote: QdrantRetriever, shared_index: Path) -> None:
    contexts = ["", "Tell me about the museum.", "the harbour", " ", "the theatre number9"]
    local = Retriever.open(shared_index, ENCODER).search(QUERIES, 6, contexts)
    for found, expected in zip(remote.search(QUERIES, 6, contexts), local, strict=True):
        assert_same(found, expected)
    assert remote.search(["zzz of"], 6, ["the theatre number9"]) != remote.search(["zzz of"], 6)


def test_one_by_one_finds_what_a_batch_finds(remote: QdrantRetriever) -> None:
    for query, found in zip(QUERIES, remote.search(QUERIES, 7), strict=True):
        assert_same(remote.search([query], 7)[0], found)


@pytest.mark.parametrize(
    "conditions",
    [
        ["year>=1830"],
        ["kind=BRIDGE"],
        ["kind!=bridge", "year<1820"],
        ["title=the br*"],
        ["old=true"],
        ["source=*.jsonl"],
        ["id=*#d1?"],
        ["author!=Ada"],
        ["author=Ada"],
        ["kind!=*"],
    ],
)
def test_filters_let_through_what_they_do_locally(
    remote: QdrantRetriever, shared_index: Path, conditions: list[str]
) -> None:
    where = Filter.parse(conditions)
    found = QdrantRetriever.open(MEMORY, "shared", ENCODER, where=where).search(QUERIES, 60)
    for hits, expected in zip(
        found, Retriever.open(shared_index, ENCODER, where=where).search(QUERIES, 60), strict=True
    ):
        assert_same(hits, expected)


def test_texts_that_are_there_many_times_count_once(client: QdrantClient, tmp_path: Path) -> None:
    copies = [{**records(1)[0], "id": f"copy{i}"} for i in range(130)]
    path = write_records(tmp_path / "docs" / "a.jsonl", [*copies, *records(4)[1:]])
    build_index([path], tmp_path / "index", "hash", calibrate=False)
    upload(tmp_path / "index", MEMORY, "copies", batch=50)
    hits = QdrantRetriever.open(MEMORY, "copies").search(["the bridge number0"], 4)[0]
    assert len({hit.passage.text for hit in hits}) == len(hits) == 4


def test_an_update_sends_what_is_new_and_removes_what_is_gone(client: QdrantClient, tmp_path: Path) -> None:
    first = write_records(tmp_path / "docs" / "a.jsonl", records(30))
    second = write_records(tmp_path / "docs" / "b.jsonl", [{**each, "id": f"b{each['id']}"} for each in records(4)])
    index = tmp_path / "index"
    build_index([tmp_path / "docs"], index, "hash")
    report = upload(index, MEMORY, "updated", batch=10)
    assert (report.num_passages, report.num_sent, report.num_unchanged, report.num_removed) == (34, 34, 0, 0)
    again = upload(index, MEMORY, "updated", batch=7)
    assert (again.num_passages, again.num_sent, again.num_unchanged, again.num_removed) == (34, 0, 34, 0)

    remote = QdrantRetriever.open(MEMORY, "updated")
    changed = records(30)
    changed[3] = {
        **changed[3],
        "text": "The harbour number3 was given up long ago, and nothing stands there today.",
    }
    write_records(first, changed)
    second.unlink()
    update_index(index)
    compact_index(index)
    report = upload(index, MEMORY, "updated")
    assert (report.num_passages, report.num_sent, report.num_unchanged, report.num_removed) == (30, 1, 29, 4)
    assert client.count("updated").count == 30
    # The retriever that was open notices. Lengths have moved by less than a send is worth: scores differ a little.
    hits = remote.search(["given up long ago"], 3)[0]
    assert hits[0].passage.text.startswith("The harbour number3 was given up")
    assert hits[0].score == pytest.approx(Retriever.open(index).search(["given up long ago"], 3)[0][0].score, rel=0.01)
    assert "30 passages" in str(remote)

    delete_documents(index, [hits[0].passage.id.split("#d")[0] + "#d3"])
    assert upload(index, MEMORY, "updated").num_removed == 1
    assert all("given up" not in hit.passage.text for hit in remote.search(["given up long ago"], 30)[0])


def test_settings_that_change_every_weight_send_everything(client: QdrantClient, tmp_path: Path) -> None:
    path = write_records(tmp_path / "docs" / "a.jsonl", records(12))
    build_index([path], tmp_path / "index", ENCODER)
    upload(tmp_path / "index", MEMORY, "weights")
    build_index([path], tmp_path / "index", ENCODER, IndexSettings(lexical=LexicalSettings(b=0.1)))
    assert upload(tmp_path / "index", MEMORY, "weights").num_sent == 12
    remote, local = QdrantRetriever.open(MEMORY, "weights", ENCODER), Retriever.open(tmp_path / "index", ENCODER)
    assert_same(remote.search(["castle number4"], 5)[0], local.search(["castle number4"], 5)[0])


def test_an_upload_that_was_cut_off_goes_on_where_it_was(client: QdrantClient, shared_index: Path) -> None:
    class CutError(Exception):
        """Stands for a kill."""

    def cut(num_done: int, num: int, num_passages: int) -> None:
        assert (num, num_passages) == (60, num_done)
        if num_done == 40:
            raise CutError

    with pytest.raises(CutError):
        upload(shared_index, MEMORY, "cut", batch=20, on_progress=cut)
    with pytest.raises(ValueError, match="upload of collection 'cut' at memory did not end; start it again: python -m"):
        QdrantRetriever.open(MEMORY, "cut")
    report = upload(shared_index, MEMORY, "cut")
    assert (report.num_sent, report.num_unchanged) == (20, 40)
    assert len(QdrantRetriever.open(MEMORY, "cut", ENCODER).search(["bridge"], 60)[0]) == 60


def test_another_encoder_is_refused_and_its_index_replaces_the_old_one(client: QdrantClient, tmp_path: Path) -> None:
    path = write_records(tmp_path / "docs" / "a.jsonl", records(12))
    build_index([path], tmp_path / "index", "hash")
    upload(tmp_path / "index", MEMORY, "other")
    remote = QdrantRetriever.open(MEMORY, "other")
    small = HashEncoder(64)
    with pytest.raises(ValueError, match=r"was built with encoder 'hash' .*pass --encoder with that one"):
        QdrantRetriever.open(MEMORY, "other", small)
    build_index([path], tmp_path / "index", small)
    assert upload(tmp_path / "index", MEMORY, "other").num_sent == 12
    assert QdrantRetriever.open(MEMORY, "other", small).search(["castle"], 1)[0][0].passage.title == "The castle"
    with pytest.raises(ValueError, match="was built with encoder 'hash'"):
        remote.search(["castle"], 1)  # it was open before


def test_collections_of_others_are_left_alone(client: QdrantClient, shared_index: Path) -> None:
    client.create_collection("theirs", vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT))
    client.upsert("theirs", [models.PointStruct(id=1, vector=[1.0, 0.0])])
    for use in (lambda: upload(shared_index, MEMORY, "theirs"), lambda: QdrantRetriever.open(MEMORY, "theirs")):
        with pytest.raises(ValueError, match="'theirs' at memory holds something else than a Parley index; name"):
            use()
    assert client.count("theirs").count == 1


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        ("nothing like JSON", "is damaged .* upload the index again"),
        ("{}", "is damaged"),
        ('{"format_version": 2}', "is damaged"),
        ('{"format_version": 99}', "has format 99, not 2; update Parley"),
    ],
)
def test_metadata_that_cannot_be_read_are_refused(client: QdrantClient, stored: str, reason: str) -> None:
    vectors = models.VectorParams(size=2, distance=models.Distance.DOT)
    client.create_collection("broken", vectors_config=vectors, metadata={"parley": stored})
    with pytest.raises(ValueError, match=reason):
        QdrantRetriever.open(MEMORY, "broken")


def test_searches_without_sense_are_refused_and_blank_queries_find_nothing(remote: QdrantRetriever) -> None:
    with pytest.raises(ValueError, match="k is 0"):
        remote.search(["bridge"], 0)
    with pytest.raises(ValueError, match="2 contexts for 1 queries"):
        remote.search(["bridge"], 1, ["", ""])
    with pytest.raises(ValueError, match="not one text"):
        remote.search("bridge", 1)
    assert remote.search([], 3) == []
    assert [len(hits) for hits in remote.search([" ", "bridge", ""], 3)] == [0, 3, 0]


def test_a_collection_that_is_missing_names_the_remedy(client: QdrantClient) -> None:
    with pytest.raises(ValueError, match="no collection 'none' at memory; upload an index with: python -m retrieval"):
        QdrantRetriever.open(MEMORY, "none")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6333", "no address of a Qdrant server; write http://HOST:6333"),
        ("ftp://host", "no address of a Qdrant server"),
        ("http://", "no address of a Qdrant server"),
        ("path:/tmp/folder", "not safe to open; run a server"),
    ],
)
def test_urls_of_other_forms_are_refused(url: str, reason: str, shared_index: Path) -> None:
    for use in (lambda: upload(shared_index, url, "c"), lambda: QdrantRetriever.open(url, "c")):
        with pytest.raises(ValueError, match=reason):
            use()


def test_index_options_that_name_a_server(remote: QdrantRetriever) -> None:
    assert is_remote("qdrant+http://host:6333/docs")
    assert not is_remote("indexes/docs")
    assert not is_remote("./qdrant+docs")
    opened = open_remote("qdrant+memory/shared", ENCODER, where=Filter.parse(["year<1803"]))
    assert len(opened.search(["bridge"], 9)[0]) == 3
    for wrong in ("qdrant+", "qdrant+memory", "qdrant+http://host:6333", "qdrant+http://host:6333/", "http://host/c"):
        with pytest.raises(ValueError, match="is no remote index; write qdrant\\+http://HOST:6333/COLLECTION"):
            open_remote(wrong)


def test_over_http_it_finds_the_same(
    remote: QdrantRetriever, shared_index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDRANT_API_KEY", KEY)
    routes = Routes()
    with serving(routes.answer) as url:
        assert upload(shared_index, url, "docs", batch=25).num_sent == 60
        assert upload(shared_index, url, "docs").num_sent == 0
        assert open_remote(f"qdrant+{url}/docs", ENCODER).search(QUERIES, 9) == remote.search(QUERIES, 9)
        where = Filter.parse(["year>=1830", "kind!=castle"])
        filtered = QdrantRetriever.open(MEMORY, "shared", ENCODER, where=where).search(QUERIES, 9)
        assert open_remote(f"qdrant+{url}/docs", ENCODER, where=where).search(QUERIES, 9) == filtered
        assert routes.indexed == ["docs facets keyword", "docs head bool"]
        monkeypatch.setenv("QDRANT_API_KEY", "wrong")
        with pytest.raises(ValueError, match=r"wants another API key .*set QDRANT_API_KEY"):
            upload(shared_index, url, "docs")
        assert QdrantRetriever.open(url, "docs", ENCODER, api_key=KEY).floor == remote.floor
    with pytest.raises(ValueError, match=f"no answer from Qdrant at {url} .*; is it running there, and reachable"):
        open_remote(f"qdrant+{url}/docs", ENCODER)


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (500, b"<html>oops", r"answered 500 \(<html>oops\); its log may say more"),
        (400, {"status": {"error": "bad\nthing"}}, r"answered 400 \(bad thing\)"),
        (429, {"status": {"error": "slow"}}, "asks to wait 7 s; then try again"),
        (403, b"", "wants another API key"),
        (200, b"hello", "what answers at .* is no Qdrant; check the address"),
        (200, {"result": 3}, "no answer from Qdrant"),
    ],
)
def test_answers_that_are_no_answers_become_one_line(status: int, content: Any, reason: str) -> None:
    with (
        serving(lambda *_: (status, content), {"Retry-After": "7"}) as url,
        pytest.raises(ValueError, match=reason) as error,
    ):
        QdrantRetriever.open(url, "docs", api_key=KEY)
    assert url in str(error.value)
    assert "\n" not in str(error.value)


def test_a_server_that_keeps_no_metadata_is_refused(shared_index: Path) -> None:
    routes = Routes()

    def old(method: str, path: str, body: Any) -> tuple[int, Any]:
        return routes.answer(method, path, {k: v for k, v in body.items() if k != "metadata"} if body else body)

    with serving(old) as url, pytest.raises(ValueError, match=r"too old: it keeps no metadata; update it to 1\.16"):
        upload(shared_index, url, "docs", api_key=KEY)
    assert not routes.client.collection_exists("docs")


def test_the_command_uploads_and_says_what_it_did(client: QdrantClient, shared_index: Path) -> None:
    arguments = ["--index", str(shared_index), "--qdrant", MEMORY, "--collection", "commanded"]
    result = CliRunner().invoke(upload_command, arguments)
    assert result.exit_code == 0, result.output
    assert "commanded at memory: 60 passages sent, 0 unchanged, 0 removed; 60 passages in" in result.output
    assert client.count("commanded").count == 60
    result = CliRunner().invoke(upload_command, [*arguments, "--batch", "0"])
    assert "batch is 0" in str(result.exception)


def test_words_weigh_what_bm25_says() -> None:
    settings = LexicalSettings(k1=1.2, b=0.75)
    vector = words_vector(["bridge", "tower", "bridge", "bridge"], settings, average_length=8.0)
    norm = 1.2 * (0.25 + 0.75 * 4 / 8)
    weights = dict(zip(vector.indices, vector.values, strict=True))
    assert weights == pytest.approx({term_id("bridge"): 3 / (3 + norm), term_id("tower"): 1 / (1 + norm)})
    assert words_vector([], settings, 8.0).indices == []


def test_ids_are_the_same_in_every_process_and_version() -> None:
    # Collections out there hold them.
    assert term_id("bridge") == 307731712
    assert 0 <= term_id("\ud800") < 2**32
    assert point_id("docs/a.txt#0") == "dea4ae1e-c456-59cc-8bec-357d09d3c137"


def test_scores_on_the_side_of_words_are_bm25(client: QdrantClient, tmp_path: Path) -> None:
    texts = ["bridge tower", "bridge", "river"]
    path = write_records(
        tmp_path / "docs" / "a.jsonl", [{"id": str(i), "title": t, "text": t} for i, t in enumerate(texts)]
    )
    build_index([path], tmp_path / "index", "hash", calibrate=False)
    upload(tmp_path / "index", MEMORY, "bm25")
    points = client.query_points("bm25", query_vector(parse_query("a bridge")), using=WORDS).points
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    average = (4 + 2 + 2) / 3  # each text stands in its title too
    assert [point.score for point in points] == pytest.approx(
        [idf * 2 / (2 + 0.9 * (0.6 + 0.4 * length / average)) for length in (2, 4)]
    )
    assert [(point.payload or {})["text"] for point in points] == ["bridge", "bridge tower"]


def test_the_confidence_is_that_of_the_calibration(client: QdrantClient, tmp_path: Path) -> None:
    texts = ["bridge tower", "bridge", "river"]
    content = [{"id": str(i), "title": text, "text": text} for i, text in enumerate(texts)]
    index = tmp_path / "index"
    build_index([write_records(tmp_path / "docs" / "a.jsonl", content)], index, "hash", calibrate=False)
    calibration = Calibration(0.7, (1.5, 2.0, 2.5), -3.0, 0.05, 0.04, 0.3, 100, 100)
    write_manifest(index, replace(read_manifest(index), calibration=calibration, floor=0.7))
    upload(index, MEMORY, "calibrated")
    remote = QdrantRetriever.open(MEMORY, "calibrated")
    assert remote.floor == 0.7
    hits = remote.search(["bridge zebra"], 1)[0]
    assert hits[0].passage.text == "bridge"

    vectors = HashEncoder().encode([f"{text}. {text}" for text in texts])
    cosines = np.sort(vectors @ HashEncoder().encode(["bridge zebra"])[0])[::-1]
    bridge, zebra = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5)), math.log(1 + (3 + 0.5) / 0.5)
    made = 1.5 * cosines[0] + 2.0 * (cosines[0] - cosines[1:].mean()) + 2.5 * bridge / (bridge + zebra) - 3.0
    assert hits[0].confidence == pytest.approx(1 / (1 + math.exp(-made)), abs=1e-6)


def test_a_missing_client_library_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "qdrant_client", None)
    with pytest.raises(ValueError, match=r'pip install "parley\[qdrant\]"'):
        connect("http://localhost:6333")


def test_importing_it_loads_no_client_library() -> None:
    code = "import retrieval.qdrant.retriever, sys; assert not {'qdrant_client', 'torch', 'faiss'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""An index on disk: what a reader accepts, what it remembers, and what is left when a writer is killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retrieval.index.integrity import VERIFIED, verify
from retrieval.index.manifest import MANIFEST, read_manifest, write_manifest
from retrieval.index.store import Store, check_target
from retrieval.retriever import Retriever
from retrieval.scoring.fusion import UNRELATED
from retrieval.writing.building import build_index
from retrieval.writing.removal import delete_documents

ROOT = Path(__file__).parents[3]


def index_files(index: Path) -> list[Path]:
    """Everything that a reader reads."""
    return sorted(
        path for path in index.rglob("*") if path.is_file() and path.name not in ("lock", "segment.json", VERIFIED)
    )


def age(index: Path) -> None:
    """Make all files look as if they had been written a minute ago, as far as that can be done."""
    then = time.time() - 60
    for path in index.rglob("*"):
        os.utime(path, (then, then))


def test_passages_come_back_as_they_were(tmp_path: Path) -> None:
    texts = [f"Tëxt {i} of \u2028 «{'x' * i}» 😀." for i in range(50)]
    for i, text in enumerate(texts):
        (tmp_path / f"ä{i:02}.txt").write_text(text, encoding="utf-8")
    build_index([tmp_path], tmp_path.with_name("index-of-texts"), "hash", calibrate=False)
    store = Store(tmp_path.with_name("index-of-texts"))
    passages = [passage for _, passage in store.live_passages()]
    assert [passage.source for passage in passages] == [f"{tmp_path}/ä{i:02}.txt" for i in range(50)]
    assert [passage.text for passage in passages] == [" ".join(text.split()) for text in texts]
    assert {(passage.start, passage.end, passage.unit) for passage in passages} == {(1, 1, "line")}


def test_a_manifest_survives_its_round_trip(index: Path) -> None:
    manifest = read_manifest(index)
    write_manifest(index, manifest)
    assert read_manifest(index) == manifest
    assert all(
        (index / name).stat().st_size == info.size
        for s in manifest.segments
        for name, info in ((f"{s.name}/{file}", info) for file, info in s.files.items())
    )


# Damage -------------------------------------------------------------------------------------------------------------


def mutate(path: Path, chance: random.Random) -> None:
    """Change a file as accidents do: a flipped bit, a cut, an insertion, zeros, nothing left."""
    data = bytearray(path.read_bytes())
    kind = chance.choice(["flip", "cut", "insert", "zeros", "empty", "gone"])
    place = chance.randrange(len(data))
    if kind == "flip":
        data[place] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del data[place:]
    elif kind == "insert":
        data[place:place] = chance.randbytes(chance.randrange(1, 64))
    elif kind == "zeros":
        end = min(place + 64, len(data))
        if not any(data[place:end]):
            data[place] ^= 255
        else:
            data[place:end] = bytes(end - place)
    elif kind == "empty":
        data.clear()
    path.unlink()
    if kind != "gone":
        path.write_bytes(data)


def test_every_damaged_file_is_refused(index: Path, tmp_path: Path) -> None:
    delete_documents(index, [str(next(iter(Store(index).files())))])
    chance = random.Random(7)
    for number in range(120):
        copy = Path(shutil.copytree(index, tmp_path / f"copy{number}"))
        path = chance.choice(index_files(copy))
        mutate(path, chance)
        with pytest.raises(ValueError, match=r"is damaged|there is no index|has format") as refused:
            Retriever.open(copy)
        assert "python -m retrieval build" in str(refused.value)
        shutil.rmtree(copy)


def test_a_damaged_memory_of_what_is_sound_does_no_harm(index: Path) -> None:
    age(index)
    time.sleep(2.1)  # the time of a status change cannot be set back
    Store(index)
    remembered = (index / VERIFIED).read_bytes()
    chance = random.Random(3)
    (passages,) = index.glob("segment-*/passages.jsonl")
    for _ in range(40):
        (index / VERIFIED).write_bytes(remembered)
        mutate(index / VERIFIED, chance)
        Store(index)
    passages.write_bytes(passages.read_bytes().replace(b"castle", b"cattle"))
    for _ in range(40):
        (index / VERIFIED).write_bytes(remembered)
        mutate(index / VERIFIED, chance)
        with pytest.raises(ValueError, match=r"passages\.jsonl: SHA-256 differs"):
            Store(index)


def test_a_verified_file_is_read_once(index: Path) -> None:
    manifest = read_manifest(index)
    (index / VERIFIED).unlink(missing_ok=True)
    assert verify(index, manifest) == manifest.size
    assert verify(index, manifest) == manifest.size  # written just now: it could be written again within the tick
    time.sleep(2.1)
    assert verify(index, manifest) == manifest.size
    assert verify(index, manifest) == 0
    assert verify(index, manifest, remember=False) == manifest.size
    (path,) = index.glob("segment-*/vectors.f32")
    data = path.read_bytes()
    status = path.stat()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # as if never written
    with pytest.raises(ValueError, match=r"vectors\.f32: SHA-256 differs"):
        verify(index, manifest)


def test_an_index_that_cannot_be_written_can_be_read(index: Path) -> None:
    for path in [*index.rglob("*"), index]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(Retriever.open(index).search(["castle"], 3)[0]) == 3
    finally:
        for path in [index, *index.rglob("*")]:
            path.chmod(0o755)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.__setitem__("format_version", 99), "has format 99.*update Parley"),
        (lambda m: m.__setitem__("format_version", 1), "has format 1.*rebuild it with"),
        (lambda m: m.__setitem__("floor", 0.123), "differs from its checksum"),
    ],
)
def test_other_formats_and_edited_manifests_are_refused(
    index: Path, change: Callable[[dict[str, object]], None], message: str
) -> None:
    content = json.loads((index / MANIFEST).read_text())
    change(content)
    (index / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Store(index)


def test_a_manifest_is_what_was_written_to_the_last_byte(index: Path) -> None:
    with open(index / MANIFEST, "a") as file:
        file.write("\n")
    with pytest.raises(ValueError, match="changed after it was written"):
        Store(index)


@pytest.mark.parametrize("name", ["segment-../../../etc", "../segment-000000000000", "segment-00000000000", ""])
def test_a_manifest_cannot_point_out_of_its_folder(index: Path, name: str) -> None:
    manifest = read_manifest(index)
    write_manifest(index, replace(manifest, segments=(replace(manifest.segments[0], name=name),)))
    with pytest.raises(ValueError, match="is no segment name"):
        Store(index)
    files = {"../../passwd": next(iter(manifest.segments[0].files.values()))}
    write_manifest(index, replace(manifest, segments=(replace(manifest.segments[0], files=files),)))
    with pytest.raises(ValueError, match="is no file of a segment"):
        Store(index)


def test_a_list_of_deleted_passages_must_fit(index: Path) -> None:
    delete_documents(index, [str(next(iter(Store(index).files())))])
    manifest = read_manifest(index)
    segment = manifest.segments[0]
    for num in (0, 2):
        write_manifest(index, replace(manifest, segments=(replace(segment, num_deleted=num),)))
        with pytest.raises(ValueError, match="is damaged"):
            Store(index)


# Where an index may be built ------------------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_not_written_into(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not empty and holds no index"):
        check_target(corpus)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; an index is a folder"):
        check_target(tmp_path / "file")
    check_target(tmp_path / "new")


def test_a_first_build_that_fails_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"bad\.txt"):
        build_index([tmp_path / "bad.txt"], tmp_path / "index", "hash")
    assert not (tmp_path / "index").exists()


def test_a_build_mends_a_damaged_index(corpus: Path, index: Path) -> None:
    (path,) = index.glob("segment-*/vectors.f32")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is damaged"):
        Store(index)
    build_index([corpus], index, "hash", calibrate=False)
    assert len(Store(index)) == 20


# Kills ----------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="forks and sends signals")
@pytest.mark.parametrize("kind", ["build", "update", "delete", "compact"])
def test_a_kill_at_any_step_leaves_the_old_index_or_the_new_one(tmp_path: Path, kind: str) -> None:
    command = [sys.executable, "tests/retrieval/kill_points.py", kind, str(tmp_path), "4"]  # every fourth step
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True
    )
    result = json.loads(done.stdout)
    found = result["found"]
    assert result["wrong"] == []
    assert len(found) > 10
    assert found == sorted(found, reverse=True)  # all "old", then all "new": one moment of change
    assert set(found) == ({"old"} if kind == "compact" else {"old", "new"})


def test_a_killed_build_is_not_encoded_again(tmp_path: Path, make_documents: Callable[[Path, int], Path]) -> None:
    docs = make_documents(tmp_path / "docs", 3000)
    index = tmp_path / "index"
    code = (
        "import os, sys\nfrom retrieval.encoders import HashEncoder\n"
        "from retrieval.writing.building import build_index\n"
        "class Dying(HashEncoder):\n    left = 3\n    def encode(self, texts):\n        self.left -= 1\n"
        "        if self.left < 0: os.kill(os.getpid(), 9)\n        return super().encode(texts)\n"
        "build_index([sys.argv[1]], sys.argv[2], Dying(), calibrate=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, docs, index], cwd=ROOT, check=False)
    assert done.returncode == -9

    from retrieval.encoders import HashEncoder

    encoded: list[str] = []

    class Counting(HashEncoder):
        def encode(self, texts):  # type: ignore[no-untyped-def]
            encoded.extend(texts)
            return super().encode(texts)

    build_index([docs], index, Counting(), calibrate=False)
    assert len([text for text in encoded if text not in UNRELATED]) == 3000 - 2 * 1024
    build_index([docs], tmp_path / "whole", "hash", calibrate=False)
    resumed, whole = Store(index), Store(tmp_path / "whole")
    assert [passage for _, passage in resumed.live_passages()] == [passage for _, passage in whole.live_passages()]
    np.testing.assert_array_equal(resumed.segments[0].vectors, whole.segments[0].vectors)


def test_readers_notice_a_new_index(corpus: Path, index: Path, tmp_path: Path) -> None:
    retriever = Retriever.open(index)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "one.txt").write_text("Quite another document.")
    build_index([tmp_path / "other"], index, "hash", calibrate=False)
    assert [hit.passage.text for hit in retriever.search(["document"], 5)[0]] == ["Quite another document."]

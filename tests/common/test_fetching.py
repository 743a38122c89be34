"""Files from URLs: what breaks off goes on, what is damaged never becomes a file. The server is on 127.0.0.1."""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import Site, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import fetching
from common.fetching import RefusedError, Remote, UnreachableError, fetch

BODY = random.Random(0).randbytes(300_000)
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(fetching, "_WAITS", (0.0,))
    monkeypatch.setattr(fetching, "_SAVE_EVERY", 60_000)
    with serving(Site({"/a.bin": BODY})) as running:
        yield running


def asked_for(site: Site) -> list[str | None]:
    return [headers.get("Range") for _, headers in site.asked]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_file_comes_whole(site: Site, tmp_path: Path, sha256: str | None) -> None:
    assert fetch(Remote(f"{site.url}/a.bin", len(BODY), sha256), tmp_path / "sub" / "a.bin") == SHA256
    assert (tmp_path / "sub" / "a.bin").read_bytes() == BODY
    assert left(tmp_path / "sub") == ["a.bin"]
    assert (tmp_path / "sub" / "a.bin").stat().st_mode & 0o777 == 0o644


def test_a_broken_connection_goes_on_where_it_broke(site: Site, tmp_path: Path) -> None:
    site.cuts["/a.bin"] = [100_000, 50_000]
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin") == SHA256
    assert asked_for(site) == [None, "bytes=100000-", "bytes=150000-"]
    assert (tmp_path / "a.bin").read_bytes() == BODY


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_a_later_call_goes_on(site: Site, tmp_path: Path, sha256: str | None) -> None:
    site.cuts["/a.bin"] = [100_000]
    remote = Remote(f"{site.url}/a.bin", sha256=sha256)
    with pytest.raises(ValueError, match=r"/a\.bin: cannot be fetched \(.*\); what came is kept"):
        fetch(remote, tmp_path / "a.bin", retries=0)
    assert left(tmp_path) == [".a.bin.part", ".a.bin.part.json"]
    assert fetch(remote, tmp_path / "a.bin", retries=0) == SHA256
    assert asked_for(site) == [None, "bytes=100000-"]
    assert left(tmp_path) == ["a.bin"]


def test_a_part_that_was_whole_is_not_asked_for_again(site: Site, tmp_path: Path) -> None:
    (tmp_path / ".a.bin.part").write_bytes(BODY)
    record = {"identity": SHA256, "num_bytes": len(BODY), "sha256": SHA256, "total": len(BODY), "validator": None}
    (tmp_path / ".a.bin.part.json").write_text(json.dumps(record))
    assert fetch(Remote(f"{site.url}/a.bin", sha256=SHA256), tmp_path / "a.bin") == SHA256
    assert site.asked == []


@pytest.mark.parametrize("conditions", [True, False])
def test_another_content_is_fetched_from_its_beginning(site: Site, tmp_path: Path, conditions: bool) -> None:
    site.conditions = conditions
    site.cuts["/a.bin"] = [100_000]
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin", retries=0)
    site.files["/a.bin"] = other = BODY[::-1]
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin") == hashlib.sha256(other).hexdigest()


@pytest.mark.parametrize("lacks", ["ranges", "etags"])
def test_a_server_that_cannot_go_on_sends_all_again(site: Site, tmp_path: Path, lacks: str) -> None:
    setattr(site, lacks, False)
    site.cuts["/a.bin"] = [100_000, 200_000]
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin") == SHA256
    assert (tmp_path / "a.bin").read_bytes() == BODY


def test_without_etags_a_known_sum_is_enough_to_go_on(site: Site, tmp_path: Path) -> None:
    site.etags = False
    site.cuts["/a.bin"] = [100_000]
    assert fetch(Remote(f"{site.url}/a.bin", sha256=SHA256), tmp_path / "a.bin") == SHA256
    assert asked_for(site) == [None, "bytes=100000-"]


def test_a_server_that_says_no_length(site: Site, tmp_path: Path) -> None:
    site.lengths = False
    site.cuts["/a.bin"] = [100_000]
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin") == SHA256


def test_an_empty_file(site: Site, tmp_path: Path) -> None:
    site.files["/a.bin"] = b""
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin") == hashlib.sha256(b"").hexdigest()
    assert (tmp_path / "a.bin").read_bytes() == b""


def test_a_file_that_is_gzip_itself_stays_so(site: Site, tmp_path: Path) -> None:
    site.files["/a.gz"] = packed = gzip.compress(b"text")
    fetch(Remote(f"{site.url}/a.gz"), tmp_path / "a.gz")
    assert (tmp_path / "a.gz").read_bytes() == packed


def test_a_wrong_sum_leaves_nothing(site: Site, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"/a.bin: has SHA-256 {SHA256}, expected {'0' * 64}: it was damaged"):
        fetch(Remote(f"{site.url}/a.bin", sha256="0" * 64), tmp_path / "a.bin")
    assert left(tmp_path) == []


@pytest.mark.parametrize("num_bytes", [len(BODY) - 1, len(BODY) + 1, 0])
def test_a_wrong_size_is_refused_before_it_comes(site: Site, tmp_path: Path, num_bytes: int) -> None:
    with pytest.raises(ValueError, match=f"has 300,000 bytes there, not {num_bytes:,} as expected"):
        fetch(Remote(f"{site.url}/a.bin", num_bytes), tmp_path / "a.bin")
    assert left(tmp_path) == []


def test_more_than_expected_is_refused(site: Site, tmp_path: Path) -> None:
    site.lengths = False
    with pytest.raises(ValueError, match="the server sent more than 200,000 bytes"):
        fetch(Remote(f"{site.url}/a.bin", 200_000), tmp_path / "a.bin")
    assert left(tmp_path) == []


def test_less_than_expected_is_no_file(site: Site, tmp_path: Path) -> None:
    site.lengths = False
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(Remote(f"{site.url}/a.bin", 400_000), tmp_path / "a.bin", retries=2)
    assert not (tmp_path / "a.bin").exists()


def test_what_was_there_stays_until_the_new_one_is_whole(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"old")
    site.cuts["/a.bin"] = [100_000]
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin", retries=0)
    assert (tmp_path / "a.bin").read_bytes() == b"old"


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204])
def test_a_refusal_is_final(site: Site, tmp_path: Path, status: int) -> None:
    site.always["/a.bin"] = (status, {})
    with pytest.raises(RefusedError, match=f"/a.bin: the server answered {status}") as caught:
        fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin")
    assert (caught.value.status, len(site.asked), left(tmp_path)) == (status, 1, [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_trouble_is_waited_out(site: Site, tmp_path: Path, status: int) -> None:
    site.answers["/a.bin"] = [(status, {}), (status, {})]
    said: list[str] = []
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin", say=said.append) == SHA256
    assert said == [f"a.bin: the server answered {status}; again in 0 s"] * 2


def test_a_trouble_that_stays_is_an_error(site: Site, tmp_path: Path) -> None:
    site.always["/a.bin"] = (503, {})
    with pytest.raises(ValueError, match="the server answered 503"):
        fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin", retries=2)
    assert len(site.asked) == 3


def test_a_connection_that_always_breaks_at_once_is_an_error(site: Site, tmp_path: Path) -> None:
    site.cuts["/a.bin"] = [0] * 100
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin", retries=3)
    assert len(site.asked) == 4


def test_a_connection_that_brings_something_each_time_is_none(site: Site, tmp_path: Path) -> None:
    site.cuts["/a.bin"] = [20_000] * 14
    assert fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin", retries=1) == SHA256
    assert len(site.asked) == 15


def test_a_server_that_asks_for_patience_gets_it(site: Site, tmp_path: Path) -> None:
    soon = email.utils.formatdate(time.time() + 2, usegmt=True)
    site.answers["/a.bin"] = [(429, {"Retry-After": "1"}), (503, {"Retry-After": soon}), (503, {"Retry-After": "x"})]
    started = time.monotonic()
    fetch(Remote(f"{site.url}/a.bin"), tmp_path / "a.bin")
    assert time.monotonic() - started > 1


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"http://127.0.0.1:9/a.bin: cannot be fetched"):
        fetch(Remote("http://127.0.0.1:9/a.bin"), tmp_path / "a.bin")
    assert left(tmp_path) == []


@pytest.mark.parametrize("url", ["ftp://host/a", "http://", "nonsense"])
def test_no_url(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="cannot be fetched"):
        fetch(Remote(url), tmp_path / "a.bin")


def test_a_redirect_to_another_host_gets_no_secrets(site: Site, tmp_path: Path) -> None:
    with serving(Site({"/b": BODY})) as other:
        host = other.url.replace("127.0.0.1", "localhost")
        site.always["/a.bin"] = (302, {"Location": f"{host}/b"})
        other.cuts["/b"] = [100_000]
        remote = Remote(f"{site.url}/a.bin", headers={"Authorization": "Bearer secret"})
        assert fetch(remote, tmp_path / "a.bin") == SHA256
        assert asked_for(other) == [None, "bytes=100000-"]
        assert all("Authorization" in headers for _, headers in site.asked)
        assert not any("secret" in str(headers) for _, headers in other.asked)


def test_no_secrets_in_messages_and_records(site: Site, tmp_path: Path) -> None:
    site.cuts["/a.bin"] = [100_000]
    url = site.url.replace("//", "//user:secret@") + "/a.bin?key=secret"
    with pytest.raises(ValueError, match="cannot be fetched") as caught:
        fetch(Remote(url), tmp_path / "a.bin", retries=0)
    assert "secret" not in str(caught.value)
    assert "secret" not in (tmp_path / ".a.bin.part.json").read_text()


# Whatever happened to a part, the file is whole ---------------------------------------------------------------------


ETAG = f'"{hashlib.sha1(BODY, usedforsecurity=False).hexdigest()}"'


def leave(folder: Path, remote: Remote, part: bytes, num_bytes: int) -> None:
    """A part, and the record that a sound one of `num_bytes` would have."""
    (folder / ".a.bin.part").write_bytes(part)
    record = {
        "identity": remote.sha256 or hashlib.sha256(remote.url.encode()).hexdigest(),
        "num_bytes": num_bytes,
        "sha256": hashlib.sha256(BODY[: max(0, num_bytes)]).hexdigest(),
        "total": len(BODY),
        "validator": ETAG,
    }
    (folder / ".a.bin.part.json").write_text(json.dumps(record))


@pytest.mark.parametrize("known", [True, False])
def test_a_sound_part_is_used_as_far_as_its_record_goes(site: Site, tmp_path: Path, known: bool) -> None:
    remote = Remote(f"{site.url}/a.bin", sha256=SHA256 if known else None)
    leave(tmp_path, remote, BODY[:150_000], 140_000)  # killed after the last record
    assert fetch(remote, tmp_path / "a.bin") == SHA256
    assert asked_for(site) == ["bytes=140000-"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    num_bytes=st.integers(1, len(BODY)),
    beyond=st.binary(max_size=20),
    flip=st.integers(0, len(BODY)),
    short=st.integers(0, 20),
    known=st.booleans(),
    ranges=st.booleans(),
)
def test_a_damaged_part_never_becomes_a_file(
    site: Site, tmp_path_factory: pytest.TempPathFactory, num_bytes, beyond, flip, short, known, ranges
) -> None:
    site.ranges = ranges
    folder = tmp_path_factory.mktemp("damaged")
    remote = Remote(f"{site.url}/a.bin", sha256=SHA256 if known else None)
    part = bytearray(BODY[:num_bytes])
    part[flip % num_bytes] ^= 1
    leave(folder, remote, bytes(part[: num_bytes - short]) + beyond, num_bytes)
    assert fetch(remote, folder / "a.bin") == SHA256
    assert (folder / "a.bin").read_bytes() == BODY
    assert left(folder) == ["a.bin"]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    part=st.binary(max_size=50),
    record=st.binary(max_size=50)
    | st.recursive(
        st.none() | st.integers(-9, 2**70) | st.text(max_size=5) | st.just(SHA256),
        lambda inner: st.dictionaries(
            st.sampled_from(["identity", "num_bytes", "sha256", "total", "validator"]), inner, max_size=5
        ),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_a_record_of_anything_never_becomes_a_file(
    site: Site, tmp_path_factory: pytest.TempPathFactory, part: bytes, record: bytes
) -> None:
    folder = tmp_path_factory.mktemp("records")
    (folder / ".a.bin.part").write_bytes(part)
    (folder / ".a.bin.part.json").write_bytes(record)
    assert fetch(Remote(f"{site.url}/a.bin"), folder / "a.bin") == SHA256

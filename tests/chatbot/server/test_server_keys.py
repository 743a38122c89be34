"""Files of keys, who a key belongs to, and which addresses are this machine's alone."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.api.service import Caller
from chatbot.server.keys import Key, Keyring, is_loopback, open_keyring
from chatbot.server.opening import named_indexes

ALICE, BOB = "alice-has-this-key", "bob-has-another-key"
NAMES = ("hills", "rivers")


def write(tmp_path, content):
    path = tmp_path / "keys.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_file_of_keys(tmp_path):
    content = {
        ALICE: {"name": "alice", "indexes": ["rivers", "hills"], "metrics": True},
        BOB: {"name": "bob", "indexes": []},
        "carol-sees-everything": {"name": "carol", "indexes": "*"},
    }
    keyring = open_keyring(write(tmp_path, content), "the-operators-own-key", NAMES)
    assert len(keyring) == 4
    callers = [keyring.caller(key.encode()) for key in (*content, "the-operators-own-key")]
    assert [caller.collections for caller in callers] == [("rivers", "hills"), (), NAMES, NAMES]
    assert [caller.metrics for caller in callers] == [True, False, False, True]
    assert len({caller.id for caller in callers}) == 4
    for wrong in (None, b"", ALICE[:-1].encode(), ALICE.encode() + b" ", ALICE.upper().encode(), b"\xff"):
        assert keyring.caller(wrong) is None
    everything = repr(keyring) + repr(callers) + repr([Key(ALICE.encode(), callers[0])])
    assert ALICE not in everything


@given(st.binary(max_size=40))
def test_only_the_key_itself_opens(secret):
    keyring = Keyring([Key(ALICE.encode(), Caller("alice"))])
    assert (keyring.caller(secret) is not None) == (secret == ALICE.encode())


def test_without_keys_everybody_is_the_same():
    keyring = open_keyring(None, None, NAMES)
    assert len(keyring) == 0
    assert keyring.caller(None) == keyring.caller(b"x")
    assert keyring.caller(None).collections == NAMES


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("", "must map each key"),
        ("- a\n- b\n", "must map each key"),
        ("{", "not YAML or JSON"),
        ("short: {name: x, indexes: []}", "at least 16"),
        ("1234567890123456: {name: x, indexes: []}", "in quotes"),
        (f"{ALICE}: alice", "has no fields"),
        (f"{ALICE}: {{name: alice}}", "no list of indexes"),
        (f"{ALICE}: {{indexes: []}}", "has no name"),
        (f"{ALICE}: {{name: a, indexes: [lakes]}}", "no index 'lakes' .there are: hills, rivers"),
        (f"{ALICE}: {{name: a, indexes: hills}}", "no list of indexes"),
        (f"{ALICE}: {{name: a, indexes: [], admin: true}}", "unknown field 'admin'"),
        (f"{ALICE}: {{name: a, indexes: [], metrics: 1}}", "metrics must be"),
        (f"{ALICE}: {{name: a, indexes: []}}\n{ALICE}: {{name: b, indexes: []}}", "stands there twice"),
        (f"{ALICE}: {{name: a, indexes: []}}\n{ALICE}: [\n", "not YAML or JSON"),
    ],
)
def test_a_file_that_is_none_is_refused_without_a_word_of_its_keys(tmp_path, content, named):
    with pytest.raises(ValueError, match=named) as error:
        open_keyring(write(tmp_path, content), None, NAMES)
    assert ALICE not in str(error.value)


def test_a_key_in_both_places(tmp_path):
    path = write(tmp_path, {ALICE: {"name": "a", "indexes": []}})
    with pytest.raises(ValueError, match="in the file of keys too"):
        open_keyring(path, ALICE, NAMES)


def test_which_addresses_are_this_machines_alone():
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "localhost", "LocalHost", "::1", "[::1]")))
    others = ("0.0.0.0", "::", "", "192.168.1.2", "example.org", "localhost.example.org", "::ffff:10.0.0.1", "127.1.x")  # noqa: S104
    assert not any(map(is_loopback, others))


def test_indexes_under_names():
    given_ = ["docs/a", "hr=b", "hr=c=d", "./x=y", "/data/k=v/index", "qdrant+http://host:6333/docs", "b"]
    remote = "qdrant+http://host:6333/docs"
    expected = {"default": ["docs/a", "./x=y", "/data/k=v/index", remote, "b"], "hr": ["b", "c=d"]}
    assert named_indexes(given_) == expected
    assert list(named_indexes(["x=1", "2", "a=3"])) == ["x", "default", "a"]

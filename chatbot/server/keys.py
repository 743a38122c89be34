"""API keys: who may ask, and which collections exist for whom.

# keys.yaml (or JSON)
sk-a-long-random-text:
  name: alice
  indexes: [handbook, contracts]   # the first is the default; "*" for all, [] for none
  metrics: true                    # may read /metrics; false where left out
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from chatbot.api.service import Caller
from common.files import read_text

MIN_LENGTH = 16  # characters of a key; what is shorter can be guessed
_FIELDS = ("name", "indexes", "metrics")


@dataclass(frozen=True)
class Key:
    """A key and its holder. Its `repr` does not show it."""

    secret: bytes
    caller: Caller

    def __repr__(self) -> str:
        return f"Key(caller={self.caller.id})"


class Keyring:
    """All keys of a server; without any, everybody is the same caller, who sees everything."""

    def __init__(self, keys: Sequence[Key], collections: Sequence[str] = ()) -> None:
        self._keys = tuple(keys)
        self._anyone = Caller("", tuple(collections), metrics=True)

    def __len__(self) -> int:
        return len(self._keys)

    def caller(self, secret: bytes | None) -> Caller | None:
        """Whose key it is, None for a wrong one. It is compared with all keys, each in constant time, so that the time
        taken tells nothing about any."""
        if not self._keys:
            return self._anyone
        found, given = None, hashlib.sha256(secret or b"").digest()  # of one length, so that none is told either
        for key in self._keys:
            if hmac.compare_digest(hashlib.sha256(key.secret).digest(), given):
                found = key.caller
        return found


def open_keyring(path: Path | None, single: str | None, collections: Sequence[str]) -> Keyring:
    """From a file of keys and from PARLEY_API_KEY, whose holder sees everything. ValueError, without a word of any key,
    for what is no such file, for a short key, and for an index that the server does not have."""
    keys = [_key(path, number, *entry, collections) for number, entry in enumerate(_entries(path), 1)] if path else []
    if single:
        if len(single) < MIN_LENGTH:
            raise ValueError(f"PARLEY_API_KEY has {len(single)} characters; give it at least {MIN_LENGTH}")
        keys.append(Key(single.encode(), Caller(_id(single), tuple(collections), metrics=True)))
    if len({key.secret for key in keys}) < len(keys):
        raise ValueError("PARLEY_API_KEY is in the file of keys too; leave it out of one of them")
    return Keyring(keys, collections)


def _entries(path: Path) -> list[tuple[Any, Any]]:
    try:
        data = yaml.load(read_text(path), Loader=_NoDuplicates)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        # Not the error's own text: it quotes the line, and with it the key.
        raise ValueError(f"{path}{place}: not YAML or JSON, or a key that stands there twice") from None
    if not isinstance(data, dict) or not data:
        raise ValueError(f"{path}: must map each key to its name and indexes, as docs/server.md shows")
    return list(data.items())


class _NoDuplicates(yaml.SafeLoader):
    """YAML takes the last of two equal keys without a word; here a key would lose its rights."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name, _ in node.value:
            if name.value in seen:
                raise yaml.constructor.ConstructorError(None, None, "twice", name.start_mark)
            seen.add(name.value)
        return super().construct_mapping(node, deep)


def _key(path: Path, number: int, secret: Any, entry: Any, collections: Sequence[str]) -> Key:
    where = f"{path}: key {number}"
    if not isinstance(secret, str) or len(secret) < MIN_LENGTH or not secret.isascii() or not secret.isprintable():
        raise ValueError(f"{where} must be a text of at least {MIN_LENGTH} plain characters (in quotes, if of digits)")
    if not isinstance(entry, Mapping) or (unknown := [name for name in entry if name not in _FIELDS]):
        problem = f"has an unknown field '{unknown[0]}'" if isinstance(entry, Mapping) else "has no fields"
        raise ValueError(f"{where} {problem}; give name and indexes, and metrics if it may read them")
    name, indexes, metrics = entry.get("name"), entry.get("indexes"), entry.get("metrics", False)
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where} has no name")
    if indexes == "*" or indexes == ["*"]:
        indexes = list(collections)
    if not isinstance(indexes, list):
        raise ValueError(f'{where} ({name}) has no list of indexes; write [] for none, "*" for all')
    for each in indexes:
        if each not in collections:
            known = ", ".join(collections) or "none; give --index NAME=DIR"
            raise ValueError(f"{where} ({name}): there is no index '{each}' (there are: {known})")
    if not isinstance(metrics, bool):
        raise ValueError(f"{where} ({name}): metrics must be true or false")
    return Key(secret.encode(), Caller(_id(secret), tuple(dict.fromkeys(indexes)), metrics))


def _id(secret: str) -> str:
    """What tells callers apart, without being the key."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is this machine's alone. A name other than localhost may be anything."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

"""Ways in which a file comes to harm: what disks, copies and people do to it."""

# ruff: noqa: ARG005  # all ways take the same arguments
from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

Mutator = Callable[[Path, Path, random.Random], None]  # (file, the index that it is in, chance)


def _edited(edit: Callable[[bytearray, random.Random], None]) -> Mutator:
    def mutate(path: Path, _: Path, rng: random.Random) -> None:
        data = bytearray(path.read_bytes())
        edit(data, rng)
        if rng.random() < 0.5:
            path.write_bytes(data)  # in place
        else:
            path.unlink()
            path.write_bytes(data)

    return mutate


def _flip(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_more(data: bytearray, rng: random.Random) -> None:
    for place in rng.sample(range(len(data)), min(3, len(data))):
        data[place] ^= rng.randint(1, 255)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(len(data)) :]


def _insert(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.randint(1, 5000))


def _remove_part(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    del data[place : place + rng.randint(1, 5000)]


def _zero(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    part = data[place : place + rng.randint(1, 4096)]
    data[place : place + len(part)] = bytes(len(part)) if any(part) else b"\xff" * len(part)


def _repeat(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data))
    data[place:place] = data[place : place + rng.randint(1, 5000)]


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice([b"\n", b"\0", bytes(data), rng.randbytes(4096)])


def _swap(path: Path, index: Path, rng: random.Random) -> None:
    """With another file of the index that is not the same: half the time one of its name, where there is one."""
    others = [other for other in index.rglob("*.*") if other.is_file() and other.read_bytes() != path.read_bytes()]
    namesakes = [other for other in others if other.name == path.name]
    other = rng.choice(namesakes if namesakes and rng.random() < 0.5 else others)
    mine, yours = path.read_bytes(), other.read_bytes()
    path.write_bytes(yours)
    other.write_bytes(mine)


def _folder(path: Path, _: Path, rng: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_bytes(rng.randbytes(9))


MUTATORS: dict[str, Mutator] = {
    "flip": _edited(_flip),
    "flip more": _edited(_flip_more),
    "cut": _edited(_cut),
    "insert": _edited(_insert),
    "remove a part": _edited(_remove_part),
    "zero": _edited(_zero),
    "repeat": _edited(_repeat),
    "append": _edited(_append),
    "empty": _edited(lambda data, rng: data.clear()),
    "junk": _edited(lambda data, rng: data.__setitem__(slice(None), rng.randbytes(len(data)))),
    "remove": lambda path, _, rng: path.unlink(),
    "swap": _swap,
    "folder": _folder,
}

"""Documents that attack their reader: made from a seed, each with what has to become of it.

    from tools.torture.hostile import make_hostile, problems
    cases = make_hostile(folder, seed=0, count=300)      # read cases[0].path.parent
    problems(cases, documents, skipped)                  # [] where everything went as it must

Beside the folder of documents stands one that nothing may lead to, whose file holds SECRET.
"""

# ruff: noqa: ARG005  # all makers take the same argument
from __future__ import annotations

import os
import random
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from retrieval.documents import printable_path
from retrieval.types import Document
from tools.torture import packed

SECRET = "the-secret-that-nobody-may-read"  # noqa: S105
GOOD = "A sound sentence that must be found again."

Expected = Literal["read", "refused", "any"]


@dataclass(frozen=True)
class Case:
    """A hostile file. `expected`: 'read' and 'refused' are musts, 'any' allows both, but not silence. `reason`: what
    must be said of a refused one; of a read one it must be said beside, where it is not ''."""

    path: Path
    kind: str
    expected: Expected
    reason: str = ""


@dataclass(frozen=True)
class _Place:
    """Where a maker works: `stem` is the file to be without its suffix."""

    stem: Path
    secret: Path
    random: random.Random

    def write(self, suffix: str, content: bytes | str) -> Path:
        path = self.stem.with_name(self.stem.name + suffix)
        path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
        return path


_Made = tuple[Path, Expected, str]
_Maker = Callable[[_Place], _Made]


def make_hostile(folder: Path, seed: int, count: int, megabytes: float = 4) -> list[Case]:
    """Write `count` files into `folder`/documents, of all kinds in turn, varied by `seed`.

    `megabytes`: size of the large ones among them (sparse files and unpacked bombs are larger). Kinds that this
    system or user cannot make, such as files without permission for root, are left out.
    """
    documents, outside = folder / "documents", folder / "outside"
    documents.mkdir(parents=True)
    outside.mkdir()
    secret = outside / "secret.txt"
    secret.write_text(f"{SECRET}\n")
    makers = [(name, maker) for name, maker in _makers(int(megabytes * 1e6)).items() if _can_make(name)]
    rng = random.Random(seed)  # noqa: S311
    cases = []
    for number in range(count):
        name, maker = makers[number % len(makers)]
        place = _Place(documents / f"{number:04}-{name.replace(' ', '-')}", secret, rng)
        path, expected, reason = maker(place)
        cases.append(Case(path, name, expected, reason))
    return cases


def problems(cases: Iterable[Case], documents: Iterable[Document], skipped: Iterable[tuple[str, str]]) -> list[str]:
    """What did not go as it must, a line each; `documents` and `skipped` are what a reader made of the folder."""
    wrong = []
    read: set[str] = set()
    for document in documents:
        read.add(document.source)
        if SECRET in f"{document.title} {document.text} {dict(document.meta)}":
            wrong.append(f"{document.source}: the secret escaped")
    reasons: dict[str, list[str]] = {}
    for source, reason in skipped:
        reasons.setdefault(source, []).append(reason)
        if SECRET in reason or not reason.strip() or "\n" in reason:
            wrong.append(f"{source}: not a reason: {reason!r}")
    for case in cases:
        source = printable_path(case.path)
        said = "; ".join(reasons.get(source, []))
        if source not in read and not said:
            wrong.append(f"{source}: neither read nor reported")
        if case.expected == "read" and source not in read:
            wrong.append(f"{source}: refused ({said})")
        if case.expected == "refused" and source in read:
            wrong.append(f"{source}: read")
        if case.reason and case.expected != "any" and case.reason not in said:
            wrong.append(f"{source}: the reason is not {case.reason!r} but {said!r}")
    return wrong


def _can_make(name: str) -> bool:
    if name == "no permission":
        return hasattr(os, "geteuid") and os.geteuid() != 0
    return os.name != "nt" or name not in _POSIX_ONLY


_POSIX_ONLY = frozenset({"fifo", "socket", "name", "link out", "linked folder out", "circle", "broken link", "device"})


_HTML_PIECES = (
    *("<", "<a ", "</", "<!--", '<a b="', '<a =">"', "<svg>", "</style>", "&", "&#x", "<![CDATA[", "<pre>\n"),
    *("<title>", "<textarea>", "<td>", "<h1>"),
)


def _makers(size: int) -> dict[str, _Maker]:
    """By name of the kind. `size`: bytes of the large ones."""

    def written(expected: Expected, reason: str, suffix: str, content: Callable[[_Place], bytes | str]) -> _Maker:
        return lambda place: (place.write(suffix, content(place)), expected, reason)

    def repeated(suffixes: tuple[str, ...], pieces: tuple[str, ...], expected: Expected = "any") -> _Maker:
        """A piece of markup over and over, sometimes with what would end it at the very end."""

        def make(place: _Place) -> _Made:
            piece = "".join(place.random.choices(pieces, k=place.random.randint(1, 3)))
            end = place.random.choice(["", ">", "-->", '">', "'>", ")", "\n"])
            content = f"{GOOD}\n\n{piece * (size // 4 // len(piece))}{end}"
            return place.write(place.random.choice(suffixes), content), expected, ""

        return make

    def one_of(*makers: _Maker) -> _Maker:
        return lambda place: place.random.choice(makers)(place)

    makers: dict[str, _Maker] = {
        "zeros": written("refused", "not text", ".txt", lambda p: GOOD.encode() + bytes(p.random.randint(1, 2000))),
        "junk": lambda p: (
            p.write(p.random.choice([".txt", ".md", ".html", ".rst"]), p.random.randbytes(20_000)),
            "refused",
            "not text",
        ),
        "half utf-16": written("refused", "UTF-16", ".txt", lambda p: b"\xff\xfe" + GOOD.encode("utf-16-le") + b"x"),
        "one long line": written("any", "", ".txt", lambda p: "word" * (size // 4)),
        "no text": written("refused", "no text", ".md", lambda p: " \n\t" * p.random.randint(0, 9)),
        "encoded surrogates": written("any", "", ".txt", lambda p: f"{GOOD} \ud800\udc00\udfff {GOOD}"),
        "terminal codes": written("read", "", ".txt", lambda p: f"\x1b]0;pwned\x07{GOOD * 20}\u202e\u2066{GOOD}"),
        "html nested": written("read", "", ".html", lambda p: "<div><table><b>" * (size // 100) + GOOD),
        "html repeated": repeated((".html", ".htm"), _HTML_PIECES),
        "html entities": written("read", "", ".html", lambda p: _xxe_page(p.secret)),
        "markdown repeated": repeated((".md",), ("[", "![", "**a ", "`", "<!-- ", "> ", "|", "_a", "\\", "[a](", "(")),
        "include": lambda p: (
            p.write(p.random.choice([".rst", ".md", ".txt"]), _includes(p.secret)),
            "read",
            "",
        ),
        "sparse": _sparse,
        "fifo": _fifo,
        "socket": _socket,
        "device": lambda p: (_link(p, ".txt", p.random.choice(["/dev/zero", "/dev/stdin"])), "refused", ""),
        "link out": lambda p: (_link(p, p.random.choice([".txt", ".jsonl"]), _way(p)), "refused", "leads out"),
        "linked folder out": lambda p: (_link(p, "", p.secret.parent), "refused", "leads out"),
        "circle": lambda p: (_link(p, ".txt", Path(p.stem.name + ".txt")), "refused", ""),
        "broken link": lambda p: (_link(p, ".txt", Path("nowhere.txt")), "refused", "broken link"),
        "no permission": _no_permission,
        "name": _strange_name,
        "unknown kind": written("refused", "unknown kind", ".exe", lambda p: b"MZ"),
        "wrong kind": one_of(
            written("refused", "", ".pdf", lambda p: GOOD),
            written("refused", "", ".docx", lambda p: p.random.randbytes(500)),
            written("refused", "not text", ".txt", lambda p: b"\x89PNG\r\n\x1a\n" + p.random.randbytes(3000)),
            written("refused", "", ".jsonl", lambda p: p.random.randbytes(3000)),
            written("refused", "gzip", ".jsonl.gz", lambda p: GOOD),
        ),
    }
    for name, (suffix, expected, reason, content) in packed.contents(size, GOOD).items():
        makers[name] = written(expected, reason, suffix, lambda p, make=content: make(p.random, p.secret))  # type: ignore[misc]
    return makers


def _includes(secret: Path) -> str:
    return (
        f"{GOOD}\n\n.. include:: {secret}\n\n.. literalinclude:: ../outside/secret.txt\n\n![[../outside/secret.txt]]\n"
        f"\n{{% include '{secret}' %}}\n\n<!--#include file=\"../outside/secret.txt\" -->\n"
    )


def _xxe_page(secret: Path) -> str:
    return (
        f'<!DOCTYPE html [<!ENTITY x SYSTEM "file://{secret}">]><p>{GOOD} &x;</p>'
        f'<iframe src="file://{secret}"></iframe><object data="../outside/secret.txt"></object>'
    )


def _sparse(place: _Place) -> _Made:
    """A file of gigabytes that takes no room on the disk."""
    suffix = place.random.choice([".txt", ".md", ".html"])
    path = place.write(suffix, GOOD)
    with open(path, "ab") as file:
        file.truncate(place.random.randint(300, 3000) * 1_000_000)
    return path, "refused", "larger than"


def _fifo(place: _Place) -> _Made:
    path = place.stem.with_name(place.stem.name + place.random.choice([".txt", ".pdf", ".jsonl"]))
    os.mkfifo(path)
    return path, "refused", "not a regular file"


def _socket(place: _Place) -> _Made:
    path = place.stem.with_name(place.stem.name[:8] + ".txt")
    here = Path.cwd()
    os.chdir(path.parent)  # the full name may be too long for a socket
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)
    return path, "refused", "not a regular file"


def _way(place: _Place) -> Path:
    return place.random.choice([place.secret, Path("../outside/secret.txt"), Path("/etc/passwd")])


def _link(place: _Place, suffix: str, target: Path | str) -> Path:
    path = place.stem.with_name(place.stem.name + suffix)
    path.symlink_to(target)
    return path


def _no_permission(place: _Place) -> _Made:
    path = place.write(".txt", GOOD)
    path.chmod(0)
    return path, "refused", "Permission denied"


def _strange_name(place: _Place) -> _Made:
    """Names that forge lines, turn text around or are no UTF-8."""
    names = [
        "a\nskipped b",
        "a\u202etxt.",
        "a\x1b[31m",
        os.fsdecode(b"caf\xe9"),
        "a\\n",
        "$(touch x)",
        "a.jsonl#1",
        "%s%n",
    ]
    path = place.stem.with_name(f"{place.stem.name}-{place.random.choice(names)}.txt")
    path.write_text(GOOD)
    return path, "read", ""

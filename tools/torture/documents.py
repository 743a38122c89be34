"""Build an index from documents that attack their reader, and see what gets into it.

    python -m tools.torture.documents --files 300 --seed 0

Of the files that `hostile.py` makes each must be in the index or be reported with a reason; nothing of the file that
stands outside their folder may be in any file of the index, or in what is said. The time and the memory of the build
are measured: of its own process, and of the largest one that it started. Exits with 1 where anything went otherwise.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click

from retrieval.documents import Limits
from retrieval.index.store import Store
from retrieval.retriever import Retriever
from retrieval.types import Document
from retrieval.writing.building import build_index
from retrieval.writing.report import Report
from tools.torture.hostile import GOOD, SECRET, make_hostile, problems

LIMITS = Limits(seconds=5, memory_mb=600)
MAX_OWN_MB = 300  # that a build of sound documents does not need, with the hash encoder
SECONDS_PER_FILE = 1.0  # on the average; a few of them take all of the time that they are allowed


@dataclass(frozen=True)
class Outcome:
    """What a build of hostile documents came to. own_mb: what its process grew by; largest_mb: the largest process that
    it started."""

    report: Report
    problems: list[str]
    own_mb: float
    largest_mb: float


def build_hostile(folder: Path, num: int, seed: int, megabytes: float = 4) -> Outcome:
    """Make `num` hostile documents in `folder`, and an index of them."""
    # In another process, for these are large: this one's memory is to be measured.
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        cases = executor.submit(make_hostile, folder, seed, num, megabytes).result()
    index = folder / "index"
    before, largest_before = _peak_mb(resource.RUSAGE_SELF), _peak_mb(resource.RUSAGE_CHILDREN)
    report = build_index([folder / "documents"], index, "hash", calibrate=False, limits=LIMITS)
    own, largest = _peak_mb(resource.RUSAGE_SELF) - before, _peak_mb(resource.RUSAGE_CHILDREN)
    wrong = problems(cases, _documents(index), report.skipped)
    wrong += [f"{path.relative_to(index)}: holds the secret" for path in _files(index) if _holds_secret(path)]
    if len(report.skipped) != len(set(report.skipped)):
        wrong.append("something was reported twice")
    if not Retriever.open(index).search([GOOD], 1)[0]:
        wrong.append("sound parts are not found")
    if own > MAX_OWN_MB:
        wrong.append(f"the build's process grew by {own:.0f} MB, which should be {MAX_OWN_MB} at most")
    if largest > max(LIMITS.memory_mb, largest_before):
        wrong.append(f"a reader grew to {largest:.0f} MB, which should be {LIMITS.memory_mb} at most")
    allowed = 3 * LIMITS.seconds + SECONDS_PER_FILE * num
    if report.seconds > allowed:
        wrong.append(f"it took {report.seconds:.0f} s, which should be {allowed:.0f} at most")
    return Outcome(report, wrong, own, largest)


def _documents(index: Path) -> Iterator[Document]:
    """What is stored, as documents without blocks: their text in the title."""
    for _, passage in Store(index).live_passages():
        yield Document(passage.id, (), f"{passage.title} {passage.text}", passage.source, passage.meta)


def _files(index: Path) -> list[Path]:
    return [path for path in index.rglob("*") if path.is_file()]


def _holds_secret(path: Path) -> bool:
    return SECRET.encode() in path.read_bytes()


def _peak_mb(whose: int) -> float:
    """Largest resident size so far."""
    return resource.getrusage(whose).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


@click.command()
@click.option("--files", default=300, show_default=True, help="To be made.")
@click.option("--seed", default=0, show_default=True, help="Of their contents.")
@click.option("--megabytes", default=4.0, show_default=True, help="Of the large ones among them.")
def main(files: int, seed: int, megabytes: float) -> None:
    """Index hostile documents."""
    with tempfile.TemporaryDirectory(prefix="parley-hostile-") as name:
        outcome = build_hostile(Path(name), files, seed, megabytes)
    report = outcome.report
    click.echo(
        f"{files} hostile documents: {report.num_read} read in part or whole ({report.num_passages} passages), "
        f"{len(report.skipped)} reports; {report.seconds:.0f} s; the build's process grew by {outcome.own_mb:.0f} MB, "
        f"its largest reader had {outcome.largest_mb:.0f} MB; {len(outcome.problems)} problems"
    )
    for problem in outcome.problems[:20]:
        click.echo(f"  {problem}")
    sys.exit(1 if outcome.problems else 0)


if __name__ == "__main__":
    main()

"""Kill changes of an index at random moments, and see what readers find then and what a second run makes of it.

    python -m tools.torture.kills --kills 200 --seed 0

Builds (of a new index and in place of an old one, alone and with two workers), updates, deletions and compactions run
in forked processes, and get SIGKILL at a moment drawn from as long as an uninterrupted run takes: the whole process
group or, with workers, sometimes their parent alone. All the while another process opens the index and searches it,
and must never fail. After each kill all of the index is read: it must hold exactly the old or exactly the new content.
Then the change is made again, and killed up to twice more, until a run ends; now the content must be that of a run
which nobody killed, and nothing may be left over. Exits with 1 where anything went otherwise.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from retrieval.index.manifest import MANIFEST
from retrieval.index.store import Store
from retrieval.retriever import Retriever
from retrieval.writing.removal import compact_index
from tools.torture.changes import Content, Kind, content, kinds, left_over

MAX_RUNS = 3  # killed, of one change, before it may end


@dataclass
class Score:
    """What happened to changes of one kind. `seconds`: of an uninterrupted run."""

    seconds: float
    kills: int = 0
    found: Counter[str] = field(default_factory=Counter)
    ended: int = 0
    reads: int = 0
    problems: list[str] = field(default_factory=list)


def start(action: Callable[[], object]) -> int:
    """Run `action` in a forked process with a group of its own; its pid. It ends with 0, or 99 and a message."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        with contextlib.suppress(PermissionError):  # it was quicker
            os.setpgid(child, child)
        return child
    status = 99
    try:
        os.setpgid(0, 0)
        action()
        status = 0
    except Exception as error:  # it is told, and counts as a failure
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
    finally:
        os._exit(status)


def end(child: int, seconds: float, parent_alone: bool = False) -> bool:
    """Wait `seconds`, then kill; whether it came to that. Raises RuntimeError where it had failed by itself."""
    deadline = time.monotonic() + seconds
    pid = status = 0
    while pid == 0 and time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0 if seconds < 1 else 0.001)
    if pid == 0:
        if parent_alone:
            os.kill(child, signal.SIGKILL)
        else:
            os.killpg(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the change failed by itself with {code}")
    return code != 0


@contextlib.contextmanager
def reading(index: Path, wanted: Sequence[Content | None]) -> Iterator[Callable[[], dict[str, Any]]]:
    """Another process that opens and searches the index until what this gives is called, which tells how it went."""
    told, tell = os.pipe()
    stop, stopped = os.pipe()

    def read() -> None:
        os.close(stopped)
        os.write(tell, json.dumps(_read_until(index, wanted, stop)).encode())

    child = start(read)
    os.close(tell)
    os.close(stop)

    def finish() -> dict[str, Any]:
        os.write(stopped, b"x")
        with open(told, "rb", closefd=False) as file:
            answer = file.read()
        result: dict[str, Any] = json.loads(answer) if answer else {"reads": 0, "problem": "the reader died"}
        return result

    try:
        yield finish
    finally:
        os.close(stopped)
        os.close(told)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _read_until(index: Path, wanted: Sequence[Content | None], stop: int) -> dict[str, Any]:
    import select

    allowed = [set() if each is None else set(each["passages"]) for each in wanted]
    held: Retriever | None = None
    num = 0
    while not select.select([stop], [], [], 0.002)[0]:
        try:
            if not (index / MANIFEST).exists():
                continue
            held = held if held and num % 5 else Retriever.open(index)  # opened now, or some changes ago
            hits = held.search(["castle3 number7 tower7", "a mill of wood"], 3)
            found = {passage.id for _, passage in Store(index).live_passages()} if num % 3 == 0 else allowed[-1]
            if not all(hits) or found not in allowed:
                return {"reads": num, "problem": f"the reader found {len(found)} passages, {list(map(len, hits))} hits"}
        except Exception as error:  # whatever it is, no reader may see it
            return {"reads": num, "problem": f"the reader failed: {type(error).__name__}: {error}"}
        num += 1
    return {"reads": num, "problem": ""}


def run_killed(kind: Kind, score: Score, index: Path, old: Content | None, new: Content, rng: random.Random) -> None:
    """One change, killed one to MAX_RUNS times and then run to its end; adds to `score`."""
    if kind.prepared:
        shutil.copytree(kind.prepared, index)
    with reading(index, [old, new]) as finish:
        state = "old"
        for _ in range(rng.randint(1, MAX_RUNS)):
            moment = rng.uniform(0, score.seconds)
            if not end(start(lambda: kind.change(index)), moment, kind.parent_alone):
                state = "new"
                score.ended += 1
                break
            score.kills += 1
            now = content(index)
            state = "old" if now == old else "new" if now == new else "other"
            score.found[state] += 1
            if state == "other":
                score.problems.append(f"after a kill at {moment:.3f} s the index holds something else")
            if state != "old":
                break
        if state == "new":
            end(start(lambda: compact_index(index)), 600)  # nobody sweeps up until the next change
        else:
            end(start(lambda: kind.change(index)), 600)
        if content(index) != new:
            score.problems.append("the result is not that of an uninterrupted run")
        time.sleep(0.1)  # the reader sees the end, and workers that were left alone find that they are
        said = finish()
        score.reads += said["reads"]
        if said["problem"]:
            score.problems.append(said["problem"])
    if left := left_over(index):  # now that the reader writes nothing more
        score.problems.append(f"left over: {', '.join(left[:5])}")


def uninterrupted(kind: Kind, folder: Path) -> tuple[Content | None, Content, float]:
    """What the index holds before and after, and how long that takes."""
    seconds = []
    for number in range(2):
        index = folder / f"whole-{number}"
        if kind.prepared:
            shutil.copytree(kind.prepared, index)
        started = time.monotonic()
        end(start(lambda index=index: kind.change(index)), 600)  # type: ignore[misc]
        seconds.append(time.monotonic() - started)
        new = content(index)
        shutil.rmtree(index)
    if new is None:
        raise RuntimeError("there is no index after an uninterrupted run")
    return content(kind.prepared) if kind.prepared else None, new, max(seconds)


@click.command()
@click.option("--kills", default=200, show_default=True, help="To be made, over all kinds.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--only", multiple=True, help="Kinds of changes, by name.  [default: all]")
@click.option("--records", default=3000, show_default=True, help="Records in the documents, a passage each.")
def main(kills: int, seed: int, only: tuple[str, ...], records: int) -> None:
    """Kill changes of an index at random moments."""
    rng = random.Random(seed)  # noqa: S311
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="parley-kills-") as name:
        folder = Path(name)
        known = {kind.name: kind for kind in kinds(folder, records)}
        if unknown := set(only) - set(known):
            raise click.UsageError(f"unknown kind '{min(unknown)}'; the kinds are: {'; '.join(known)}")
        tested = [kind for kind in known.values() if not only or kind.name in only]
        states = {kind.name: uninterrupted(kind, folder) for kind in tested}
        scores = {kind.name: Score(states[kind.name][2]) for kind in tested}
        number = 0
        while (total := sum(score.kills for score in scores.values())) < kills:
            # The kind that was killed least; of changes that often end before, more are needed.
            kind = min(tested, key=lambda each: scores[each.name].kills)
            score = scores[kind.name]
            index = folder / f"index-{number}"
            try:
                run_killed(kind, score, index, *states[kind.name][:2], rng)
            except (OSError, RuntimeError, ValueError) as error:
                score.kills += 1
                score.problems.append(f"{type(error).__name__}: {error}")
            shutil.rmtree(index, ignore_errors=True)
            number += 1
            if sys.stderr.isatty():
                click.echo(f"\r{total} kills", err=True, nl=False)
    for kind in tested:
        click.echo(_summary(kind.name, scores[kind.name]))
    num_problems = sum(len(score.problems) for score in scores.values())
    click.echo(f"{total} kills in {time.monotonic() - started:.0f} s, {num_problems} problems")
    sys.exit(1 if num_problems else 0)


def _summary(name: str, score: Score) -> str:
    found = ", ".join(f"{num} {state}" for state, num in sorted(score.found.items()))
    line = (
        f"{name}: {score.kills} kills within {score.seconds:.2f} s; index afterwards: {found or 'none'}; {score.ended} "
        f"ended before; {score.reads} reads meanwhile; {len(score.problems)} problems"
    )
    return "\n  ".join([line, *score.problems[:10]])


if __name__ == "__main__":
    main()

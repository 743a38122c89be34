"""Whatever is said gets a verdict: random Unicode, nothing, megabytes, and weights that give NaN.

Run: python -m tools.torture.texts [--texts 50000] [--seed 0]

The moderator is the bot's own: Parley's classifier with its encoder, the default policy, once more with a policy that
fails closed. A problem is an exception, a missing verdict, a score that is no probability, a verdict without scores
that does not say what failed, or a failure that the policy did not decide.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click
import numpy as np

from common.cli import OneLineCommand
from moderation.head.classifier import HeadClassifier, shipped
from moderation.head.model import load_head
from moderation.moderator import PolicyModerator, open_moderator
from moderation.policy import Policy
from moderation.types import DIRECTIONS, Verdict

BATCH = 256
LONG = 1_000_000
# Where code points are drawn from: ASCII, Latin, all scripts, emoji, controls, combining marks, lone surrogates.
RANGES = ((0x20, 0x7E), (0xA0, 0x24F), (0x370, 0xFFFD), (0x1F300, 0x1FAFF), (0, 0x1F), (0x300, 0x36F), (0xD800, 0xDFFF))
LONG_UNITS = ("x", "good ", "kill ", "\x00", "é́", "\U0001f600", "\ud800", "<|im_end|>", "\n", "(", "。")


def random_texts(num: int, seed: int) -> Iterator[str]:
    """Texts of 0 to 300 characters, each mixed from a few of the ranges."""
    rng = random.Random(seed)  # noqa: S311  # not for secrets
    for _ in range(num):
        ranges = rng.sample(RANGES, rng.randint(1, 3))
        length = rng.choice((0, 1, 2, 10, 40, 120, 300))
        yield "".join(chr(rng.randint(*rng.choice(ranges))) for _ in range(length))


def problem(text: str, verdict: Verdict, may_fail: bool) -> str | None:
    """What is wrong with a verdict; None: nothing."""
    if any(score is not None and not 0 <= score <= 1 for score in verdict.scores.values()):
        return "a score is no probability"
    if verdict.error and not may_fail:
        return f"failed: {verdict.error}"
    if text.strip() and not verdict.scores and not verdict.error:
        return "no scores and no reason"
    return None


def problems(moderator: PolicyModerator, texts: Sequence[str], may_fail: bool = False) -> list[str]:
    """What went wrong with these texts, in all directions in turn."""
    found = []
    for number, start in enumerate(range(0, len(texts), BATCH)):
        batch = texts[start : start + BATCH]
        verdicts = moderator.check(batch, DIRECTIONS[number % len(DIRECTIONS)])
        if len(verdicts) != len(batch):
            found.append(f"{len(verdicts)} verdicts for {len(batch)} texts")
            continue
        each = (problem(text, verdict, may_fail) for text, verdict in zip(batch, verdicts, strict=True))
        found += [f"{what}: text {start + i}" for i, what in enumerate(each) if what]
    return found


def broken_weights() -> Iterator[tuple[str, HeadClassifier]]:
    """The shipped head with NaN or infinity in one tensor of floats after the other."""
    head = load_head(shipped())
    for name, tensor in head.weights.items():
        for bad in (np.nan, np.inf, -np.inf):
            if np.issubdtype(tensor.dtype, np.floating):
                weights = {**head.weights, name: np.full_like(tensor, bad)}
                yield f"{name} = {bad}", HeadClassifier(replace(head, weights=weights))


@click.command(cls=OneLineCommand)
@click.option("--texts", "num_texts", default=50_000, show_default=True)
@click.option("--seed", default=0, show_default=True)
def cli(num_texts: int, seed: int) -> None:
    """Judge texts that nobody would write; the exit status is 1 where there was a problem."""
    logging.getLogger("parley.moderation").setLevel(logging.ERROR)  # of each failure there is a line otherwise
    start = time.perf_counter()
    moderator = open_moderator()
    found = problems(moderator, list(random_texts(num_texts, seed)))
    click.echo(f"{num_texts} random texts: {len(found)} problems ({time.perf_counter() - start:.0f} s)")
    start = time.perf_counter()
    long = [unit * (LONG // len(unit)) for unit in LONG_UNITS]
    found += (slow := problems(moderator, ["", " \n", *long]))
    click.echo(f"{len(long)} texts of {LONG:,} characters: {len(slow)} problems ({time.perf_counter() - start:.0f} s)")
    some = list(random_texts(200, seed + 1))
    num_failed = num_broken = 0
    for what, classifier in broken_weights():
        closed = PolicyModerator(classifier, Policy(fail="closed"))
        found += [f"{what}: {each}" for each in problems(closed, some, may_fail=True)]
        verdicts = closed.check(some)
        found += [f"{what}: a failure passed" for each in verdicts if each.error and each.action != "block"]
        num_broken += 1
        num_failed += any(each.error for each in verdicts)
    click.echo(f"{num_broken} heads with broken weights, {num_failed} noticed as failures; no exception")
    for each in found[:20]:
        click.echo(each, err=True)
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    cli()

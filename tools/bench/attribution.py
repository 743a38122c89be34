"""Attribution: how often a supported sentence is told from one with a number, a name or a negation changed.

Run: python -m tools.bench.attribution [--data ../shared/data/retrieval/nq] [--encoder minilm]

Sentences are taken from the passages of documents, as they stand and changed by rule (tools/bench/attribution_cases.py:
`make_cases`), and shown with three passages. Half of the documents served to choose the thresholds; the figures are of
the others. The balanced accuracy of a kind is the mean of two shares: of supported sentences found supported, of
altered ones found not. On docs/sample there are also sentences reworded by hand, which were looked at when the
thresholds were chosen.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from chatbot.attribution.attributing import Attributor
from common.cli import OneLineCommand
from retrieval.documents import read_documents
from retrieval.passages import split
from retrieval.types import Passage
from tools.bench.attribution_cases import LITERAL, Case, make_cases, read_paraphrases

if TYPE_CHECKING:
    from chatbot.attribution.attributing import Encode

SAMPLE = Path(__file__).parents[2] / "docs" / "sample"
PARAPHRASES = Path(__file__).parents[2] / "tests" / "data" / "sample_paraphrases.jsonl"


@click.command(cls=OneLineCommand, context_settings={"show_default": True})
@click.option("--data", default=str(SAMPLE), help="Documents to take passages from.")
@click.option("--count", type=click.IntRange(min=1), default=600, help="Sentences to take.")
@click.option("--encoder", help="Judge by this encoder too.")
@click.option("--tuning", is_flag=True, help="Show the half that the thresholds were chosen on.")
def cli(data: str, count: int, encoder: str | None, tuning: bool) -> None:
    """Print the figures of each kind."""
    encode = _open(encoder) if encoder else None
    cases = [each for each in make_cases(read_passages(data), count) if is_for_tuning(each) == tuning]
    if Path(data).resolve() == SAMPLE.resolve():
        cases += read_paraphrases(PARAPHRASES, read_passages(data))
    begun = time.perf_counter()
    right, sources = judge(cases, encode)
    seconds = (time.perf_counter() - begun) / len(cases)
    supported = [each for each, case in zip(right, cases, strict=True) if case.gold and "hand" not in case.kind]
    share = sum(supported) / len(supported)
    kinds: defaultdict[str, list[bool]] = defaultdict(list)
    for each, case in zip(right, cases, strict=True):
        kinds[case.kind].append(each)
        if case.kind in LITERAL:
            kinds["all literal"].append(each)
    altered = {case.kind for case in cases if not case.gold and "hand" not in case.kind} | {"all literal"}
    click.echo(f"{'kind':<18} {'sentences':>9} {'found right':>12} {'balanced':>9}")
    for kind, found in kinds.items():
        rate = sum(found) / len(found)
        balanced = f"{(rate + share) / 2:9.3f}" if kind in altered else ""
        click.echo(f"{kind:<18} {len(found):>9,} {rate:12.3f} {balanced}")
    click.echo(f"{'all supported':<18} {len(supported):>9,} {share:12.3f}")
    click.echo(f"{'right source first':<18} {len(sources):>9,} {sum(sources) / max(1, len(sources)):12.3f}")
    click.echo(f"{seconds * 1e3:.2f} ms a sentence with its {len(cases[0].passages)} passages")


def read_passages(data: str) -> list[Passage]:
    """The passages of the documents under `data`, cut as an index would cut them. Raises ValueError for none."""
    skipped: list[str] = []
    documents = read_documents([data], lambda source, reason: skipped.append(f"{source}: {reason}"))
    passages = [passage for document in documents for passage in split(document)]
    for each in skipped:
        click.echo(each, err=True)
    if not passages:
        raise ValueError(f"{data}: holds no text; name documents")
    return passages


def is_for_tuning(case: Case) -> bool:
    """Whether a case is of the half that thresholds may be chosen on: all of a document are, or none."""
    return zlib.crc32(case.document.partition(" > ")[0].encode()) % 2 == 0


def judge(cases: Sequence[Case], encode: Encode | None = None) -> tuple[list[bool], list[bool]]:
    """Whether each was judged right; and of those found supported that are, whether the right passage came first."""
    right, sources = [], []
    for case in cases:
        found = Attributor(case.passages, encode).attribute(case.sentence)
        supported = all(each.supported for each in found)
        right.append(supported == bool(case.gold))
        if supported and case.gold and found:
            sources.append(found[0].passages[0] == case.gold)
    return right, sources


def _open(name: str) -> Encode:
    from retrieval.encoders import cached, open_encoder

    return cached(open_encoder(name), 4096).encode


if __name__ == "__main__":
    cli()

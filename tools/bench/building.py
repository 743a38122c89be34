"""A whole build (reading, cutting, encoding, words, search structures) beside encoding the same passages alone.

Run: python -m tools.bench.building [--sets nq,cranfield,npl] [--data DIR] [--sample 0]

The peer is `SentenceTransformer.encode` with default arguments, on the very passages that the build made, so that all
its time goes into encoding and none into what makes an index. Both take turns, set by set, on half of the records each
time, so that other work on the machine disturbs both alike. nDCG@10 is that of the index's vectors alone beside exact
search by the peer's vectors, documents scoring as their best passage.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from common.cli import OneLineCommand
from common.models import resolve_model
from retrieval.encoders import open_encoder
from retrieval.index.store import Store
from retrieval.measuring.evaluate import best_per_document, measure, read_beir
from retrieval.passages import embedding_text
from retrieval.types import Encoder
from retrieval.writing.building import build_index

NUM_PARTS = 2
MEASURE = "nDCG@10"


def parts_of(corpus: Path, sample: int, folder: Path) -> Iterator[Path]:
    """The first `sample` records of a corpus (0: all) in NUM_PARTS files."""
    with open(corpus, encoding="utf-8") as file:
        lines = [line for line in file if line.strip()][: sample or None]
    for number in range(NUM_PARTS):
        part = folder / f"part{number}.jsonl"
        part.write_text("".join(lines[number::NUM_PARTS]), encoding="utf-8")
        yield part


def seconds() -> NDArray[np.float64]:
    """Wall time, and CPU time of this process and of those that have ended: the one that read the files too."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return np.array([time.perf_counter(), time.process_time() + ended.ru_utime + ended.ru_stime])


class Race:
    """Seconds, passages and hits of both contestants over the parts of one set."""

    def __init__(self, encoder: Encoder, peer: object) -> None:
        self._encoder, self._peer = encoder, peer
        self.num, self.ours, self.theirs = 0, np.zeros(2), np.zeros(2)  # wall and CPU seconds
        self.ids: list[str] = []
        self.our_vectors: list[np.ndarray] = []
        self.their_vectors: list[np.ndarray] = []

    def run(self, part: Path, index: Path) -> None:
        """One part: a build, then the peer on its passages."""
        started = seconds()
        build_index([part], index, self._encoder)
        self.ours += seconds() - started
        store = Store(index)
        passages = [passage for _, passage in store.live_passages()]
        texts = [embedding_text(passage) for passage in passages]
        started = seconds()
        self.their_vectors.append(self._peer.encode(texts, show_progress_bar=False, normalize_embeddings=True))  # type: ignore[attr-defined]
        self.theirs += seconds() - started
        self.our_vectors += [np.array(segment.vectors) for segment in store.segments]
        self.ids += [passage.id.rpartition("#")[0].rpartition("#")[2] for passage in passages]
        self.num += len(passages)

    def figures(self, folder: Path) -> tuple[float, float]:
        """nDCG@10 of our vectors and of the peer's, on the questions about the records that were taken."""
        data = read_beir(folder)
        there = set(self.ids)
        qrels = {name: {d: g for d, g in own.items() if d in there} for name, own in data.qrels.items()}
        qrels = {name: own for name, own in qrels.items() if any(grade > 0 for grade in own.values())}
        questions = [data.queries[name] for name in qrels]
        ways = (
            (self._encoder.encode(questions), self.our_vectors),
            (self._peer.encode(questions, normalize_embeddings=True), self.their_vectors),  # type: ignore[attr-defined]
        )
        ours, theirs = (self._ndcg(qrels, asked, np.concatenate(vectors)) for asked, vectors in ways)
        return ours, theirs

    def _ndcg(self, qrels: dict[str, dict[str, int]], asked: np.ndarray, vectors: np.ndarray) -> float:
        run = {}
        for name, scores in zip(qrels, asked @ vectors.T, strict=True):
            best = np.argsort(-scores, kind="stable")[:200].tolist()
            run[name] = best_per_document((self.ids[i], float(scores[i])) for i in best)[:100]
        return measure(qrels, run)[MEASURE]


@click.command(cls=OneLineCommand)
@click.option("--sets", default="nq,cranfield,npl", show_default=True, help="BEIR folders in --data.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data/retrieval"), show_default=True)
@click.option("--encoder", default="minilm", show_default=True, help="Sentence encoder.")
@click.option("--sample", default=0, show_default=True, help="Records of a set; 0 for all.")
def cli(sets: str, data: Path, encoder: str, sample: int) -> None:
    """Print passages per second of a whole build and of the peer's encoding alone, and the ranking of both."""
    from sentence_transformers import SentenceTransformer

    opened = open_encoder(encoder)
    peer = SentenceTransformer(resolve_model(encoder), device="cpu")
    opened.encode(["warm"]), peer.encode(["warm"])
    for name in sets.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            race = Race(opened, peer)
            for number, part in enumerate(parts_of(data / name / "corpus.jsonl", sample, Path(scratch))):
                race.run(part, Path(scratch) / f"index{number}")
            ours, theirs = race.figures(data / name)
        click.echo(
            f"{name:<10} {race.num} passages: whole build {race.num / race.ours[0]:6.1f} a second, SentenceTransformer."
            f"encode {race.num / race.theirs[0]:6.1f}: {race.theirs[0] / race.ours[0]:.2f} times, by CPU time "
            f"{race.theirs[1] / race.ours[1]:.2f}; {MEASURE} {ours:.4f} and {theirs:.4f}: {ours / theirs:.4f}"
        )


if __name__ == "__main__":
    cli()

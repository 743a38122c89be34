"""Sentence encoding beside sentence-transformers: passages per second, ranking quality, time for one query.

Run: python -m tools.bench.encoding --data path/to/sets
     python -m tools.bench.encoding --data path/to/sets --sets nq --sample 1000

A set is a folder in BEIR format. The contestants take turns on the same passages, so that other work on the machine
disturbs all of them alike; a ratio is the median over the rounds. nDCG@10 is that of exact search by cosine, with the
gains of trec_eval: sum of grade / log2(rank + 1), over that of the best possible order.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from common.cli import OneLineCommand
from common.models import resolve_model
from retrieval.encoders import open_encoder

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]

ROUND_PASSAGES = 1024  # what a build encodes at a time
BASE = "sentence-transformers"


@dataclass(frozen=True)
class DataSet:
    """Passages and queries by id, and for each query its relevant passages with their grade (1 and up)."""

    name: str
    passages: Mapping[str, str]
    queries: Mapping[str, str]
    relevant: Mapping[str, Mapping[str, int]]


@dataclass
class Record:
    """What one contestant did on one set: wall and CPU seconds of each round, and all its vectors."""

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    vectors: list[Vectors] = field(default_factory=list)


def read_set(folder: Path, sample: int) -> DataSet:
    """A BEIR folder; of a larger one `sample` passages (0: all), those that are relevant first."""
    relevant: dict[str, dict[str, int]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text(encoding="utf-8").splitlines()[1:]:
        query, passage, grade = line.split("\t")
        if int(grade) > 0:
            relevant.setdefault(query, {})[passage] = int(grade)
    judged = {passage for grades in relevant.values() for passage in grades}
    rows = _rows(folder / "corpus.jsonl")
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    rows.sort(key=lambda row: row["_id"] not in judged)
    passages = {row["_id"]: f"{row.get('title', '')}. {row['text']}" for row in rows[: sample or None]}
    order = np.random.default_rng(1).permutation(len(passages))
    shuffled = [list(passages.items())[i] for i in order]
    queries = {row["_id"]: row["text"] for row in _rows(folder / "queries.jsonl") if row["_id"] in relevant}
    return DataSet(folder.name, dict(shuffled), queries, relevant)


def _rows(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def ndcg_at_10(data: DataSet, passages: Vectors, queries: Vectors) -> float:
    """Mean over the queries, in [0, 1]; higher is better."""
    names = list(data.passages)
    scores = queries @ passages.T
    discounts = 1 / np.log2(np.arange(2, 12))
    values = []
    for row, query in zip(scores, data.queries, strict=True):
        grades = data.relevant[query]
        best = np.argsort(-row, kind="stable")[:10]
        found = sum(grades.get(names[i], 0) * discounts[rank] for rank, i in enumerate(best))
        ideal = sum(grade * discounts[rank] for rank, grade in enumerate(sorted(grades.values())[:-11:-1]))
        values.append(found / ideal)
    return float(np.mean(values))


def race(contestants: Mapping[str, Encode], data: DataSet, say: Callable[[str], None]) -> dict[str, Record]:
    """All contestants over all passages, a round of each in turn."""
    records = {name: Record() for name in contestants}
    texts = list(data.passages.values())
    for number, start in enumerate(range(0, len(texts), ROUND_PASSAGES)):
        say(f"{data.name}: {start} of {len(texts)} passages")
        names = list(contestants)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started, cpu_started = time.perf_counter(), time.process_time()
            records[name].vectors.append(contestants[name](texts[start : start + ROUND_PASSAGES]))
            records[name].cpu_seconds.append(time.process_time() - cpu_started)
            records[name].seconds.append(time.perf_counter() - started)
    return records


def report(contestants: Mapping[str, Encode], data: DataSet, records: Mapping[str, Record]) -> list[str]:
    """A line for each contestant."""
    lines = [f"{data.name}: {len(data.passages)} passages, {len(data.queries)} queries"]
    quality = {}
    base = records[BASE]
    base_vectors = np.concatenate(base.vectors)
    for name, record in records.items():
        vectors = np.concatenate(record.vectors)
        quality[name] = ndcg_at_10(data, vectors, contestants[name](list(data.queries.values())))
        ratio = statistics.median(a / b for a, b in zip(base.seconds, record.seconds, strict=True))
        cpu = statistics.median(a / b for a, b in zip(base.cpu_seconds, record.cpu_seconds, strict=True))
        cosines = (vectors * base_vectors).sum(axis=1)
        lines.append(
            f"  {name:22} {len(vectors) / sum(record.seconds):7.1f} passages/s   {ratio:5.2f} x   by CPU time "
            f"{cpu:5.2f} x   nDCG@10 {quality[name]:.4f} ({quality[name] / quality[BASE]:.4f})   "
            f"cosine {cosines.mean():.4f}, lowest {cosines.min():.4f}"
        )
    return lines


def latency(contestants: Mapping[str, Encode], queries: Sequence[str]) -> list[str]:
    """One query at a time, contestants in turn; milliseconds."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for query in queries:
        for name, encode in contestants.items():
            started = time.perf_counter()
            encode([query])
            seconds[name].append(time.perf_counter() - started)
    lines = [f"one query ({len(queries)} of them)"]
    for name, each in seconds.items():
        p50, p99 = np.percentile(np.array(each) * 1000, [50, 99])
        lines.append(f"  {name:22} p50 {p50:6.2f} ms   p99 {p99:6.2f} ms")
    return lines


def _contestants(model: str) -> dict[str, Encode]:
    from sentence_transformers import SentenceTransformer

    theirs = SentenceTransformer(resolve_model(model), device="cpu")
    float32, int8 = open_encoder(model, "cpu", "float32"), open_encoder(model, "cpu", "int8")

    def base(texts: Sequence[str]) -> Vectors:
        vectors = np.asarray(theirs.encode(list(texts)), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    return {BASE: base, "float32 (torch)": float32.encode, "int8 (ONNX Runtime)": int8.encode}


@click.command(cls=OneLineCommand)
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--sets", default="nq,cranfield,npl", show_default=True, help="Folders of --data, by comma.")
@click.option(
    "--sample", type=click.IntRange(0), default=0, help="Passages of a set, relevant ones first.  [default: all]"
)
@click.option("--model", default="minilm", show_default=True)
@click.option("--queries", type=click.IntRange(1), default=200, show_default=True, help="For the time of one query.")
def cli(data: Path, sets: str, sample: int, model: str, queries: int) -> None:
    """Our encoders beside SentenceTransformer.encode with its default arguments."""
    if missing := [name for name in sets.split(",") if not (data / name / "corpus.jsonl").is_file()]:
        raise ValueError(f"{data / missing[0]} holds no BEIR set (corpus.jsonl, queries.jsonl, qrels/test.tsv)")
    contestants = _contestants(model)
    for encode in contestants.values():
        encode(["The first call makes what the others reuse."] * 64)
    asked: list[str] = []
    for name in sets.split(","):
        held = read_set(data / name, sample)
        asked += list(held.queries.values())[: -(-queries // len(sets.split(",")))]
        records = race(contestants, held, lambda line: click.echo(line, err=True))
        click.echo("\n".join(report(contestants, held, records)))
    click.echo("\n".join(latency(contestants, asked[:queries])))


if __name__ == "__main__":
    cli()

"""What an index costs as it grows: peak memory of a build, time and memory of opening it, and whole hybrid queries.

Run: python -m tools.bench.scale [--sizes 10000,100000,1000000] [--data DIR] [--encoder minilm]

Builds go through the whole pipeline: a JSON Lines file is read by the guarded worker, cut, counted in tokens, indexed.
Encoding a million passages would take hours and show nothing new, so the encoder is opened (its memory counts) but a
passage gets the vector of a real passage, perturbed by Gaussian noise to a cosine of about 0.9, and its words are those
of two real passages mixed. The encoder's own peak memory, measured in a process that encodes one batch of passages, is
the peer. Queries are real questions, encoded anew each time: text in, hits out.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from common.cli import OneLineCommand
from retrieval.encoders import open_encoder
from retrieval.index.store import Store
from retrieval.retriever import Retriever
from retrieval.types import Encoder
from retrieval.writing.building import build_index

NUM_BASE = 4096  # real vectors that the others are made of
COSINE = 0.9
NUM_QUERIES = 300


class PerturbedEncoder:
    """An encoder that gives each text the vector of a real passage with noise, both chosen by the text."""

    def __init__(self, real: Encoder, base: NDArray[np.float32]) -> None:
        self._real, self._base = real, base
        self.dim, self.name, self.fingerprint = real.dim, real.name, real.fingerprint
        self.max_length = real.max_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The real encoder's."""
        return self._real.count_tokens(texts)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, dim) unit vectors."""
        seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts]
        noise = np.random.default_rng(seeds[0]).standard_normal((len(texts), self.dim), dtype=np.float32)
        noise *= np.sqrt(1 / COSINE**2 - 1) / np.sqrt(self.dim)
        vectors = self._base[[seed % len(self._base) for seed in seeds]] + noise
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.asarray(vectors, dtype=np.float32)


def texts_of(data: Path) -> list[tuple[str, str]]:
    """(title, text) of the passages of wikibig."""
    path = data / "wikibig" / "corpus.jsonl.gz"
    if not path.is_file():
        raise ValueError(f"{path} is missing; name the folder of the data sets with --data")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    return [(record.get("title", ""), record["text"]) for record in records]


def mixed(texts: Sequence[tuple[str, str]], num: int) -> Iterator[dict[str, str]]:
    """`num` records: the first are real, the others halves of two real ones, all different."""
    chance = random.Random(0)  # noqa: S311
    for i in range(num):
        title, text = texts[i % len(texts)]
        if i >= len(texts):
            first, second = text.split(), chance.choice(texts)[1].split()
            text = " ".join(first[: len(first) // 2 + 1] + second[len(second) // 2 :] + [f"No. {i}."])
        yield {"id": str(i), "title": title, "text": text[:1000]}


def peak_mb() -> float:
    """Peak resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def in_child(step: str, *arguments: object) -> dict[str, float]:
    """Run one step in a process of its own, whose peak memory is therefore its own; its figures."""
    command = [sys.executable, "-m", "tools.bench.scale", "--step", step, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def run_step(step: str, arguments: Sequence[str]) -> dict[str, float]:
    """The steps that `in_child` runs."""
    if step == "encoder":
        name, base, sample = arguments
        encoder = open_encoder(name)
        started = time.perf_counter()
        np.save(base, encoder.encode(json.loads(Path(sample).read_text())), allow_pickle=False)
        return {"peak": peak_mb(), "seconds": time.perf_counter() - started}
    if step == "build":
        name, base, corpus, index = arguments
        encoder = PerturbedEncoder(open_encoder(name), np.load(base, allow_pickle=False))
        report = build_index([corpus], index, encoder, calibrate=False)
        return {"peak": peak_mb(), "seconds": report.seconds, "passages": report.num_passages}
    (index,) = arguments
    before, started = _resident(), time.perf_counter()
    store = Store(index)
    return {"ms": (time.perf_counter() - started) * 1e3, "mb": _resident() - before, "passages": len(store)}


def _resident() -> float:
    """MB of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def latency(index: Path, queries: Sequence[str]) -> None:
    """Text in, hits out, beside the encoder alone."""
    retriever = Retriever.open(index)
    encoder = open_encoder(retriever.manifest.encoder.name)
    retriever.search(queries[:5], 10)  # reads the compressed vectors
    alone, whole = [], []
    for query in queries[5:]:
        started = time.perf_counter()
        encoder.encode([query])
        alone.append(time.perf_counter() - started)
        started = time.perf_counter()
        retriever.search([query], 10)
        whole.append(time.perf_counter() - started)
    for name, times in (("encoder alone", alone), ("whole query", whole)):
        p50, p99 = np.median(times) * 1e3, np.quantile(times, 0.99) * 1e3
        ratio = np.median(times) / np.median(alone)
        click.echo(f"    {name:<14} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   {ratio:.2f} of the encoder alone")


@click.command(cls=OneLineCommand)
@click.option("--sizes", default="10000,100000,1000000", show_default=True, help="Passages, comma-separated.")
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data/retrieval"), show_default=True)
@click.option("--encoder", default="minilm", show_default=True, help="Sentence encoder.")
@click.option("--step", hidden=True, help="One step in a process of its own.")
@click.argument("arguments", nargs=-1)
def cli(sizes: str, data: Path, encoder: str, step: str | None, arguments: tuple[str, ...]) -> None:
    """Print build memory, opening and latency for indexes of growing size."""
    if step:
        click.echo(json.dumps(run_step(step, arguments)))
        return
    texts = texts_of(data)
    queries = [json.loads(line)["text"] for line in (data / "wikibig" / "queries.jsonl").open(encoding="utf-8")]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sample = [f"{title}. {text}" for title, text in texts[:NUM_BASE]]
        (folder / "sample.json").write_text(json.dumps(sample))
        own = in_child("encoder", encoder, folder / "base.npy", folder / "sample.json")
        click.echo(f"encoder alone, {NUM_BASE} passages: peak {own['peak']:.0f} MB")
        for size in (int(each) for each in sizes.split(",")):
            corpus, index = folder / "corpus.jsonl", folder / f"index-{size}"
            with open(corpus, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(record) + "\n" for record in mixed(texts, size))
            built = in_child("build", encoder, folder / "base.npy", corpus, index)
            click.echo(
                f"{built['passages']:,.0f} passages: build peak {built['peak']:.0f} MB, "
                f"{built['peak'] / own['peak']:.2f} of the encoder's; "
                f"{built['passages'] / built['seconds']:.0f} passages/s without encoding"
            )
            time.sleep(3)  # a file that was written just now is not yet remembered as sound
            first, second = in_child("open", index), in_child("open", index)
            click.echo(
                f"    opened first in {first['ms']:.0f} ms (all sums checked), then in {second['ms']:.1f} ms and "
                f"{second['mb']:.1f} MB"
            )
            latency(index, queries[:NUM_QUERIES])


if __name__ == "__main__":
    cli()

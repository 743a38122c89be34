"""Time and exactness of the two search structures of an index, beside their peers on the same data in one run.

Run: python -m tools.bench.search_structures lexical|vectors [--passages 1048576] [--data DIR] [--cache DIR]

`lexical`: BM25 over segments of 131,072 passages; the peers, bm25s and tantivy, get the first segment's passages.
`vectors`: Faiss flat over all vectors is the peer, and what recall is counted against. There are not a million real
vectors at hand: these are copies of the vectors of real passages, each perturbed by Gaussian noise to a cosine of about
0.9 with its original, which is harder than real data, where few passages are so near to each other.
OMP_NUM_THREADS sets the number of threads of all parties.
"""

from __future__ import annotations

import gzip
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from common.cli import OneLineGroup
from common.files import home
from retrieval.scoring.ann import build_ann, choose_factory
from retrieval.scoring.lexical import Lexical, LexicalSegment, LexicalSettings, LexicalWriter
from retrieval.scoring.tokens import Tokenizer
from retrieval.scoring.vectors import Dense, DenseSegment

SEGMENT = 131_072
COSINE = 0.9


def _memory() -> float:
    """MB of this process that no file backs: what it takes from others (Linux; elsewhere 0)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0
    return int(status.read_text().partition("RssAnon:")[2].split()[0]) / 1e3


def _show(name: str, times: Sequence[float], more: str = "") -> float:
    median, late = np.median(times) * 1e3, np.quantile(times, 0.99) * 1e3
    click.echo(f"{name:<34} p50 {median:8.2f} ms   p99 {late:8.2f} ms   {more}")
    return float(median)


def _timed(search: Callable[[Any], Any], queries: Sequence[Any]) -> tuple[list[Any], list[float]]:
    results, times = [], []
    for query in queries:
        started = time.perf_counter()
        results.append(search(query))
        times.append(time.perf_counter() - started)
    return results, times


def _records(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; name the folder of the data sets with --data")
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _passages(data: Path, name: str) -> list[str]:
    records = _records(data / "wikibig" / "corpus.jsonl.gz" if name == "wikibig" else data / name / "corpus.jsonl")
    return [f"{record.get('title', '')}. {record['text']}" for record in records]


def _queries(data: Path, name: str) -> list[str]:
    return [record["text"] for record in _records(data / name / "queries.jsonl")]


@click.group(cls=OneLineGroup, help="Speed of the search structures, beside their peers.")
def cli() -> None:
    """The two commands below."""


_passages_option = click.option("--passages", "num", type=click.IntRange(1024), default=8 * SEGMENT, show_default=True)
_data_option = click.option("--data", type=click.Path(path_type=Path), default=home().parent / "shared/data/retrieval")
_num_queries_option = click.option("--queries", "num_queries", type=click.IntRange(1), default=300, show_default=True)


@cli.command("lexical")
@_passages_option
@_data_option
@_num_queries_option
def lexical_command(num: int, data: Path, num_queries: int) -> None:
    """BM25, beside bm25s and tantivy. Above the 51,175 passages of wikibig, passages are joined from halves of two."""
    texts, queries = _passages(data, "wikibig"), _queries(data, "wikibig")[:num_queries]
    settings = LexicalSettings()
    with tempfile.TemporaryDirectory() as folder:
        segments, seconds, grown = [], 0.0, 0.0
        for first in range(0, num, SEGMENT):
            place = Path(folder) / str(first)
            place.mkdir()
            before = _memory()
            writer = LexicalWriter(settings)
            for start in range(first, min(first + SEGMENT, num), 1024):
                batch = [_text(texts, i) for i in range(start, min(start + 1024, num))]
                started = time.process_time()
                writer.add(batch)
                seconds += time.process_time() - started
            started = time.process_time()
            writer.write(place)
            seconds += time.process_time() - started
            grown = max(grown, _memory() - before)
            segments.append(place)
        click.echo(f"{num} passages in {len(segments)} segments built in {seconds:.1f} CPU s, {grown:.0f} MB")
        before, started = _memory(), time.perf_counter()
        lexical = Lexical([LexicalSegment(place) for place in segments], settings)
        click.echo(f"opened in {(time.perf_counter() - started) * 1e3:.1f} ms, {_memory() - before:.1f} MB")
        for k in (10, 100):
            lexical.search(queries[0], k)
            found, times = _timed(partial(lexical.search, k=k), queries)
            _show(f"BM25, best {k}", times, f"first {times[0] * 1e3:.1f} ms")
        _show("BM25 of 100 passages", _timed(lambda pair: lexical.score(*pair), _given(queries, found, segments))[1])
        _lexical_peers([_text(texts, i) for i in range(min(num, SEGMENT))], queries, settings, segments[0])


def _text(texts: Sequence[str], i: int) -> str:
    if i < len(texts):
        return texts[i]
    chosen = random.Random(i).sample(texts, 2)  # noqa: S311 (a reproducible choice, no secret)
    return " ".join(" ".join(text.split()[: 4 + len(text.split()) // 2]) for text in chosen)


def _given(queries: Sequence[str], found: Sequence[Any], segments: Sequence[Path]) -> list[tuple[str, list[Any]]]:
    return [(q, [f.ids[f.segments == i] for i in range(len(segments))]) for q, f in zip(queries, found, strict=True)]


def _lexical_peers(texts: list[str], queries: list[str], settings: LexicalSettings, segment: Path) -> None:
    import bm25s
    import tantivy

    ours = Lexical([LexicalSegment(segment)], settings)
    ours.search(queries[0], 100)
    click.echo(f"\nthe first {len(texts)} passages, best 100, all with the same terms")
    found, times = _timed(lambda query: ours.search(query, 100), queries)
    own = _show("Parley", times)

    tokenizer = Tokenizer(settings.language)
    tokens = [tokenizer.tokens(text) for text in texts]
    rival = bm25s.BM25(method="lucene", k1=settings.k1, b=settings.b)
    rival.index(tokens, show_progress=False)
    known = [[term for term in tokenizer.tokens(query) if term in rival.vocab_dict] for query in queries]
    theirs, times = _timed(
        lambda query: rival.retrieve([query], k=100, show_progress=False, n_threads=0), [k for k in known if k]
    )
    _show("bm25s", times, f"{np.median(times) * 1e3 / own:.1f} times ours")
    pairs = zip([f for f, k in zip(found, known, strict=True) if k], theirs, strict=True)
    gaps = [float(np.abs(mine.scores - its.scores[0][: len(mine.scores)]).max()) for mine, its in pairs]
    click.echo(f"largest difference to its scores   {max(gaps):.1e}")

    schema = tantivy.SchemaBuilder().add_text_field("text", stored=False, tokenizer_name="whitespace").build()
    index = tantivy.Index(schema)
    writer = index.writer(heap_size=200_000_000, num_threads=1)
    for each in tokens:
        writer.add_document(tantivy.Document(text=" ".join(each)))
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()

    def search(query: str) -> Any:
        words = [tantivy.Query.term_query(schema, "text", term) for term in tokenizer.tokens(query)]
        return searcher.search(tantivy.Query.boolean_query([(tantivy.Occur.Should, word) for word in words]), 100)

    _, times = _timed(search, queries)
    _show("tantivy", times, f"{np.median(times) * 1e3 / own:.1f} times ours")


@cli.command("vectors")
@_passages_option
@_data_option
@_num_queries_option
@click.option("--cache", type=click.Path(path_type=Path), help="Where vectors of earlier runs are, and stay.")
@click.option("--factory", multiple=True, help="Types to measure; default: what would be chosen.")
def vectors_command(num: int, data: Path, num_queries: int, cache: Path | None, factory: tuple[str, ...]) -> None:
    """Dense search, beside Faiss flat."""
    import faiss

    click.echo(f"{num} vectors, perturbed copies (cosine {COSINE}) of real ones; {faiss.omp_get_max_threads()} threads")
    with tempfile.TemporaryDirectory() as temporary:
        folder = cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        queries = _real(data, folder, "queries")
        chosen = np.random.default_rng(1).choice(len(queries), min(num_queries, len(queries)), replace=False)
        queries = np.ascontiguousarray(queries[chosen])
        dim = queries.shape[1]
        paths = list(_perturbed(_real(data, folder, "passages"), folder, num))
        nearest = _exact(paths, queries)
        flat = _flat(folder / "all.f32", dim)
        for name in factory or (choose_factory(min(num, SEGMENT)),):
            _measure(name, paths, folder, queries, nearest, flat, dim)


def _real(data: Path, folder: Path, kind: str) -> NDArray[np.float32]:
    """The vectors of the passages or queries of three sets, from the cache if they are there."""
    path = folder / f"{kind}.npy"
    if not path.is_file():
        from retrieval.encoders import open_encoder

        click.echo(f"encoding {kind} (minutes, once) ...", err=True)
        read = _passages if kind == "passages" else _queries
        texts = [text for name in ("nq", "cranfield", "npl") for text in read(data, name)]
        np.save(path, open_encoder("minilm").encode(texts), allow_pickle=False)
    vectors: NDArray[np.float32] = np.load(path, allow_pickle=False)
    return vectors


def _perturbed(real: NDArray[np.float32], folder: Path, num: int) -> Iterator[Path]:
    """Segments of vectors, all in the file all.f32 too."""
    rng = np.random.default_rng(0)
    deviation = np.float32(np.sqrt((1 / COSINE**2 - 1) / real.shape[1]))
    with open(folder / "all.f32", "wb") as together:
        for first in range(0, num, SEGMENT):
            path = folder / f"vectors-{first}.f32"
            with open(path, "wb") as file:
                for start in range(first, min(first + SEGMENT, num), 16_384):
                    ids = np.arange(start, min(start + 16_384, first + SEGMENT, num)) % len(real)
                    rows = real[ids] + deviation * rng.standard_normal((len(ids), real.shape[1]), dtype=np.float32)
                    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                    file.write(rows.tobytes())
                    together.write(rows.tobytes())
            yield path


def _exact(paths: Sequence[Path], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """(q, 100) numbers of the truly nearest, best first, from all.f32's beginning."""
    scores = [np.fromfile(path, dtype="<f4").reshape(-1, queries.shape[1]) @ queries.T for path in paths]
    return np.argsort(-np.concatenate(scores), axis=0, kind="stable")[:100].T


def _flat(path: Path, dim: int) -> Any:
    """The Faiss index that holds all vectors as they are."""
    import faiss

    index = faiss.IndexFlatIP(dim)
    vectors = np.memmap(path, dtype="<f4", mode="r").reshape(-1, dim)
    for start in range(0, len(vectors), SEGMENT):
        index.add(np.ascontiguousarray(vectors[start : start + SEGMENT]))
    return index


def _measure(
    name: str,
    paths: Sequence[Path],
    folder: Path,
    queries: NDArray[np.float32],
    nearest: NDArray[np.int64],
    flat: Any,
    dim: int,
) -> None:
    started, before, num_bytes = time.process_time(), _memory(), 0
    files: list[Path | None] = []
    for number, path in enumerate(paths):
        ann = folder / f"ann-{number}.faiss"
        written = build_ann(np.memmap(path, dtype="<f4", mode="r").reshape(-1, dim), name, ann)
        files.append(ann if written else None)
        num_bytes += ann.stat().st_size if written else 0
    seconds = time.process_time() - started
    click.echo(
        f"\n{name}: {seconds:.1f} CPU s to build, {num_bytes / 1e6:.0f} MB, {_memory() - before:.0f} MB resident"
    )
    before, started = _memory(), time.perf_counter()
    dense = Dense([DenseSegment(path, ann, dim, name) for path, ann in zip(paths, files, strict=True)])
    click.echo(f"opened in {(time.perf_counter() - started) * 1e3:.1f} ms, {_memory() - before:.1f} MB", nl=False)
    started = time.perf_counter()
    dense.search(queries[:1], 10)
    click.echo(f"; first search {(time.perf_counter() - started) * 1e3:.0f} ms, {_memory() - before:.0f} MB")
    for k in (10, 100):
        found, times, flats = [], [], []
        for i, query in enumerate(queries):  # by turns, so that what else the machine does slows both
            result, seconds_taken = _timed(partial(dense.search, k=k), [query[None]])
            found.append(result[0][0])
            times += seconds_taken
            if i % 5 == 0:
                flats += _timed(partial(flat.search, k=k), [query[None]])[1]
        hits = [each.segments * SEGMENT + each.ids for each in found]
        recall = np.mean([len(np.intersect1d(a, b[:k])) / k for a, b in zip(hits, nearest, strict=True)])
        best_ten = np.mean([len(np.intersect1d(a, b[:10])) / 10 for a, b in zip(hits, nearest, strict=True)])
        _show(f"Faiss flat, best {k}", flats)
        ratio = np.median(flats) / np.median(times)
        _show(
            f"{name}, best {k}",
            times,
            f"recall {recall:.4f}, of the best ten {best_ten:.4f}; {ratio:.1f} times as fast",
        )


if __name__ == "__main__":
    cli()

"""Measuring search: BEIR collections in, TREC run files in and out, nDCG@10, Recall, MRR, and comparisons of two runs.

    beir = read_beir("data/nq")
    run = {query: [(document, score), ...] for query, text in beir.queries.items()}
    measure(beir.qrels, run)["nDCG@10"]

The figures are those of trec_eval, by ir-measures (https://ir-measur.es). Every query that has a relevant document
counts, with 0 where the run has nothing for it.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write

MEASURES = ("nDCG@10", "Recall@10", "Recall@100", "MRR@10")
NUM_RESAMPLES = 10_000
_IR_NAMES = {"nDCG@10": "nDCG@10", "Recall@10": "R@10", "Recall@100": "R@100", "MRR@10": "RR@10"}

Qrels = Mapping[str, Mapping[str, int]]
"""Query id -> document id -> grade; above 0 is relevant."""
Run = Mapping[str, Sequence[tuple[str, float]]]
"""Query id -> (document id, score) pairs, higher is better; their order does not matter."""


@dataclass(frozen=True)
class Beir:
    """A collection. `corpus` is the file, which can be large; `queries` and `qrels` hold only the queries that have a
    relevant document. `num_unjudged`: queries left out since they have none; `num_unknown`: judgements left out since
    their query has no text."""

    corpus: Path
    queries: dict[str, str]
    qrels: dict[str, dict[str, int]]
    num_unjudged: int
    num_unknown: int


def read_beir(folder: str | Path, split: str = "test") -> Beir:
    """The BEIR collection in `folder`: corpus.jsonl, queries.jsonl (either may be .gz) and qrels/<split>.tsv.

    Raises ValueError for files that are missing or broken, naming file and line, and where no query has a relevant
    document.
    """
    folder = Path(folder)
    corpus, questions = _find(folder, "corpus.jsonl"), _find(folder, "queries.jsonl")
    texts = dict(_records(questions, "text"))
    judged = _read_qrels(folder / "qrels" / f"{split}.tsv", folder / "qrels")
    qrels = {query: grades for query, grades in judged.items() if query in texts and max(grades.values()) > 0}
    if not qrels:
        raise ValueError(f"no query of {questions} has a relevant document in qrels/{split}.tsv; are the ids the same?")
    return Beir(
        corpus,
        {query: texts[query] for query in qrels},
        qrels,
        num_unjudged=len(texts) - len(qrels),
        num_unknown=sum(len(grades) for query, grades in judged.items() if query not in texts),
    )


def count_unknown_documents(beir: Beir) -> int:
    """Judgements above 0 of documents that the corpus lacks: no search can find these. Reads the corpus once."""
    wanted = {document for grades in beir.qrels.values() for document, grade in grades.items() if grade > 0}
    missing = wanted.difference(document for document, _ in _records(beir.corpus, "text"))
    return sum(grade > 0 and document in missing for own in beir.qrels.values() for document, grade in own.items())


def best_per_document(hits: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """From (document id, score) of passages to one pair a document, best first: it scores as its best passage."""
    best: dict[str, float] = {}
    for document, score in hits:
        best[document] = max(score, best.get(document, -math.inf))
    return _ordered(best.items())


def measure(qrels: Qrels, run: Run) -> dict[str, float]:
    """The mean of each of MEASURES over the queries that have a relevant document; from 0 to 1, higher is better.

    Documents of equal score are taken by falling id, as trec_eval does. Raises ValueError for a run that has a document
    twice for one query or a score that is not finite, and where ir-measures is not installed.
    """
    values = measure_each(qrels, run)
    if not values:
        raise ValueError("no query has a relevant document; there is nothing to measure")
    return {name: float(np.mean([own[name] for own in values.values()])) for name in MEASURES}


def measure_each(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """The same for each query alone: query id -> measure -> value."""
    library = _ir_measures()
    judged = {query: dict(grades) for query, grades in qrels.items() if any(grade > 0 for grade in grades.values())}
    scored = {query: _as_mapping(query, run[query]) for query in judged if run.get(query)}
    values = {query: dict.fromkeys(MEASURES, 0.0) for query in judged}
    names = {library.parse_measure(theirs): ours for ours, theirs in _IR_NAMES.items()}
    for metric in library.iter_calc(list(names), judged, _falling(scored)):
        values[metric.query_id][names[metric.measure]] = float(metric.value)
    return values


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same queries. difference: the mean of b's values less a's, above 0 where b is better. p_value:
    how often runs that differ by chance alone would differ as much."""

    difference: float
    p_value: float
    num_queries: int


def compare(qrels: Qrels, run_a: Run, run_b: Run, name: str = "nDCG@10", seed: int = 0) -> Comparison:
    """Whether `run_b` differs from `run_a`, by a paired two-sided randomisation test with NUM_RESAMPLES swaps.

    Smucker, Allan and Carterette, CIKM 2007, https://doi.org/10.1145/1321440.1321528. Raises ValueError for a measure
    that is not one of MEASURES, and as `measure` does.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown measure '{name}'; known: {', '.join(MEASURES)}")
    first, second = measure_each(qrels, run_a), measure_each(qrels, run_b)
    if not first:
        raise ValueError("no query has a relevant document; there is nothing to compare")
    differences = np.array([second[query][name] - first[query][name] for query in first])
    observed = abs(differences.mean())
    rng = np.random.default_rng(seed)
    as_large = 0
    for _ in range(NUM_RESAMPLES // 100):  # in blocks: memory stays small with many queries
        signs = rng.choice(np.array([-1.0, 1.0]), size=(100, len(differences)))
        as_large += int((abs((signs * differences).mean(1)) >= observed - 1e-12).sum())
    return Comparison(float(differences.mean()), (as_large + 1) / (NUM_RESAMPLES + 1), len(differences))


def write_trec_run(path: str | Path, run: Run, tag: str = "parley") -> None:
    """Write `query Q0 document rank score tag` lines, best first, atomically.

    Raises ValueError for ids or a tag that are empty or hold white space, which the format cannot carry, and as
    `measure` does.
    """
    with atomic_write(Path(path)) as file:
        for query in sorted(run):
            for rank, (document, score) in enumerate(_ordered(_as_mapping(query, run[query]).items()), start=1):
                for value in (query, document, tag):
                    if len(value.split()) != 1 or value != value.strip():
                        raise ValueError(f"'{value}' cannot stand in a TREC run: it is empty or holds white space")
                file.write(f"{query} Q0 {document} {rank} {score!r} {tag}\n")


def read_trec_run(path: str | Path) -> dict[str, list[tuple[str, float]]]:
    """What `write_trec_run` or another system wrote; ranks are ignored, as trec_eval does. Raises ValueError, naming
    the line, for anything else."""
    run: dict[str, dict[str, float]] = {}
    for number, line in _lines(Path(path)):
        columns = line.split()
        if len(columns) != 6:
            raise ValueError(f"{path}:{number}: not a line of a TREC run: it has {len(columns)} columns, not 6")
        query, _, document, _, score, _ = columns
        if document in run.setdefault(query, {}):
            raise ValueError(f"{path}:{number}: document '{document}' is there twice for query '{query}'")
        run[query][document] = _number(score, float, f"{path}:{number}")
    return {query: _ordered(scores.items()) for query, scores in run.items()}


def _ordered(scores: Iterable[tuple[str, float]]) -> list[tuple[str, float]]:
    """Best first; of equal scores the higher id first."""
    return sorted(scores, key=lambda pair: (pair[1], pair[0]), reverse=True)


def _falling(run: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Scores by rank alone: libraries keep scores in single precision, which would tie what differs in double."""
    return {
        query: {document: float(-rank) for rank, (document, _) in enumerate(_ordered(scores.items()))}
        for query, scores in run.items()
    }


def _as_mapping(query: str, hits: Sequence[tuple[str, float]]) -> dict[str, float]:
    scores = dict(hits)
    if len(scores) != len(hits):
        raise ValueError(f"query '{query}' has a document twice; use best_per_document")
    if bad := [document for document, score in hits if not math.isfinite(score)]:
        raise ValueError(f"query '{query}': the score of '{bad[0]}' is not a finite number")
    return scores


def _ir_measures() -> Any:
    try:
        import ir_measures
    except ImportError:
        raise ValueError('measuring needs ir-measures; install it: pip install "parley[eval]"') from None
    return ir_measures


def _find(folder: Path, name: str) -> Path:
    for file in (folder / name, folder / f"{name}.gz"):
        if file.is_file():
            return file
    raise ValueError(f"{folder} is no BEIR collection: it has no {name} or {name}.gz")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line), blank lines left out. ValueError where the file cannot be read."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else open(path, encoding="utf-8-sig") as file
        ):
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = (
            "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else getattr(error, "strerror", None) or error
        )
        raise ValueError(f"cannot read {path}: {reason}") from None


def _records(path: Path, key: str) -> Iterator[tuple[str, str]]:
    """(_id, value of `key`) of each JSON object."""
    seen: set[str] = set()
    for number, line in _lines(path):
        try:
            record = json.loads(line)
            name, value = record["_id"], record[key]
        except (json.JSONDecodeError, RecursionError, KeyError, TypeError):
            raise ValueError(f'{path}:{number}: not a JSON object with "_id" and "{key}"') from None
        if not isinstance(name, str) or not isinstance(value, str):
            raise ValueError(f'{path}:{number}: "_id" and "{key}" must be texts')
        if name in seen:
            raise ValueError(f"{path}:{number}: the id '{name}' is there twice")
        seen.add(name)
        yield name, value


def _read_qrels(path: Path, folder: Path) -> dict[str, dict[str, int]]:
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.tsv"))) or "none"
        raise ValueError(f"{path} is missing; splits that are there: {there}")
    qrels: dict[str, dict[str, int]] = {}
    for number, line in _lines(path):
        columns = line.rstrip("\r\n").split("\t")
        if number == 1 and columns[-1:] == ["score"]:
            continue
        if len(columns) != 3:
            raise ValueError(f"{path}:{number}: {len(columns)} columns, not query id, document id and score, by tabs")
        qrels.setdefault(columns[0], {})[columns[1]] = _number(columns[2], int, f"{path}:{number}")
    return qrels


def _number(text: str, kind: Callable[[str], Any], where: str) -> Any:
    try:
        value = kind(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where}: '{text}' is not a finite number")
    return value

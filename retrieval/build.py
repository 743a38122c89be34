"""Build an index from documents, search it, look at it.

    python -m retrieval build docs/ --index indexes/docs
    python -m retrieval search "how tall is it?" --index indexes/docs
    python -m retrieval info --index indexes/docs

Importing this is cheap: torch, transformers and Faiss load when a command needs them.
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import click

from common.cli import OneLineGroup
from common.text import printable
from retrieval.documents import SourceFile, find_files, read_files
from retrieval.encoders import default_floor, open_encoder
from retrieval.manifest import EncoderInfo
from retrieval.passages import SplitSettings, embedding_text, split
from retrieval.retriever import Retriever
from retrieval.store import Store, check_target, write_index
from retrieval.types import Document, Encoder, Hit, Passage

DEFAULT_ENCODER = "minilm"
BATCH_PASSAGES = 1024  # encoded, and in memory, at a time
MAX_SKIPPED_SHOWN = 50

OnProgress = Callable[[int, int, int], None]


@dataclass(frozen=True)
class BuildReport:
    """What a build did. `skipped` holds (source, reason) for each file inside a folder that was passed over."""

    index: str
    num_documents: int
    num_passages: int
    seconds: float
    skipped: tuple[tuple[str, str], ...]

    @property
    def passages_per_second(self) -> float:
        """Reading, encoding and writing together; loading the encoder is not counted."""
        return self.num_passages / max(self.seconds, 1e-9)


@dataclass
class _Tally:
    """What a build has seen so far."""

    bytes_done: int = 0
    num_documents: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def skip(self, source: str, reason: str) -> None:
        self.skipped.append((source, reason))

    def files(self, files: Iterable[SourceFile]) -> Iterator[SourceFile]:
        for file in files:
            yield file
            self.bytes_done += file.size

    def documents(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.num_documents += 1
            yield document


def build_index(
    paths: Iterable[str | Path],
    index: str | Path,
    encoder: str | Encoder = DEFAULT_ENCODER,
    settings: SplitSettings | None = None,
    factory: str = "Flat",
    floor: float | None = None,
    device: str | None = None,
    on_progress: OnProgress | None = None,
) -> BuildReport:
    """Build the index of the documents under `paths` in the folder `index`, in place of the index there, if any.

    `encoder` is one, or the name of one (see `open_encoder`, also for `device`); `factory` a Faiss factory string;
    `floor` the score below which a hit says nothing, by default the one measured for the encoder. After each batch
    `on_progress(bytes read, bytes to read, passages indexed)` is called. Memory holds one document, one batch of
    passages and all vectors.

    Raises ValueError for documents that cannot be read (see `read_documents`), a target folder or an encoder that
    cannot be used, and values out of range. The index that was there then stays as it was.
    """
    index, settings, tally = Path(index), settings or SplitSettings(), _Tally()
    if floor is not None and not -1 <= floor <= 1:
        raise ValueError(f"floor is {floor}; it is a cosine, from -1 to 1")
    # What can be wrong with the arguments should show before the encoder takes its seconds to load.
    check_target(index)
    files = find_files(paths, tally.skip)
    if isinstance(encoder, str):
        encoder = open_encoder(encoder, device)

    started = time.perf_counter()
    num_bytes = sum(file.size for file in files)
    documents = tally.documents(read_files(tally.files(files), tally.skip))
    passages = (passage for document in documents for passage in split(document, settings))
    with write_index(index, encoder.dim, factory) as writer:
        for batch in _batches(passages):
            writer.add(batch, encoder.encode([embedding_text(passage) for passage in batch]))
            if on_progress:
                on_progress(tally.bytes_done, num_bytes, len(writer))
        info = EncoderInfo(encoder.name, encoder.fingerprint, encoder.dim)
        floor = default_floor(encoder.name) if floor is None else floor
        manifest = writer.commit(info, settings, floor, tally.num_documents)
    seconds = time.perf_counter() - started
    return BuildReport(str(index), tally.num_documents, manifest.num_passages, seconds, tuple(tally.skipped))


def _batches(passages: Iterable[Passage]) -> Iterator[list[Passage]]:
    passages = iter(passages)
    while batch := list(islice(passages, BATCH_PASSAGES)):
        yield batch


@click.group(cls=OneLineGroup, help="Build and search an index of your documents.")
def cli() -> None:
    """The commands below; `parley index` mounts them too."""


_index_option = click.option("--index", required=True, metavar="DIR", help="Folder of the index.")
_device_option = click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1; default: a GPU if there is one.")
_json_option = click.option("--json", "as_json", is_flag=True, help="Machine-readable output.")


@cli.command("build")
@click.argument("paths", nargs=-1, required=True)
@_index_option
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Known name, directory, hub id, or 'hash'.")
@click.option("--window", default=SplitSettings.window, show_default=True, help="Sentences in a passage.")
@click.option("--stride", default=SplitSettings.stride, show_default=True, help="Sentences to the next passage.")
@click.option("--max-chars", default=SplitSettings.max_chars, show_default=True, help="Longest passage, characters.")
@click.option("--floor", type=float, help="Score below which a hit says nothing; default: measured for the encoder.")
@_device_option
def build_command(
    paths: tuple[str, ...],
    index: str,
    encoder: str,
    window: int,
    stride: int,
    max_chars: int,
    floor: float | None,
    device: str | None,
) -> None:
    """Index the documents in PATHS, files and folders, in place of what DIR holds."""
    settings = SplitSettings(window=window, stride=stride, max_chars=max_chars)
    with _progress_bar() as on_progress:
        report = build_index(paths, index, encoder, settings, floor=floor, device=device, on_progress=on_progress)
    click.echo(
        f"{report.index}: {report.num_documents} files, {report.num_passages} passages in {report.seconds:.1f} s "
        f"({report.passages_per_second:.0f} passages/s), {len(report.skipped)} files skipped",
        err=True,
    )
    for source, reason in report.skipped[:MAX_SKIPPED_SHOWN]:
        click.echo(f"skipped {source}: {reason}", err=True)
    if len(report.skipped) > MAX_SKIPPED_SHOWN:
        click.echo(f"skipped {len(report.skipped) - MAX_SKIPPED_SHOWN} more", err=True)


@cli.command("search")
@click.argument("query", nargs=-1, required=True)
@_index_option
@click.option("-k", default=5, show_default=True, help="Passages to find.")
@click.option("--encoder", help="Where the encoder of the index is now, if it has moved.")
@_device_option
@_json_option
def search_command(
    query: tuple[str, ...], index: str, k: int, encoder: str | None, device: str | None, as_json: bool
) -> None:
    """Find the passages nearest to QUERY, whose words need no quotes."""
    text = " ".join(query)
    if not text.strip():
        raise ValueError("the query is empty; say what to search for")
    opened = open_encoder(encoder, device) if encoder else None
    retriever = Retriever.open(index, opened, device)
    hits = retriever.search([text], k)[0]
    if as_json:
        found = [{"rank": rank, "score": hit.score, **asdict(hit.passage)} for rank, hit in enumerate(hits, start=1)]
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for rank, hit in enumerate(hits, start=1):
        click.echo(_show(rank, hit))
    if not hits or hits[0].score < retriever.floor:
        click.echo(f"no hit reaches the floor, {retriever.floor:.2f}: the documents may not answer this", err=True)


@cli.command("info")
@_index_option
@_json_option
def info_command(index: str, as_json: bool) -> None:
    """Verify the index and show what it holds."""
    manifest = Store(index).manifest
    if as_json:
        click.echo(json.dumps(asdict(manifest), ensure_ascii=False, indent=2))
        return
    num_bytes = sum(file.size for file in manifest.files.values())
    rows = {
        "documents": manifest.num_documents,
        "passages": manifest.num_passages,
        "size": f"{num_bytes / 1e6:.1f} MB",
        "encoder": f"{manifest.encoder.name} ({manifest.encoder.dim} dimensions)",
        "split": ", ".join(f"{name} {value}" for name, value in asdict(manifest.settings).items()),
        "vectors": manifest.factory,
        "floor": f"{manifest.floor:.2f}",
        "created": manifest.created,
    }
    for name, value in rows.items():
        click.echo(f"{name:<10} {value}")


def _show(rank: int, hit: Hit) -> str:
    """Rank, score and title, place, text."""
    text = "\n".join(f"   {line}" for line in hit.passage.text.split("\n"))
    return printable(f"{rank}. {hit.score:.3f}  {hit.passage.title}\n   {hit.passage.location}\n{text}\n")


@contextlib.contextmanager
def _progress_bar() -> Iterator[OnProgress | None]:
    """A bar on stderr with passages, rate and time left; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    columns = (SpinnerColumn(), BarColumn(), TextColumn("{task.fields[shown]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("build", total=None, shown="loading")
        started = time.perf_counter()

        def show(bytes_done: int, num_bytes: int, num_passages: int) -> None:
            rate = num_passages / (time.perf_counter() - started)
            shown = f"{num_passages} passages, {rate:.0f}/s"
            bar.update(task, total=num_bytes, completed=bytes_done, shown=shown)

        yield show

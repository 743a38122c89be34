"""The commands that look into an index: search, explain, info."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from common.text import printable
from retrieval.commands.options import device_option, encoder_option, index_option, json_option, where_option
from retrieval.encoders import open_encoder
from retrieval.index.store import Store
from retrieval.measuring.explaining import explain
from retrieval.retriever import Retriever
from retrieval.search.filters import Filter
from retrieval.types import Hit

_query_argument = click.argument("query", nargs=-1, required=True)


@click.command("search")
@_query_argument
@index_option
@click.option("-k", default=5, show_default=True, help="Passages to find.")
@click.option("--context", default="", help="What the user said before; QUERY is then taken for a follow-up question.")
@where_option
@click.option("--expand", default=0, show_default=True, help="Neighbours to show with a passage, on either side.")
@click.option("--rerank", metavar="MODEL", help="Cross-encoder, by directory or hub id, for the best hits.")
@encoder_option
@device_option
@json_option
def search_command(
    query: tuple[str, ...],
    index: str,
    k: int,
    context: str,
    where: tuple[str, ...],
    expand: int,
    rerank: str | None,
    encoder: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Find the passages that fit QUERY best; its words need no quotes."""
    text = _text(query)
    retriever = _open(index, encoder, device, where, expand, rerank)
    hits = retriever.search([text], k, [context])[0]
    if as_json:
        found = [
            {"rank": rank, "score": hit.score, "confidence": hit.confidence, **asdict(hit.passage)}
            for rank, hit in enumerate(hits, start=1)
        ]
        click.echo(json.dumps(found, ensure_ascii=False, indent=2))
        return
    for rank, hit in enumerate(hits, start=1):
        click.echo(_show(rank, hit))
    floor = retriever.floor
    if not hits:
        click.echo("nothing was found", err=True)
    elif hits[0].confidence < floor:
        said = f"confidence {hits[0].confidence:.2f} is below the floor, {floor:.2f}"
        click.echo(f"{said}: the documents may not answer this", err=True)


@click.command("explain")
@_query_argument
@index_option
@click.option("-k", default=5, show_default=True, help="Passages that a search would keep.")
@click.option("--near", default=5, show_default=True, help="Near misses to show after them.")
@click.option("--context", default="", help="What the user said before; QUERY is then taken for a follow-up question.")
@where_option
@encoder_option
@device_option
@json_option
def explain_command(
    query: tuple[str, ...],
    index: str,
    k: int,
    near: int,
    context: str,
    where: tuple[str, ...],
    encoder: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Show why QUERY finds what it finds: the rank of each candidate by words, by vectors and by both; what was kept
    or cut and why; and the near misses."""
    retriever = _open(index, encoder, device, where, 0, None)
    explanation = explain(retriever, _text(query), k, near, context)
    if as_json:
        click.echo(json.dumps(asdict(explanation), ensure_ascii=False, indent=2))
        return
    click.echo(f"words: {explanation.words}\n")
    click.echo(f"{'':2} {'score':>6} {'vectors':>13} {'words':>13}  passage")
    for rank, row in enumerate(explanation.rows, start=1):
        dense, lexical = _side(row.dense, row.dense_rank), _side(row.lexical, row.lexical_rank)
        title = printable(f"{row.title}  {row.location}")
        click.echo(f"{rank:2} {row.score:6.3f} {dense:>13} {lexical:>13}  {title}\n{'':40}{row.decision}")
    click.echo(f"\n{explanation.verdict}")


@click.command("info")
@index_option
@click.option("--documents", is_flag=True, help="List the documents, a line each.")
@json_option
def info_command(index: str, documents: bool, as_json: bool) -> None:
    """Verify the index and show what it holds."""
    store = Store(index)
    if documents:
        _list_documents(store, as_json)
        return
    manifest = store.manifest
    if as_json:
        click.echo(json.dumps(asdict(manifest), ensure_ascii=False, indent=2))
        return
    settings = manifest.settings
    calibration = manifest.calibration
    rows = {
        "documents": f"{manifest.num_documents:,}",
        "passages": f"{manifest.num_passages:,}",
        "deleted": f"{manifest.num_deleted:,} passages, until compact clears them away",
        "segments": str(len(manifest.segments)),
        "size": f"{manifest.size / 1e6:.1f} MB",
        "encoder": f"{manifest.encoder.name} ({manifest.encoder.dim} dimensions)",
        "split": ", ".join(f"{name} {value}" for name, value in asdict(settings.split).items()),
        "words": ", ".join(f"{name} {value}" for name, value in asdict(settings.lexical).items()),
        "ranking": ", ".join(f"{name} {value}" for name, value in asdict(settings.fusion).items()),
        "vectors": ", ".join(sorted({segment.factory for segment in manifest.segments})),
        "floor": f"{manifest.floor:.2f}" + (f", {calibration}" if calibration else ""),
        "sources": f"{', '.join(manifest.sources)} in {manifest.folder}",
        "created": manifest.created,
        "updated": manifest.updated,
    }
    for name, value in rows.items():
        if name != "deleted" or manifest.num_deleted:
            click.echo(printable(f"{name:<10} {value}"))


def _list_documents(store: Store, as_json: bool) -> None:
    for segment in store.segments:
        for document in segment.documents():
            count = segment.count_live(document.first, document.count)
            if not count:
                continue
            if as_json:
                click.echo(json.dumps({**asdict(document), "count": count}, ensure_ascii=False))
            else:
                click.echo(printable(f"{count:6} {document.id}  {document.title}"))


def _open(
    index: str, encoder: str | None, device: str | None, where: tuple[str, ...], expand: int, rerank: str | None
) -> Retriever:
    only = Filter.parse(where)
    opened = open_encoder(encoder, device) if encoder else None
    return Retriever.open(index, opened, device, where=only, reach=expand, rerank=rerank)


def _text(query: tuple[str, ...]) -> str:
    text = " ".join(query)
    if not text.strip():
        raise ValueError("the query is empty; say what to search for")
    return text


def _show(rank: int, hit: Hit) -> str:
    """Rank, score and title, place, text."""
    text = "\n".join(f"   {line}" for line in hit.passage.text.split("\n"))
    return printable(f"{rank}. {hit.score:.3f}  {hit.passage.title}\n   {hit.passage.location}\n{text}\n")


def _side(score: float, rank: int) -> str:
    """'0.512 (#3)', with '(-)' where this side alone would not have found it."""
    return f"{score:.3f} ({f'#{rank}' if rank else '-'})"

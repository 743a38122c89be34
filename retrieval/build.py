"""Build an index from documents, keep it up to date, search it, measure it.

    python -m retrieval build docs/ --index indexes/docs
    python -m retrieval update --index indexes/docs
    python -m retrieval search "how tall is it?" --index indexes/docs
    python -m retrieval --help

Importing this is cheap: torch, ONNX Runtime, transformers and Faiss load when a command needs them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import click

from common.cli import OneLineGroup
from common.models import without_precision
from common.plugins import plugin
from retrieval.commands.asking import explain_command, info_command, search_command
from retrieval.commands.judging import doctor_command, evaluate_command, tune_command
from retrieval.commands.options import device_option, false_refusals_option, index_option
from retrieval.commands.progress import progress_bar
from retrieval.documents import Limits
from retrieval.encoders import DEFAULT_ENCODER
from retrieval.index.manifest import IndexSettings
from retrieval.passages import SplitSettings
from retrieval.qdrant.retriever import upload_command
from retrieval.scoring.fusion import METHODS, FusionSettings, Method
from retrieval.scoring.lexical import LexicalSettings
from retrieval.scoring.tokens import Tokenizer
from retrieval.types import Screener
from retrieval.writing.building import build_index
from retrieval.writing.removal import compact_index, delete_documents
from retrieval.writing.report import Report
from retrieval.writing.runners import RunInProcesses, Runner, RunOnRay, run_here
from retrieval.writing.updating import update_index

MAX_SKIPPED_SHOWN = 50

_Command = Callable[..., Any]


@click.group(cls=OneLineGroup, help="Build, change, search and measure an index of your documents.")
def cli() -> None:
    """The commands below; `parley index` mounts them too."""


def work_options(command: _Command) -> _Command:
    """Flags of the commands that read and encode documents."""
    for option in (
        click.option(
            "--max-seconds", default=Limits.seconds, show_default=True, help="A file may take, unless it is large."
        ),
        click.option(
            "--max-memory", default=Limits.memory_mb, show_default=True, help="MB that reading a file may take."
        ),
        click.option("--ray", metavar="ADDRESS", help="Work on Ray: 'local', 'auto' (a cluster), or ray://host:port."),
        click.option("--workers", default=1, show_default=True, help="Processes; each holds an encoder of its own."),
        device_option,
    ):
        command = option(command)
    return command


@cli.command("build")
@click.argument("paths", nargs=-1, required=True)
@index_option
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Known name, directory, hub id, or 'hash'.")
@click.option("--window", default=SplitSettings.window, show_default=True, help="Sentences in a passage.")
@click.option("--stride", default=SplitSettings.stride, show_default=True, help="Sentences to the next passage.")
@click.option("--max-chars", default=SplitSettings.max_chars, show_default=True, help="Longest passage, characters.")
@click.option("--max-tokens", default=SplitSettings.max_tokens, show_default=True, help="Longest passage, tokens.")
@click.option("--language", default=LexicalSettings.language, show_default=True, help="Of the words, or 'none'.")
@click.option("--fusion", type=click.Choice(METHODS), default=FusionSettings.method, show_default=True, help="Ranking.")
@click.option("--weight", default=FusionSettings.weight, show_default=True, help="Of vectors against words, 0 to 1.")
@click.option("--factory", default=IndexSettings.factory, show_default=True, help="Faiss factory string, or by size.")
@click.option("--floor", type=float, help="Confidence below which nothing is said.  [default: found]")
@click.option("--calibrate/--no-calibrate", default=True, help="Find the floor from the documents.")
@false_refusals_option
@click.option("--screen/--no-screen", default=None, help="Judge which passages give orders.  [default: with minilm]")
@work_options
def build_command(
    paths: tuple[str, ...],
    index: str,
    encoder: str,
    window: int,
    stride: int,
    max_chars: int,
    max_tokens: int,
    language: str,
    fusion: Method,
    weight: float,
    factory: str,
    floor: float | None,
    calibrate: bool,
    false_refusals: float,
    screen: bool | None,
    device: str | None,
    workers: int,
    ray: str | None,
    max_memory: int,
    max_seconds: float,
) -> None:
    """Index the documents in PATHS in place of what DIR holds: files, folders, patterns, or '-' for stdin.

    A build that was killed goes on where it was when it is started again.
    """
    settings = IndexSettings(
        split=SplitSettings(window=window, stride=stride, max_chars=max_chars, max_tokens=max_tokens),
        lexical=LexicalSettings(language=language),
        fusion=FusionSettings(method=fusion, weight=weight),
        factory=factory,
    )
    Tokenizer(language)  # an unknown one should not show file by file
    limits = Limits(seconds=max_seconds, memory_mb=max_memory)
    work: dict[str, Any] = {"screener": _screener(screen, encoder), "limits": limits, "false_refusals": false_refusals}
    with _runner(workers, ray, device) as run, progress_bar() as on_progress:
        report = build_index(
            paths, index, encoder, settings, floor, device, calibrate, run=run, on_progress=on_progress, **work
        )
    _show(report, f"{report.num_read} files read")


@cli.command("update")
@click.argument("paths", nargs=-1)
@index_option
@click.option("--encoder", help="Where the encoder of the index is now, if it has moved.")
@work_options
def update_command(
    paths: tuple[str, ...],
    index: str,
    encoder: str | None,
    device: str | None,
    workers: int,
    ray: str | None,
    max_memory: int,
    max_seconds: float,
) -> None:
    """Bring DIR up to date with PATHS, by default those it was built from.

    Only files whose content has changed are read; files that are gone are removed.
    """
    limits = Limits(seconds=max_seconds, memory_mb=max_memory)
    with _runner(workers, ray, device) as run, progress_bar() as on_progress:
        report = update_index(index, paths, encoder, device, run=run, limits=limits, on_progress=on_progress)
    _show(report, f"{report.num_read} files read, {report.num_unchanged} unchanged, {report.num_removed} removed")


@cli.command("delete")
@click.argument("names", nargs=-1, required=True)
@index_option
def delete_command(names: tuple[str, ...], index: str) -> None:
    """Remove documents from DIR: NAMES are sources, folders, document ids, or patterns of these."""
    report = delete_documents(index, names)
    _show(report, f"{report.num_removed} documents removed")


@cli.command("compact")
@index_option
def compact_command(index: str) -> None:
    """Free the room of deleted passages, and join small segments. Nothing is encoded again."""
    report = compact_index(index)
    _show(report, f"{report.num_removed} deleted passages cleared away")


for command in (
    info_command,
    search_command,
    explain_command,
    evaluate_command,
    tune_command,
    doctor_command,
    upload_command,
):
    cli.add_command(command)


def _screener(screen: bool | None, encoder: str) -> Screener | None:
    """Unless told, passages are judged where that takes no other vectors than those of the index."""
    if screen is False:
        return None
    screener: Screener = plugin("parley.screener")("default")
    return screener if screen or without_precision(encoder) == screener.encoder else None


@contextlib.contextmanager
def _runner(workers: int, ray: str | None, device: str | None) -> Iterator[Runner]:
    """Where the work is done; Ray is stopped afterwards, if it was started for it."""
    if ray is None:
        yield run_here if workers == 1 else RunInProcesses(workers, device)
        return
    if workers != 1:
        raise ValueError(f"--workers {workers} and --ray contradict: Ray has as many workers as its cluster has cores")
    with RunOnRay(ray, device) as run:
        yield run


def _show(report: Report, did: str) -> None:
    rate = f" ({report.num_new_passages} new, {report.passages_per_second:.0f}/s)" if report.num_new_passages else ""
    click.echo(
        f"{report.index}: {did}; {report.num_documents} documents, {report.num_passages} passages{rate} in "
        f"{report.seconds:.1f} s; {len(report.skipped)} skipped",
        err=True,
    )
    for source, reason in report.skipped[:MAX_SKIPPED_SHOWN]:
        click.echo(f"skipped {source}: {reason}", err=True)
    if len(report.skipped) > MAX_SKIPPED_SHOWN:
        click.echo(f"skipped {len(report.skipped) - MAX_SKIPPED_SHOWN} more", err=True)

"""Make a folder under data/ of a data set: a known one, or any of the Hugging Face hub, a URL, or this machine.

Run: python tools/prepare_data.py oig-chip2 booksum hh-rlhf          # by name: --list
     python tools/prepare_data.py wikipedia-simple                   # documents for the index
     python tools/prepare_data.py hf://owner/name hf://owner/name/folder@revision
     python tools/prepare_data.py https://host/chats.jsonl.gz /mnt/usb/chats --only '*.jsonl'

The files are such that training, or the index, reads them as they are. Sizes and free space are compared before the
first is fetched, sums are checked, and what broke off or was killed is gone on with. The folder appears in one rename,
when it is whole; a hidden record in it holds the sums, and a later run checks them.
"""

from __future__ import annotations

from pathlib import Path

import click

from common.cli import OneLineCommand
from common.fetching import RETRIES
from common.files import expand, home
from tools.preparing.data import default_name, prepare_data
from tools.preparing.datasets import KNOWN_DATA, known_data
from tools.preparing.sources import is_url


def _check(source: str) -> None:
    if not (known_data(source) or is_url(source) or source.startswith("hf://") or expand(source).exists()):
        raise ValueError(
            f"unknown data '{source}'; known: {', '.join(KNOWN_DATA)}, wikipedia-LANGUAGE; or give hf://owner/name, a "
            "URL, or a file or folder that is there"
        )


@click.command(cls=OneLineCommand)
@click.argument("sources", nargs=-1)
@click.option("--list", "list_", is_flag=True, help="Show the known sets.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where data lives.  [default: data/]")
@click.option("--name", help="Call it so, in the folder.  [default: what SOURCES says]")
@click.option("--only", multiple=True, metavar="PATTERN", help="Only files that match; may be repeated.")
@click.option(
    "--retries", type=click.IntRange(0), default=RETRIES, show_default=True, help="Attempts without a new byte."
)
@click.option("--force", is_flag=True, help="Prepare again even where it is there.")
def cli(
    sources: tuple[str, ...],
    list_: bool,
    folder: Path | None,
    name: str | None,
    only: tuple[str, ...],
    retries: int,
    force: bool,
) -> None:
    """Prepare data: SOURCES are known sets (--list), hf://owner/name, URLs of files, or files and folders."""
    if list_:
        for each, known in KNOWN_DATA.items():
            click.echo(f"{each:22} {known.about} (hub: {known.repo})")
        click.echo(f"{'wikipedia-LANGUAGE':22} articles for the index, such as wikipedia-en (hub: wikimedia/wikipedia)")
        return
    if not sources:
        raise click.UsageError(f"give one or more of: {', '.join(KNOWN_DATA)}, hf://owner/name, ...; or --list")
    if name and len(sources) > 1:
        raise click.UsageError("--name is for one set; prepare the others by themselves")
    for each in sources:
        _check(each)
    for each in sources:
        target = (folder or home() / "data") / (name or default_name(each))
        prepare_data(each, target, lambda line: click.echo(line, err=True), only, force, retries)


if __name__ == "__main__":
    cli()

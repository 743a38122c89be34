"""A model from the hub, a URL or a folder -> a directory under models/ that transformers loads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.fetching import RETRIES
from common.files import expand, write_json
from common.models import HUB_MODELS
from tools.preparing import weights
from tools.preparing.gathering import File, Say, check_prepared, gather, new_folder
from tools.preparing.sources import Listing, hub_refusal, is_url, list_folder, list_hub, list_url, place_of, read_url


def default_name(source: str) -> str:
    """What a model is called under models/: a hub id as it is, a URL or a folder by its last part."""
    if is_url(source) or expand(source).is_dir():
        return place_of(source).rpartition("/")[2]
    return source


def prepare_from(
    source: str,
    target: Path,
    say: Say,
    revision: str | None = None,
    force: bool = False,
    retries: int = RETRIES,
) -> None:
    """Make `target` a model directory of what is at `source`: a short name of HUB_MODELS, a hub id, a URL, or a folder.

    What was prepared before is checked against its sums and kept, unless `force`. Raises ValueError where the model
    cannot be had, or is none; a later call goes on where this one ended.
    """
    if source in HUB_MODELS:
        source, revision = HUB_MODELS[source].repo, revision or HUB_MODELS[source].revision
    name, asked = target.name, place_of(source) + (f"@{revision}" if revision else "")
    if (target / "config.json").is_file() and not force:
        check_prepared(target, weights.RECORD, asked, say)
        return
    if not is_url(source) and not expand(source).is_dir():
        say(f"{name}: asking the hub for the files of {source} ...")
    listing = _listing(source, revision)
    files = _chosen(listing, source)
    with new_folder(target, name, replace=force) as scratch:
        try:
            entries = gather(files, scratch, name, say, retries)
        except ValueError as error:
            raise (hub_refusal(error, source) if listing.place.startswith("hf://") else error) from None
        try:
            remarks = weights.check(scratch)
        except ValueError as error:
            raise ValueError(f"{listing.place} is not a whole model: {error}") from None
        record = {"name": name, "source": listing.place, "asked": asked, "files": entries}
        write_json(scratch / weights.RECORD, record)
    for remark in remarks:
        say(f"{name}: {remark}")
    say(f"{name}: ready in {target}")


def _listing(source: str, revision: str | None) -> Listing:
    if expand(source).is_dir():
        return list_folder(source)
    if not is_url(source):
        return list_hub(source, "model", revision)
    listing = list_url(source, weights.STANDARD)
    if any(file.name == weights.INDEX for file in listing.files):
        names = weights.parsed_index(read_url(f"{source.rstrip('/')}/{weights.INDEX}"))
        listing = replace(listing, files=listing.files + list_url(source, names).files)
    return listing


def _chosen(listing: Listing, source: str) -> list[File]:
    try:
        names = set(weights.chosen(file.name for file in listing.files))
    except weights.PickledError as error:
        raise ValueError(f"{source}: {error}; {_remedy(listing)}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return [file for file in listing.files if file.name in names]


def _remedy(listing: Listing) -> str:
    if not listing.place.startswith("hf://"):
        return "where you trust it, load it with transformers: save_pretrained writes safetensors"
    if pulls := listing.pulls():
        return f"the hub's converter made safetensors of them in a pull request: --revision refs/pr/{pulls[0]}"
    return "ask the hub's space safetensors/convert for safetensors, then give its pull request: --revision refs/pr/N"

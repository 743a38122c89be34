"""Data from the hub, a URL or this machine -> a folder under data/ that training or the index reads as it is."""

from __future__ import annotations

import fnmatch
import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from common.fetching import RETRIES, file_name
from common.files import atomic_write, expand, write_json
from retrieval.readers.files import READERS
from retrieval.readers.files import kind_of as document_kind
from tools.preparing.datasets import KnownData, Row, known_data, name_by_split
from tools.preparing.gathering import Entry, File, Say, check_prepared, gather, new_folder
from tools.preparing.sources import Listing, hub_refusal, is_url, list_folder, list_hub, place_of, probe
from training.data.decoding import TEXT_SUFFIXES, is_known, kind_of, known_kinds, read_raw
from training.data.detection import NUM_FIRST_ROWS, detect_format
from training.data.extras import needed
from training.data.sources import find_files

RECORD = ".parley.json"  # hidden, so that it is never read as data
_HUB = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<path>[^@]+))?(?:@(?P<revision>[\w./-]+))?")
_NO_ROWS = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")


def default_name(source: str) -> str:
    """What a set is called under data/: a known one and a folder as they are, a file without what follows its dot."""
    hub = _HUB.fullmatch(source)
    if known_data(source) or (hub and not hub["path"]):
        return source.rpartition("/")[2].partition("@")[0]
    if hub or is_url(source):
        name = file_name(hub["path"] if hub else source)
    else:
        name = expand(source).resolve().name
        if expand(source).is_dir():
            return name
    return name.lstrip(".").split(".")[0] or "data"


def prepare_data(
    source: str,
    target: Path,
    say: Say,
    only: Sequence[str] = (),
    force: bool = False,
    retries: int = RETRIES,
) -> None:
    """Make `target` a folder of the data at `source`: a name of KNOWN_DATA or wikipedia-LANG, hf://owner/name[/path],
    a URL of a file, a file or a folder; of its files those that match one of `only`, where that is given.

    What was prepared before is checked against its sums and kept, unless `force`. Raises ValueError where it cannot be
    had, or holds nothing to read; a later call goes on where this one ended.
    """
    known, name = known_data(source), target.name
    place = source if known or source.startswith("hf://") else place_of(source)
    place += f" (only {' '.join(only)})" if only else ""
    if target.is_dir() and not force:
        check_prepared(target, RECORD, place, say)
        return
    listing = _listing(source, known)
    files = _taken(listing.files, only, source)
    if known:
        files = [_as_known(file, known) for file in files]
    with new_folder(target, name, replace=force) as scratch:
        try:
            entries = gather(files, scratch, name, say, retries)
        except ValueError as error:
            raise (hub_refusal(error, source) if listing.place.startswith("hf://") else error) from None
        if known and known.convert:
            _tell_counts(name, entries.values(), say)
        write_json(scratch / RECORD, {"name": name, "source": listing.place, "asked": place, "files": entries})
    say(f"{name}: ready in {target}: {known.use.format(target, name) if known else _use(target)}")


def _listing(source: str, known: KnownData | None) -> Listing:
    """All files of the source that hold data."""
    if known:
        listing = list_hub(known.repo, "dataset", None)
        return replace(listing, files=_unpacked_left(_matching(listing.files, known.patterns)))
    if source.startswith("hf://"):
        hub = _HUB.fullmatch(source)
        if hub is None:
            raise ValueError(f"'{source}' is no data set; write hf://owner/name, or hf://owner/name/path@revision")
        listing = list_hub(hub["repo"], "dataset", hub["revision"])
        if path := (hub["path"] or "").strip("/"):
            listing = replace(listing, files=_matching(listing.files, (path, f"{path}/*")))
        return replace(listing, files=_readable(listing.files))
    if is_url(source):
        remote = probe(source)
        if remote is None:
            raise ValueError(f"{place_of(source)}: the server does not have it")
        return Listing(place_of(source), _readable((File(file_name(source), remote),)))
    path = expand(source)
    if path.is_file():
        return Listing(str(path.resolve()), _readable((File(path.name, path),)))
    listing = list_folder(path)
    return replace(listing, files=_readable(listing.files))


def _matching(files: Iterable[File], patterns: Iterable[str]) -> tuple[File, ...]:
    every = list(patterns)
    return tuple(file for file in files if any(fnmatch.fnmatchcase(file.name, pattern) for pattern in every))


def _unpacked_left(files: tuple[File, ...]) -> tuple[File, ...]:
    """Without those that are there packed as well."""
    names = {file.name for file in files}
    return tuple(file for file in files if f"{file.name}.gz" not in names)


def _readable(files: tuple[File, ...]) -> tuple[File, ...]:
    """What training reads as rows; where there is none of that, texts and documents."""
    files = tuple(file for file in files if PurePosixPath(file.name).name not in _NO_ROWS)
    rows = [file for file in files if is_known(Path(file.name)) and kind_of(Path(file.name))[0] not in TEXT_SUFFIXES]
    return tuple(rows or (file for file in files if document_kind(Path(file.name)) in READERS))


def _taken(files: tuple[File, ...], only: Sequence[str], source: str) -> list[File]:
    taken = _matching(files, only) if only else files
    if not files:
        raise ValueError(f"{source}: holds no data; known: {known_kinds()}, and documents that the index reads")
    if not taken:
        names = ", ".join(file.name for file in files[:5])
        raise ValueError(f"{source}: no file matches --only {' '.join(only)}; there are {len(files)}, such as {names}")
    return list(taken)


def _as_known(file: File, known: KnownData) -> File:
    """With the name that it has here, and what is done to its rows."""
    name = name_by_split(file.name) if known.by_split else file.name
    if known.convert is None:
        return replace(file, name=name)
    suffix = "".join(kind_of(Path(name)))
    if suffix == ".parquet":  # said before it is fetched
        needed("pyarrow.parquet", f"{name} is a .parquet file")
    return File(name.removesuffix(suffix) + ".jsonl.gz", file.source, _converter(known.convert), suffix)


def _converter(parse: Callable[[Row], Row]) -> Callable[[Path, Path], Entry]:
    def convert(raw: Path, path: Path) -> Entry:
        kept, left_out = 0, Counter[str]()
        with atomic_write(path, "wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
            for each in read_raw(raw, path.name):
                try:
                    if each.problem is not None or not isinstance(each.value, dict):
                        raise ValueError(each.problem or "no object")
                    line = json.dumps(parse(each.value), ensure_ascii=False).encode() + b"\n"
                except UnicodeEncodeError:
                    left_out["half a character (a lone surrogate)"] += 1
                except ValueError as error:
                    left_out[re.sub(r"\d+", "0", str(error))] += 1
                else:
                    packed.write(line)
                    kept += 1
        return {"rows_kept": kept, "rows_left_out": dict(left_out)}

    return convert


def _tell_counts(name: str, entries: Iterable[Entry], say: Say) -> None:
    kept, left_out = 0, Counter[str]()
    for entry in entries:
        kept += entry["rows_kept"]
        left_out.update(entry["rows_left_out"])
    reasons = "; ".join(f"{count:,} x {reason}" for reason, count in left_out.most_common(5))
    say(f"{name}: {kept:,} rows kept, {left_out.total():,} left out{f' ({reasons})' if reasons else ''}")
    if not kept:
        raise ValueError(f"{name}: no row can be used ({reasons or 'it is empty'}); it is not as it was known to be")


def _use(folder: Path) -> str:
    """What a set of somebody's is, from the first rows of its first file."""
    try:
        first = find_files(str(folder)).files[0]
        found = detect_format(list(itertools.islice(read_raw(first.path, first.path.name), NUM_FIRST_ROWS)), ())
    except ValueError as error:
        return f"documents for the index, or rows whose format must be said ({error})"
    return f"the first rows are of the format {found.name}" if found else "the first rows cannot be read"

"""Where data is -> the files that hold it: local files, folders, patterns, URLs, Hugging Face data sets."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from common.fetching import file_name
from common.files import expand, read_json, sha256_of
from training.data.decoding import TEXT_SUFFIXES, is_known, kind_of, known_kinds
from training.data.downloading import downloaded
from training.data.extras import needed

_HUB = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?:@(?P<split>[\w.-]+))?")
_SAVED = ("state.json", "dataset_info.json")  # a folder with these was written by `save_to_disk`


class DataFile(NamedTuple):
    """A local file, and what places in it are called by."""

    path: Path
    name: str


@dataclass(frozen=True)
class Found:
    """The files of a source in a fixed order, and the names of those that stand beside them and are not read."""

    files: tuple[DataFile, ...]
    left_out: tuple[str, ...] = ()


class Fingerprint(NamedTuple):
    """What a source holds. `sha256` is that of its file; of several files it is the sum of what `sha256sum` prints for
    them. `num_bytes` as they are on disk."""

    sha256: str
    num_files: int
    num_bytes: int


def find_files(location: str) -> Found:
    """The files of a source; what is not on this machine is fetched first.

    A folder stands for all files below it whose names say that they hold rows; text files only where it holds no
    others (a README beside the data is none of it). Hidden files are passed over. A folder that the `datasets` library
    saved is its Arrow files. Raises ValueError where nothing is found, or it cannot be fetched.
    """
    if location.startswith("hf://"):
        return Found(tuple(_hub_files(location)))
    if location.lower().startswith(("http://", "https://")):
        name = file_name(location)
        if not is_known(Path(name)):
            raise ValueError(f"the name of '{name}' does not say what it holds; known: {known_kinds()}")
        return Found((DataFile(downloaded(location), name),))
    path = expand(location)
    try:
        if path.is_dir():
            return _of_folder(path)
        if path.exists():
            return Found((_known(path),))
        matched = _matching(path)
    except OSError as error:
        raise ValueError(f"{location}: {error.strerror}") from None
    if files := [Path(each) for each in matched if Path(each).is_file()]:
        return Found(tuple(map(_known, files)))
    hub = f"; a data set of the Hugging Face hub is hf://{location}" if re.fullmatch(r"[\w-]+/[\w-]+", location) else ""
    raise ValueError(f"{location}: no such file or folder{hub}")


def fingerprint(found: Found) -> Fingerprint:
    """Of the files as they are now."""
    sums = [(sha256_of(file.path), file.name) for file in found.files]
    listed = "".join(f"{sum_}  {name}\n" for sum_, name in sums)
    whole = sums[0][0] if len(sums) == 1 else hashlib.sha256(listed.encode("utf-8", "surrogateescape")).hexdigest()
    return Fingerprint(whole, len(sums), sum(file.path.stat().st_size for file in found.files))


def _matching(pattern: Path) -> list[str]:
    return sorted(glob.glob(str(pattern), recursive=True))  # noqa: PTH207  # a Path's own glob takes none from the root


def _known(path: Path) -> DataFile:
    if not path.is_file():
        raise ValueError(f"{path}: not an ordinary file")
    if not is_known(path):
        raise ValueError(f"{path}: its name does not say what it holds; known: {known_kinds()}")
    return DataFile(path, str(path))


def _of_folder(folder: Path) -> Found:
    below = list(_walk(folder))
    known = [path for path in below if is_known(path)]
    rows = [path for path in known if kind_of(path)[0] not in TEXT_SUFFIXES]
    files = rows or known
    if not files:
        raise ValueError(f"folder '{folder}' holds no data; known: {known_kinds()}")
    taken = set(files)
    return Found(tuple(map(_known, files)), tuple(str(path) for path in below if path not in taken))


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, sorted within each."""
    for place, folders, names in os.walk(folder, onerror=_raise):
        here = Path(place)
        if "dataset_dict.json" in names:
            splits = ", ".join(str(here / split) for split in sorted(folders))
            raise ValueError(f"folder '{here}' holds several splits; name one: {splits}")
        if set(names) >= set(_SAVED):
            listed = read_json(here / _SAVED[0]).get("_data_files", [])
            yield from (here / each["filename"] for each in listed)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(names) if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _hub_files(location: str) -> Iterator[DataFile]:
    """The Arrow files that the `datasets` library keeps of a split, after fetching it where it is not in its cache."""
    parts = _HUB.fullmatch(location)
    if parts is None:
        raise ValueError(f"'{location}' is no data set; write hf://owner/name[/config][@split]")
    datasets = needed("datasets", f"{location} is a Hugging Face data set")
    name, split = parts["name"], parts["split"] or "train"
    try:
        data = datasets.load_dataset(name, parts["config"], split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        # A data set that is not there, a configuration or a split that it lacks, no connection.
        raise ValueError(f"cannot get '{location}': {' '.join(str(error).split())[:300]}") from None
    for number, file in enumerate(data.cache_files):
        several = f"#{number}" if len(data.cache_files) > 1 else ""
        yield DataFile(Path(file["filename"]), f"{name}@{split}{several}")

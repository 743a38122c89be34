"""Weighted mixtures: `path:weight,path:weight` -> sources."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from training.data.sources import find_files

_WEIGHT = re.compile(r"(?P<location>.+):\s*(?P<weight>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)", re.DOTALL)
_HOST_ALONE = re.compile(r"https?://(\[[^\]/]*\]|[^/:]+)", re.IGNORECASE)  # what follows a colon is then a port


@dataclass(frozen=True)
class Source:
    """Where rows come from. `location`: a file, a folder, a pattern, an http(s) URL or `hf://owner/name`; `weight`:
    its share in the mixture, beside the other sources' weights; `format`: a name from training/data/formats.py,
    without it the format is found out; `columns`: what columns are called there -> what the format calls them."""

    location: str
    weight: float = 1.0
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.location, str) or not self.location.strip():
            raise ValueError("a source of data has no path; write path:weight,path:weight")
        if isinstance(self.weight, bool) or not isinstance(self.weight, int | float):
            raise ValueError(f"the weight of '{self.location}' must be a number, not {self.weight!r}")
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ValueError(
                f"the weight of '{self.location}' is {self.weight:g}; a weight is above 0, and what shall not be "
                "trained on is left out"
            )


def check_is_here(mixture: Any) -> None:
    """ValueError for files of a mixture, as `parse_mixture` takes it, that should be on this machine and are not."""
    for source in parse_mixture(mixture):
        if "://" not in source.location:
            find_files(source.location)


def parse_mixture(
    mixture: str | Sequence[str | Mapping[str, Any] | Source],
    format: str | None = None,  # noqa: A002
    columns: Mapping[str, str] | None = None,
) -> list[Source]:
    """The sources of a mixture.

    `mixture` is a string (`a.jsonl:2,b.jsonl`: a weight is what follows a source's last colon, if that is a number;
    without it 1), or a list of such sources, in which a path may hold a comma, of mappings with the fields of
    `Source`, or of sources. `format` and `columns` hold for all that name none. Raises ValueError for an empty mixture,
    an empty source, a weight that is not positive, and a source that is named twice.
    """
    items = mixture.split(",") if isinstance(mixture, str) else list(mixture)
    if not items or items == [""]:
        raise ValueError("no data: name files, folders, URLs or hf://owner/name, as path:weight,path:weight")
    sources = [_source(item, format, columns or {}) for item in items]
    locations = [source.location for source in sources]
    for location in locations:
        if locations.count(location) > 1:
            raise ValueError(f"'{location}' is named twice in the mixture; name it once, with the sum of its weights")
    return sources


def _source(item: str | Mapping[str, Any] | Source, format_: str | None, columns: Mapping[str, str]) -> Source:
    if isinstance(item, Source):
        return item
    if isinstance(item, Mapping):
        try:
            return Source(**{"format": format_, **item, "columns": dict(item.get("columns") or columns)})
        except TypeError:
            raise ValueError(
                f"a source of data has location, weight, format and columns, not {', '.join(map(str, item))}"
            ) from None
    item = item.strip()
    found = _WEIGHT.fullmatch(item)
    if found is None or _HOST_ALONE.fullmatch(found["location"]):
        return Source(item, format=format_, columns=columns)
    return Source(found["location"].strip(), float(found["weight"]), format_, columns)

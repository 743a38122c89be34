"""Which documents a search may look at: `source=docs/*`, `year>=1990`, `lang!=de`."""

from __future__ import annotations

import contextlib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from retrieval.types import MetaValue

_CONDITION = re.compile(r"([^\s=!<>]+)\s*(!=|>=|<=|=|>|<)\s*([^\s=<>].*)", re.DOTALL)
_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
OWN_FIELDS = ("source", "title", "id")  # of every document; all other names are looked for in its metadata
_EXACT_FIELDS = ("source", "id")  # names: "A" is not "a", "007" not "7"


@dataclass(frozen=True)
class Condition:
    """`field` compared with `value`. `=` and `!=` take patterns (`*`, `?`) and ignore case, or compare numbers where
    both are; in `source` and `id` every character counts. The others compare numbers where both are, else texts (dates
    as 2024-05-31 sort as they should). A document without the field meets `!=` alone."""

    field: str
    operator: str
    value: str

    def holds(self, document: Mapping[str, MetaValue]) -> bool:
        """Whether a document (its own fields and its metadata in one mapping) meets the condition."""
        found = document.get(self.field)
        if found is None:
            return self.operator == "!="
        if self.operator in _ORDER:
            number, wanted = _number(found), _number(self.value)
            if number is not None and wanted is not None:
                return _ORDER[self.operator](number, wanted)
            return _ORDER[self.operator](str(found), self.value)
        return self._equals(found) == (self.operator == "=")

    def _equals(self, found: MetaValue) -> bool:
        text, pattern = str(found), self.value
        if self.field not in _EXACT_FIELDS:
            number, wanted = _number(found), _number(self.value)
            if number is not None and wanted is not None:
                return number == wanted
            text, pattern = text.casefold(), pattern.casefold()
        return fnmatchcase(text, pattern.replace("[", "[[]"))  # file names have brackets that mean themselves


@dataclass(frozen=True)
class Filter:
    """All of some conditions; without any, every document passes."""

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Filter:
        """From texts like `year>=1990`. Raises ValueError for one that is no condition."""
        return cls(tuple(_parse(text) for text in texts))

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def passes(self, document: Mapping[str, MetaValue]) -> bool:
        """See `Condition.holds`."""
        return all(condition.holds(document) for condition in self.conditions)


def _parse(text: str) -> Condition:
    found = _CONDITION.fullmatch(text.strip())
    if not found:
        raise ValueError(f"'{text}' is no condition; write FIELD=VALUE, also with != > >= < <=, as in source=docs/*")
    return Condition(found[1], found[2], found[3])


def _number(value: MetaValue) -> int | float | None:
    """The finite number that `value` is or spells, exact for integers; None for any other text, True and False."""
    if isinstance(value, bool) or (isinstance(value, str) and "_" in value):
        return None
    if isinstance(value, int):
        return value
    with contextlib.suppress(ValueError):
        if isinstance(value, str):
            return int(value)
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None

"""Which format a file is in, from its first rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from training.data.decoding import Raw
from training.data.formats import FORMATS, Format
from training.data.rows import Row
from training.data.values import Fields, fields_of

NUM_FIRST_ROWS = 100
_MAX_NAMED_COLUMNS = 20


def detect_format(
    rows: Sequence[Raw], wanted: Sequence[type[Row]], columns: Mapping[str, str] | None = None
) -> Format | None:
    """The format of most of the rows; None where none of them can be read.

    A row is of a format by its columns. Where it may be of several, one that needs all columns of another and more goes
    before it (`prompt chosen rejected` before `prompt`), and then the one that gives the kind that is `wanted` first.
    Rows of no known format do not count where others are of one.
    Raises ValueError, which names the columns, where that leaves none or several, or no format has more than half.
    """
    votes: Counter[tuple[str, ...]] = Counter()
    seen: dict[str, None] = {}
    for raw in rows:
        if raw.problem is None:
            try:
                fields = fields_of(raw.value, columns)
            except ValueError:
                continue
            seen.update(dict.fromkeys(map(str, fields)))
            votes[tuple(each.name for each in _candidates(fields, wanted))] += 1
    if not votes:
        return None
    if len(votes) > 1:
        del votes[()]  # rows of no known format are told one by one, when they are read
    (names, count), *_ = votes.most_common(1)
    if len(names) == 1 and count * 2 > votes.total():
        return FORMATS[names[0]]
    raise ValueError(_undecided(names, votes, list(seen)))


def _candidates(fields: Fields, wanted: Sequence[type[Row]]) -> list[Format]:
    matched = {
        name: keys for name, each in FORMATS.items() if not each.by_name and (keys := each.matched(fields)) is not None
    }
    most_columns = [
        FORMATS[name] for name, keys in matched.items() if not any(keys < other for other in matched.values())
    ]
    for kind in wanted:
        if giving := [each for each in most_columns if kind in each.kinds]:
            return giving
    return most_columns


def _undecided(names: Sequence[str], votes: Counter[tuple[str, ...]], columns: Sequence[str]) -> str:
    named = ", ".join(columns[:_MAX_NAMED_COLUMNS]) + (", ..." if len(columns) > _MAX_NAMED_COLUMNS else "")
    if len(names) > 1:
        found = f"the rows may be of several formats: {', '.join(names)}"
    elif len(votes) > 1:
        counts = ", ".join(f"{num} {' or '.join(each) or 'of no known format'}" for each, num in votes.most_common())
        found = f"the first rows are of several formats: {counts}"
    else:
        found = "the rows are of no known format"
    return f"{found} (columns: {named}); choose one with format=: {', '.join(FORMATS)}; or rename columns"

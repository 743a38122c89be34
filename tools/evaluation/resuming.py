"""JSON Lines that are made row by row, and gone on with after a kill.

Beside the file stands FILE.settings.json: what the rows were made with. A run that finds rows goes on after them if its
own settings and data are the same; half a line that a kill left is cut off.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from common.files import check_can_write, read_json, write_json

NOT_IN_SETTINGS = ("api_key", "threads", "gpu_layers")  # options: a secret, and what changes no answer


def done_rows(out: Path, settings: Mapping[str, Any]) -> int:
    """How many rows stand in `out`, which is cut back to whole lines; writes or compares the settings beside it.

    Raises ValueError where the rows were made with other settings, or are none of ours.
    """
    check_can_write(out)
    settings = json.loads(json.dumps(settings))  # as they are read again: tuples are lists
    beside = out.with_name(out.name + ".settings.json")
    if not out.exists():
        write_json(beside, settings)
        return 0
    if not beside.is_file():
        raise ValueError(f"{out} exists without {beside.name}: no run of this command wrote it; name another file")
    before = read_json(beside)
    if changed := [name for name in {**before, **settings} if before.get(name) != settings.get(name)]:
        name = changed[0]
        raise ValueError(
            f"{out} was made with {name}={before.get(name)!r}, not {settings.get(name)!r}; name another file, or "
            "remove it to begin anew"
        )
    return _whole_lines(out)


def _whole_lines(out: Path) -> int:
    with open(out, "rb+") as file:
        count, end = 0, 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            if _row_number(line) != count:
                raise ValueError(f"{out}:{count + 1}: is not row {count} of such a file; name another, or remove it")
            count, end = count + 1, end + len(line)
        file.truncate(end)
        file.flush()
        os.fsync(file.fileno())
    return count


def _row_number(line: bytes) -> int | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record.get("row") if isinstance(record, dict) else None


def append_records(out: Path, records: Iterable[Mapping[str, Any]], num_done: int = 0) -> Iterator[int]:
    """Append each record with its number (`row`, from `num_done`); how many rows there are, after each. A row is on
    disk before the next begins."""
    with open(out, "ab") as file:
        for number, record in enumerate(records, start=num_done):
            file.write(json.dumps({"row": number, **record}, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
            yield number + 1


def read_records(out: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file that `append_records` wrote."""
    with open(out, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)

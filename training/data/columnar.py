"""Parquet and Arrow files -> rows as dicts, a batch in memory at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from training.data.extras import needed

_BATCH = 1000  # rows that are Python objects at a time


def read_parquet(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of a .parquet file. Raises ValueError, which names it by `name`, where the file is broken."""
    parquet = needed("pyarrow.parquet", f"{name} is a .parquet file")
    with _errors(name), parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH):
            yield from _checked(batch).to_pylist()


def read_arrow(path: Path, name: str) -> Iterator[dict[str, Any]]:
    """Rows of an .arrow file as the `datasets` library writes them (a stream), or in Arrow's file form. Raises
    ValueError where the file is broken."""
    ipc = needed("pyarrow.ipc", f"{name} is an .arrow file")
    with _errors(name), needed("pyarrow", "").memory_map(str(path)) as file:
        in_file_form = file.read(6) == b"ARROW1"
        file.seek(0)
        reader = ipc.open_file(file) if in_file_form else ipc.open_stream(file)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if in_file_form else reader
        for batch in batches:
            for start in range(0, _checked(batch).num_rows, _BATCH):
                yield from batch.slice(start, _BATCH).to_pylist()


def _checked(batch: Any) -> Any:
    batch.validate(full=True)  # offsets that lead outside of the data would crash the process
    return batch


@contextlib.contextmanager
def _errors(name: str) -> Iterator[None]:
    lib = needed("pyarrow.lib", "")
    try:
        yield
    except (lib.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{name}: broken or cut off ({' '.join(str(error).split())[:200]}); get it again") from None

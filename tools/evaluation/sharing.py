"""Answers by several processes: each has a model of its own and writes a part, which become one file at the end.

The prompts that are left are dealt out in turn: row `begin + i + j * num` is line j of part i. A part is named
FILE.part-I-of-NUM-from-BEGIN and is gone on with after a kill, as any such file.
"""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from chatbot.assembly import load_model
from chatbot.engines.base import Generation
from common.files import atomic_write
from tools.evaluation.generation import generate, read_prompts
from tools.evaluation.resuming import done_rows, read_records
from training.data.reading import Report

_SECONDS = 0.2  # between two looks at the processes


def generate_shared(
    out: Path, settings: Mapping[str, Any], options: Mapping[str, Any], begin: int, total: int, num: int, at_once: int
) -> Iterator[int]:
    """Answer rows `begin` to `total` with `num` processes and append them to `out`; about how many rows are done, now
    and then. `settings` as `done_rows` has them; `options` load the model and say how it answers.

    Raises ValueError where a process fails (it has said why), and for parts of another number of processes.
    """
    parts = [out.with_name(f"{out.name}.part-{number}-of-{num}-from-{begin}") for number in range(num)]
    _check_parts(out, begin, num)
    if begin == total:
        return
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_share, args=(part, settings, options, begin, number, num, at_once), daemon=True)
        for number, part in enumerate(parts)
    ]
    try:
        for process in processes:
            process.start()
        while any(process.is_alive() for process in processes):
            time.sleep(_SECONDS)
            if any(process.exitcode for process in processes):
                break
            yield begin + sum(_num_lines(part) for part in parts)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
            process.join()
    if any(process.exitcode for process in processes):
        raise ValueError("a process failed, and said why above; run it again to go on")
    _join(out, parts, begin, total)
    yield total


def _share(
    part: Path,
    settings: Mapping[str, Any],
    options: Mapping[str, Any],
    begin: int,
    number: int,
    num: int,
    at_once: int,
) -> None:
    """What a process does: every `num`th prompt."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num)))  # before torch is imported
    try:
        done = done_rows(part, {**settings, "share": f"{number} of {num} from {begin}"})
        import torch

        if (num_gpus := torch.cuda.device_count()) > 1 and options["device"] is None:
            options = {**options, "device": f"cuda:{number % num_gpus}"}
        generation = Generation(**{name: options[name] for name in vars(Generation()) if name in options})
        prompts = read_prompts(settings["data"], Report(), strict=not settings["skip_bad_rows"])
        mine = itertools.islice(prompts, begin + number, None, num)
        for _ in generate(load_model(settings["model"], options), mine, generation, part, done, at_once):
            pass
    except (ValueError, OSError) as error:
        print(f"process {number + 1} of {num}: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


def _check_parts(out: Path, begin: int, num: int) -> None:
    """Remove parts that are in `out` already; refuse those of another number of processes."""
    for part in out.parent.glob(f"{out.name}.part-*-of-*-from-*"):
        words = part.name.removeprefix(f"{out.name}.part-").removesuffix(".settings.json").split("-")
        if int(words[-1]) != begin:
            part.unlink()
        elif int(words[2]) != num:
            raise ValueError(f"{part} is of {words[2]} processes; run it with so many, or remove its parts")


def _join(out: Path, parts: list[Path], begin: int, total: int) -> None:
    """Append the parts' rows to `out`, in the order of the prompts, and remove the parts. Either all is there, or
    nothing is."""
    columns = [read_records(part) for part in parts]
    with atomic_write(out, "wb") as file:
        if out.exists():
            with open(out, "rb") as before:
                shutil.copyfileobj(before, file)
        for number in range(begin, total):
            record = {**next(columns[(number - begin) % len(parts)]), "row": number}
            file.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
    for part in parts:
        part.unlink()
        part.with_name(part.name + ".settings.json").unlink()


def _num_lines(path: Path) -> int:
    if not path.exists():
        return 0
    with open(path, "rb") as file:
        return sum(1 for _ in file)

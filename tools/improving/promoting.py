"""The switch of the bot's default model: a copy under models/, then one rename of the file that names it.

`models/default.json` (common/default_model.py) is what the bot reads. Nothing here deletes a model: one that was
replaced, or rolled back, stays in models/ until a person removes it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common.default_model import RECORD, Default, incomplete, pointer, read_default
from common.files import check_can_write, read_json, sha256_of, write_json
from common.locks import exclusive
from common.models import models_folder
from tools.parity import beside


def promote(made: Path, name: str, first: str, replaces: str | None, report: Path) -> bool:
    """Make the model in the directory `made` the default, as models/`name`; False where it was before.

    `first` is the default where nothing was ever promoted. `replaces`: the model that it was compared with; ValueError
    where the default is another one by now. Called again after a kill it ends what was begun.
    """
    with _switching():
        default = read_default() or Default(first, since="")
        if any(each["model"] == name and each["event"] == "promoted" for each in default.history):
            return False
        if replaces is not None and default.model != replaces:
            raise ValueError(
                f"the default model is {default.model} by now, and this one was compared with {replaces}; improve it, "
                "in another --work"
            )
        _copy(made, models_folder() / name)
        now = _now()
        before = {"model": default.model, "since": default.since, "report": default.report}
        event = {"time": now, "event": "promoted", "model": name}
        _write(Default(name, now, str(report), (*default.previous, before), (*default.history, event)))
    return True


def rollback() -> tuple[str, str]:
    """Go back to the model that was the default before; (from, to). ValueError where there is none, or it is gone."""
    with _switching():
        default = read_default()
        if default is None or not default.previous:
            raise ValueError("there is no model to go back to: none was promoted that is not taken back already")
        before = default.previous[-1]
        if problem := incomplete(before["model"]):
            raise ValueError(f"cannot go back to '{before['model']}': it {problem}; prepare it again")
        event = {"time": _now(), "event": f"rolled back to {before['model']}", "model": default.model}
        _write(
            replace(
                default,
                model=before["model"],
                since=_now(),
                report=before.get("report"),
                previous=default.previous[:-1],
                history=(*default.history, event),
            )
        )
    return default.model, before["model"]


def status(first: str) -> Iterator[str]:
    """What runs, since when, by which report, and all that happened, the latest last. Reads the whole model, to compare
    its sums."""
    default = read_default()
    if default is None:
        yield f"default model: {first} (nothing was promoted)"
        return
    problem = incomplete(default.model) or damaged(models_folder() / default.model)
    yield f"default model: {default.model}, since {default.since}" + (f"; it {problem}" if problem else "")
    if default.report:
        yield f"let through by {default.report}"
    if default.previous:
        yield f"--rollback goes to: {default.previous[-1]['model']}"
    for each in default.history:
        yield f"  {each.get('time', '')}  {each['model']} {each.get('event', '')}"


def damaged(folder: Path) -> str | None:
    """What is wrong with the files of a model by their sums; None where nothing is, or no sums are known."""
    record = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    for name, entry in record.get("files", {}).items():
        if not (folder / name).is_file() or sha256_of(folder / name) != entry["sha256"]:
            return f"is damaged: {name} is not what was written"
    return None


def _copy(made: Path, target: Path) -> None:
    """A copy and no link: the folder that it is made in may be deleted, or worked in, afterwards."""
    if target.exists():
        if damaged(target):
            raise ValueError(f"{target} {damaged(target)}; remove it, and run the same command again")
        return
    needed, free = sum(each.stat().st_size for each in made.iterdir()), shutil.disk_usage(models_folder()).free
    if free < needed:
        raise ValueError(f"{models_folder()} has {free >> 20:,} MiB free; the model needs {needed >> 20:,}")
    with beside(target) as copy:
        shutil.copytree(made, copy)
        if problem := damaged(copy):
            raise ValueError(f"the copy of {made} {problem}; check the disk, and run the same command again")


def _write(default: Default) -> None:
    content: dict[str, Any] = {name: value for name, value in asdict(default).items() if value is not None}
    write_json(pointer(), content)


@contextlib.contextmanager
def _switching() -> Iterator[None]:
    check_can_write(pointer())
    with exclusive(pointer().with_name(".default.lock"), "switching the default model", wait=True):
        yield


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")

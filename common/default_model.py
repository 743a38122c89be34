"""Which model a bot runs that was told none: what `models/default.json` names, which tools/improve.py switches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import expand, read_json
from common.models import is_prepared, models_folder

RECORD = "parley.json"  # in a prepared model's directory: where it came from, and the sizes and sums of its files
_REMEDY = "go back with: python tools/improve.py --rollback, or name a model with --model"


@dataclass(frozen=True)
class Default:
    """The model in use since a time (ISO 8601), and the report that let it through. `previous`: what was in use before,
    the latest last; `history`: all that happened, as {time, event, model}."""

    model: str
    since: str
    report: str | None = None
    previous: tuple[dict[str, Any], ...] = ()
    history: tuple[dict[str, Any], ...] = ()


def pointer() -> Path:
    """The file that names the default model; it need not be there."""
    return models_folder() / "default.json"


def read_default() -> Default | None:
    """What the file says; None without one. Raises ValueError, with the remedy, where it cannot be read."""
    if not pointer().exists():
        return None
    found: Any = read_json(pointer())
    try:
        default = Default(**{**found, **{name: tuple(found.get(name, ())) for name in ("previous", "history")}})
        names = [default.model, default.since, *(each["model"] for each in (*default.previous, *default.history))]
        sound = all(isinstance(name, str) and name for name in names)
    except (TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(
            f"{pointer()} does not name a model as tools/improve.py writes it; delete it, and the first default model "
            "is in use again"
        )
    return default


def default_model() -> Default | None:
    """The same, its model being there. Raises ValueError, with the remedy, where it is missing or cut off."""
    default = read_default()
    if default is not None and (problem := incomplete(default.model)):
        raise ValueError(f"the default model '{default.model}' ({pointer()}) {problem}; {_REMEDY}")
    return default


def incomplete(model: str) -> str | None:
    """What is wrong with the files of a prepared model, by their sizes alone; None where nothing is."""
    if not is_prepared(model):
        return f"is not in {models_folder()}"
    files = _record(models_folder() / model).get("files", {})
    for name, entry in files.items():
        file = models_folder() / model / name
        if not file.is_file():
            return f"lacks its file {name}"
        if file.stat().st_size != entry["num_bytes"]:
            return f"is damaged: {name} has {file.stat().st_size:,} bytes instead of {entry['num_bytes']:,}"
    return None


def num_passages(model: str) -> int | None:
    """How many passages the model in a directory was tested with, where its record says so."""
    folder = models_folder() / model if is_prepared(model) else expand(model)
    found = _record(folder).get("num_passages") if (folder / RECORD).is_file() else None
    return found if isinstance(found, int) and found > 0 else None


def _record(folder: Path) -> dict[str, Any]:
    """What the directory's record says; nothing where there is none."""
    found = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
    return found if isinstance(found, dict) else {}

"""Where a run lives, and whether it goes on from what is there.

RUN/config.json, model.safetensors, ...   the trained model, or adapter_config.json and adapter_model.safetensors
RUN/checkpoints/step-000100/              each a model directory too
RUN/run.json, train.log, metrics.jsonl, loss.png, samples.jsonl
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import expand, home, read_json
from training.checkpoints import STATE, Checkpoint, Checkpoints
from training.record import FILE, plain
from training.tracking.logfile import LOGS

# Settings that may differ when a run goes on: they change what is told and kept, not what is computed.
MAY_CHANGE = {
    "trainer": {
        "output", "resume", "overwrite", "log_every", "samples", "sample_tokens", "save_every", "save_epochs",
        "keep_checkpoints", "upload", "report_to", "peak_tflops", "keep", "early_stop", "eval_at_start", "eval_every",
    },
    "data": {"cache"},
    "distributed": {"timeout_s", "stages", "stages_per_process", "schedule", "layers"},
}  # fmt: skip


@dataclass(frozen=True)
class RunDirectory:
    """`path` of the run, its `checkpoints`, and the one to go on from, or None."""

    path: Path
    checkpoints: Checkpoints
    resume_from: Checkpoint | None


def directory_of(config: Any) -> Path:
    """Where the run of this configuration is."""
    output = config.trainer.output
    return expand(output) if output else home() / "runs" / _name(config)


def open_run(config: Any) -> RunDirectory:
    """Where `config` is run. Raises ValueError for a directory that belongs to something else, or to a run with other
    settings."""
    trainer = config.trainer
    path = directory_of(config)
    if path.exists() and not path.is_dir():
        raise ValueError(f"trainer.output={path} is a file; name a directory")
    checkpoints = Checkpoints(path / "checkpoints", trainer.keep_checkpoints)
    record = path / FILE
    if path.is_dir() and not record.is_file() and not all(map(_of_a_beginning, path.iterdir())):
        raise ValueError(f"{path} is not empty and no run's directory; name another with trainer.output")
    if trainer.resume == "never":
        if record.is_file() and not trainer.overwrite:
            raise ValueError(
                f"{path} holds a run; name another directory, or delete that run with trainer.overwrite=true"
            )
        if record.is_file():
            _delete(path)
        return RunDirectory(path, checkpoints, None)
    if trainer.resume != "auto":
        return RunDirectory(path, checkpoints, _named(expand(trainer.resume)))
    if record.is_file():
        _check_same(read_json(record).get("config", {}), plain(config), path)
        checkpoints.recover()
    return RunDirectory(path, checkpoints, checkpoints.newest() if checkpoints.folder.is_dir() else None)


def _of_a_beginning(path: Path) -> bool:
    """Whether a run that was killed before its record stood may have left this: a part of it, or a process's log."""
    return path.name.startswith(f".{FILE}.") or path.match(LOGS)


def _delete(run: Path) -> None:
    """The record last, so that a run which is cut off in this is still known for one."""
    for path in run.iterdir():
        if path.name != FILE:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    shutil.rmtree(run)


def _named(path: Path) -> Checkpoint:
    if not (path / STATE).is_file():
        raise ValueError(f"trainer.resume={path} is no checkpoint (it has no {STATE}); or say auto or never")
    return Checkpoint(path, int(read_json(path / STATE)["global_step"]))


def _check_same(before: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """A run that goes on must be told what it was told before."""
    for section, settings in now.items():
        earlier = before.get(section)
        if not isinstance(settings, dict) or not isinstance(earlier, dict):
            continue
        for key, value in settings.items():
            if key not in MAY_CHANGE.get(section, set()) and key in earlier and earlier[key] != value:
                raise ValueError(
                    f"{path} holds a run with {section}.{key}={earlier[key]}, now it is {value}: going on would be "
                    "another run; name another trainer.output, or begin anew with trainer.resume=never"
                )


def _name(config: Any) -> str:
    return f"{config.method.name}-{Path(config.model.name).name}"

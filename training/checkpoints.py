"""Checkpoints of a run: whole or not there, the newest few kept, the best besides, the only good one never deleted.

A checkpoint is a model directory that anything can load, with what training needs to go on in `training/` below it and
the Trainer's own `trainer_state.json`. It is written as `.NAME.tmp`, synced, and renamed.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.files import sync_file, sync_folder

STATE = "trainer_state.json"
TRAINING = "training"  # the folder within a checkpoint that only training needs
MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint."""

    path: Path
    step: int


def name_of(step: int, epoch: int, at_end: bool, speaker: bool) -> str:
    """`step-000100`; with Speaker's names `0_100` within epoch 0 and `0` at its end."""
    if speaker:
        return str(epoch) if at_end else f"{epoch}_{step}"
    return f"step-{step:06d}"


class Checkpoints:
    """The checkpoints in `folder`. `held(path)` says that one is still being read, and must stay."""

    def __init__(self, folder: Path, keep: int, held: Callable[[Path], bool] = lambda _: False) -> None:
        self.folder, self._keep, self.held = folder, keep, held

    def all(self) -> list[Checkpoint]:
        """All finished checkpoints, the oldest first."""
        found = []
        for state in self.folder.glob(f"*/{STATE}"):
            if not state.parent.name.startswith("."):
                try:
                    found.append(Checkpoint(state.parent, int(json.loads(state.read_text("utf-8"))["global_step"])))
                except (OSError, ValueError, KeyError) as error:
                    raise ValueError(f"{state} is damaged ({error}); delete that checkpoint") from None
        return sorted(found, key=lambda each: (each.step, each.path.stat().st_mtime_ns))

    def newest(self) -> Checkpoint | None:
        """The checkpoint of the latest step."""
        found = self.all()
        return found[-1] if found else None

    def begin(self, name: str) -> Path:
        """An empty folder to write a checkpoint into."""
        made = self.unfinished(name)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
        return made

    def unfinished(self, name: str) -> Path:
        """Where a checkpoint is written before it has its name."""
        return self.folder / f".{name}.tmp"

    def finish(self, name: str) -> Path:
        """Sync what `begin` gave and give it its name; one of that name from before is replaced."""
        made, final = self.unfinished(name), self.folder / name
        for path in made.rglob("*"):
            if path.is_file():
                path.chmod(made.stat().st_mode & 0o666)  # safetensors makes its files private
                sync_file(path)
            else:
                sync_folder(path)
        sync_folder(made)
        old = self.folder / f".{name}.old"
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        made.rename(final)
        sync_folder(self.folder)
        shutil.rmtree(old, ignore_errors=True)
        return final

    def recover(self) -> None:
        """Clean up after a killed writer: half-written checkpoints go; one that was being replaced gets its name
        back."""
        for old in self.folder.glob(".*.old"):
            final = self.folder / old.name[1 : -len(".old")]
            if not final.exists():
                old.rename(final)
        for rest in (*self.folder.glob(".*.tmp"), *self.folder.glob(".*.old")):
            shutil.rmtree(rest)

    def prune(self, best_step: int | None) -> None:
        """Delete all but the newest few and the best."""
        for each in self.all()[: -self._keep]:
            if each.step != best_step and not self.held(each.path):
                # First out of sight, so that a kill leaves no half of a checkpoint that looks whole.
                gone = self.folder / f".{each.path.name}.tmp"
                shutil.rmtree(gone, ignore_errors=True)
                each.path.rename(gone)
                shutil.rmtree(gone)


def export_model(checkpoint: Path, run: Path) -> None:
    """Make the run's directory itself the model of a checkpoint: its files, linked where the disk allows.

    `config.json`, or an adapter's, comes last: until it is there nothing takes the directory for a model.
    """
    last = ("config.json", "adapter_config.json")
    for name in last:
        (run / name).unlink(missing_ok=True)
    files = [path for path in checkpoint.iterdir() if path.suffix in MODEL_FILES and path.name != STATE]
    for stale in run.glob("*.safetensors"):
        stale.unlink()
    for path in sorted(files, key=lambda each: each.name in last):
        temporary = run / f".{path.name}.tmp"
        temporary.unlink(missing_ok=True)
        try:
            os.link(path, temporary)
        except OSError:  # another disk, or one without links
            shutil.copyfile(path, temporary)
            sync_file(temporary)
        temporary.replace(run / path.name)
    sync_folder(run)

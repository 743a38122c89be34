"""Other trackers by name: tensorboard, wandb, trackio.

They get the run's configuration without secrets (redaction.py), and what the Trainer logs. transformers' own callbacks
send all training arguments and the model's configuration as they are, and can upload the model; W&B by itself adds the
command line, the text of the console and the git remote. None of that is sent.

WANDB_PROJECT, WANDB_MODE, WANDB_API_KEY, TENSORBOARD_LOGGING_DIR, TRACKIO_DIR and TRACKIO_SPACE_ID mean what they do
there.
"""

# ruff: noqa: ARG002  # the signatures of callbacks are the Trainer's

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback, TrainerState

from common.files import atomic_write
from training.tracking.redaction import redacted

PROJECT = "parley"


class Tracker(Protocol):
    """Where a run's values go. `config` and values hold no secrets; values are numbers or text."""

    def open(self, config: dict[str, Any], run: Path, step: int) -> None:
        """The run in the directory `run` begins, or goes on after `step` where that is not 0."""

    def log(self, values: dict[str, Any], step: int) -> None:
        """Values by name, such as train/loss, at a step."""

    def close(self) -> None:
        """The run has ended."""


def reporters(names: Sequence[str], config: Mapping[str, Any], run: Path) -> list[TrainerCallback]:
    """A callback for each name, for a run of this configuration in the directory `run`.

    Raises ValueError for an unknown name, and for one whose package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            known = ", ".join(TRACKERS)
            raise ValueError(f"unknown tracker '{name}'; choose from: {known} (console and files are always on)")
        if find_spec(name) is None:
            raise ValueError(f"tracker '{name}' is not installed; run: pip install {name}")
    return [Reporter(TRACKERS[name](), config, run) for name in dict.fromkeys(names)]


class Reporter(TrainerCallback):
    """Hands what the Trainer logs to a tracker, from the first process alone."""

    def __init__(self, tracker: Tracker, config: Mapping[str, Any], run: Path) -> None:
        self._tracker, self._config, self._run = tracker, redacted(config), run.resolve()
        self._is_open = False

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Open the tracker now, so that a missing key is said before the first step."""
        self._open(state)

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Pass the values on: `loss` as train/loss, `eval_loss` as eval/loss."""
        self._open(state)
        if self._is_open and logs:
            named = {
                f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}": redacted(value, name)
                for name, value in logs.items()
            }
            self._tracker.log(named, state.global_step)

    def on_train_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Close the tracker."""
        self.close()

    def close(self) -> None:
        """Close the tracker, also where an error ended the training."""
        if self._is_open:
            self._tracker.close()
            self._is_open = False

    def _open(self, state: TrainerState) -> None:
        if state.is_world_process_zero and not self._is_open:
            self._tracker.open(self._config, self._run, state.global_step)
            self._is_open = True


class TensorBoard:
    """Event files in `tensorboard/` of the run's directory; look at them with `tensorboard --logdir RUN`."""

    def open(self, config: dict[str, Any], run: Path, step: int) -> None:
        """What a killed run logged after `step` is not shown any more."""
        from torch.utils.tensorboard import SummaryWriter

        folder = os.environ.get("TENSORBOARD_LOGGING_DIR") or str(run / "tensorboard")
        self._writer = SummaryWriter(folder, purge_step=step + 1)
        self._writer.add_text("config", "```json\n" + json.dumps(config, indent=2) + "\n```")

    def log(self, values: dict[str, Any], step: int) -> None:
        """Numbers as curves, the rest as text."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)
            else:
                self._writer.add_text(name, str(value), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


class Wandb:
    """Weights & Biases; WANDB_MODE=offline writes into `wandb/` of the run's directory only."""

    def open(self, config: dict[str, Any], run: Path, step: int) -> None:
        """Begin a run there, or go on with the one that this directory began. ValueError where it refuses."""
        import wandb

        settings = wandb.Settings(
            console="off",
            disable_git=True,
            disable_code=True,
            save_code=False,
            x_disable_meta=True,  # the command line, which may name a token, and the user
            x_save_requirements=False,
        )
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=run.name,
                id=_wandb_id(run / "wandb-run-id.txt", resumed=step > 0),
                resume="allow",
                dir=str(run),
                config=config,
                settings=settings,
            )
        except wandb.Error as error:
            raise ValueError(f"wandb: {error}; set WANDB_API_KEY, or WANDB_MODE=offline") from None
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, Any], step: int) -> None:
        """All values, over our own `step`: W&B's cannot go back to a checkpoint."""
        self._run.log(values | {"step": step})

    def close(self) -> None:
        """Send the rest."""
        self._run.finish()  # type: ignore[no-untyped-call,unused-ignore]  # where trackio is installed


def _wandb_id(path: Path, resumed: bool) -> str:
    """A name of its own for each run, which a resumed one finds in its directory."""
    if resumed and path.is_file():
        return path.read_text("utf-8").strip()
    with atomic_write(path) as file:
        file.write(made := secrets.token_hex(4))
    return made


class Trackio:
    """Trackio: a local data base (look at it with `trackio show`), or a Hugging Face Space."""

    def open(self, config: dict[str, Any], run: Path, step: int) -> None:
        """Begin a run there, or go on with the one of this name."""
        import trackio

        resume = "allow" if step > 0 else "never"
        self._run = trackio.init(project=PROJECT, name=run.name, config=config, resume=resume, embed=False)

    def log(self, values: dict[str, Any], step: int) -> None:
        """All values."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Write the rest."""
        self._run.finish()  # type: ignore[no-untyped-call,unused-ignore]  # where trackio is installed


# name, which is also that of the package -> tracker
TRACKERS: dict[str, type[Tracker]] = {"tensorboard": TensorBoard, "wandb": Wandb, "trackio": Trackio}

"""The ways to train: one file a method, which holds its dataclass of settings, its loss, and `run(config)`."""

from __future__ import annotations

from importlib import import_module
from typing import Any

# name -> module, opened when it is asked for.
METHODS = {
    "ntp": "training.methods.ntp",
    "sft": "training.methods.sft",
    "prefix_lm": "training.methods.prefix_lm",
    "reward": "training.methods.reward",
    "dpo": "training.methods.dpo",
    "kto": "training.methods.kto",
    "rrhf": "training.methods.rrhf",
    "rejection": "training.methods.rejection",
    "weighted": "training.methods.weighted",
    "offline_ppo": "training.methods.offline_ppo",
    "ppo": "training.methods.ppo",
    "grpo": "training.methods.grpo",
    "pipeline_all": "training.methods.pipeline_all",
    "classification": "training.methods.classification",
}


def method_config(name: str) -> Any:
    """The dataclass of a method's settings: `Settings` of its module."""
    return import_module(METHODS[name]).Settings


def method_run(name: str) -> Any:
    """`run(config) -> path of the run's directory` of a method."""
    return import_module(METHODS[name]).run

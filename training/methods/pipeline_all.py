"""Everything in one run: a reward model, supervised finetuning, and PPO on what both gave.

What ChatLLaMA calls ALL. Each stage is a run of its own, in RUN/reward, RUN/sft and RUN/ppo; the same command again
goes on in the one that was not done. `method.stages=[ppo]` runs one alone, on what the others left. `data=` is a folder
with ChatLLaMA's three files, or `method.settings` names each stage's data.

Run: python training/main.py method=pipeline_all model=smollm2-135m data=datasets trainer.output=runs/all
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config.schema import Config

FILES = {"reward": "reward_training_data.json", "sft": "actor_training_data.json", "ppo": "rlhf_training_data.json"}


@dataclass
class Settings:
    """Which stages, and what each is told besides."""

    name: str = "pipeline_all"
    stages: list[str] = field(default_factory=lambda: list(FILES))
    # of a stage, over those of the run: method.settings.ppo.trainer.epochs=50
    settings: dict[str, Any] = field(default_factory=dict)


def run(config: Config) -> Path:
    """Run all stages; return the directory of the last."""
    from training.methods import method_run

    path = Path()
    for stage, its_config in stage_configs(config).items():
        path = method_run(stage)(its_config)
    return path


def stage_configs(config: Config) -> dict[str, Config]:
    """Name of a stage -> its configuration, all checked before the first one runs. Raises ValueError where one is wrong
    or lacks data."""
    from training.run_directory import directory_of

    settings: Settings = config.method
    for name in (*settings.stages, *settings.settings):
        if name not in FILES:
            raise ValueError(f"method=pipeline_all has no stage '{name}'; its stages are: {', '.join(FILES)}")
    if not settings.stages:
        raise ValueError(f"method.stages is empty; name some of: {', '.join(FILES)}")
    if config.data.eval:
        raise ValueError("data.eval is one stage's: say method.settings.sft.data.eval=..., or data.eval_fraction")
    folder = directory_of(config)
    return {stage: _stage_config(config, folder, stage) for stage in FILES if stage in settings.stages}


def _stage_config(config: Config, folder: Path, stage: str) -> Config:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from training.config.door import check, explained
    from training.methods import method_config

    own = config.method.settings.get(stage) or {}
    made = dataclasses.replace(
        config,
        method=method_config(stage)(),
        data=dataclasses.replace(config.data, train=_data(config, stage, own)),
        trainer=dataclasses.replace(config.trainer, output=str(folder / stage)),
    )
    if stage == "ppo":
        made.method.reward = str(folder / "reward")
        if "sft" in config.method.stages or (folder / "sft" / "run.json").is_file():
            made.model = dataclasses.replace(config.model, name=str(folder / "sft"), from_scratch=False, config={})
    try:
        merged: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(made), own))
    except OmegaConfBaseException as error:
        raise ValueError(f"method.settings.{stage}: {explained(error, [f'method={stage}'])}") from None
    check(merged)
    result: Config = merged
    return result


def _data(config: Config, stage: str, own: dict[str, Any]) -> Any:
    """The stage's own data, or its file in the folder that `data` names."""
    from common.files import expand

    given = (own.get("data") or {}).get("train")
    if given:
        return given
    file = expand(str(config.data.train)) / FILES[stage]
    if not file.is_file():
        raise ValueError(
            f"{file} is not there; put it there, or name other data with method.settings.{stage}.data.train"
        )
    return str(file)

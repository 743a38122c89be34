"""ChatLLaMA's `config.yaml`, for `python training/main.py config.yaml --type ACTOR`, as its main.py took it.

Its three types are the stages of `method=pipeline_all`, its model folder is the run's directory; docs/migrating.md
tells what differs. TRAINING and RL are the keys with a counterpart, with ChatLLaMA's defaults.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from common.files import read_text
from training.config.door import quoted

SECTIONS = ("trainer_config", "actor_config", "reward_config", "critic_config")
STAGES = {"REWARD": ["reward"], "ACTOR": ["sft"], "RL": ["ppo"], "ALL": ["reward", "sft", "ppo"]}


class Key(NamedTuple):
    """What it is called here, and ChatLLaMA's default."""

    ours: str
    default: Any = None


# Of actor_config and reward_config.
TRAINING = {
    "model": Key("model.name"),
    "tokenizer_path": Key("model.tokenizer"),
    "train_dataset_path": Key("data.train"),
    "validation_dataset_path": Key("data.eval"),
    "max_sequence_length": Key("data.max_length", 1024),
    "batch_size": Key("trainer.batch_size", 1),
    "epochs": Key("trainer.epochs", 1),
    "lr": Key("trainer.lr", 9e-6),
    "iteration_per_print": Key("trainer.log_every", 1),
    "checkpoint_steps": Key("trainer.save_every", 100),
    "n_checkpoints_to_keep": Key("trainer.keep_checkpoints", 5),
}
RL = {
    "examples_path": Key("data.train"),
    "actor_lr": Key("trainer.lr", 5e-6),
    "actor_eps_clip": Key("method.clip_range", 0.2),
    "critic_eps_clip": Key("method.value_clip", 0.2),
    "beta_s": Key("method.entropy_coeff", 0.02),
    "gamma_discounted": Key("method.gamma", 1),
    "batch_size": Key("trainer.batch_size", 1),
    "epochs": Key("method.passes", 1),
    "checkpoint_steps": Key("trainer.save_every", 1),
    "n_checkpoints_to_keep": Key("trainer.keep_checkpoints", 2),
}
# Understood by `_common`, `_episodes` and `_answers`.
_JOINED = (
    *("model_folder", "load_8bit", "checkpoint_name", "deepspeed_enable", "deepspeed_config_path"),
    *("peft_enable", "peft_config_path", "max_tokens", "temperature"),
    *("num_episodes", "num_examples", "max_timesteps", "update_timesteps"),
)
_NEEDLESS = {
    "min_tokens": "the oldest turns go first",
    "additonal_prompt_tokens": "the oldest turns go first",
    "model_head_hidden_size": "a reward's head is one layer",
    "froze_embeddings": "peft=lora trains no embeddings",
    "use_fairscale": "transformers loads every model",
    "accelerate_enable": "torchrun starts several processes",
    "accelerate_config_path": "torchrun starts several processes",
    "critic_lr": "the value head learns with the policy, method.value_coeff weighs it",
    "device": "it is chosen",
    "local_rank": "torchrun sets it",
    "debug": "--dry-run tells what would be done",
}
_PEFT = {"r": Key("peft.r", 8), "lora_alpha": Key("peft.alpha", 32), "lora_dropout": Key("peft.dropout", 0.1)}
_OF_PEFT_ITSELF = ("inference_mode", "task_type", "peft_type", "bias", "fan_in_fan_out", "target_modules")


def is_config(path: Path | None) -> TypeGuard[Path]:
    """Whether a YAML file has its sections."""
    import yaml

    try:
        content = yaml.safe_load(read_text(path)) if path is not None else None
    except yaml.YAMLError:
        return False  # the door says what is wrong with it
    return isinstance(content, dict) and any(name in content for name in SECTIONS)


def translated(
    path: Path, kind: str = "ALL", actor: str | None = None, reward: str | None = None
) -> tuple[list[str], list[str]]:
    """(the same in our keys, what was left out and why). `actor` and `reward` are models in place of the file's.

    Raises ValueError for unknown sections, keys and files, and for what is missing.
    """
    sections = _sections(path)
    actor_config = sections["actor_config"] | ({"model": actor} if actor else {})
    reward_config = sections["reward_config"] | ({"model": reward} if reward else {})
    if not (actor_config.get("model") and actor_config.get("model_folder")):
        raise ValueError(f"{path}: actor_config needs model and model_folder")
    trainer = sections["trainer_config"]
    stages = {
        "reward": {**_training(reward_config, path), "method.loss": "scores"},
        "sft": _training(actor_config, path),
        "ppo": {**_reinforced(trainer, path), **_answers(actor_config, path)},
    }
    for stage in STAGES[kind]:
        if not stages[stage].get("data.train"):
            name = "trainer_config.examples_path" if stage == "ppo" else "train_dataset_path"
            raise ValueError(f"{path}: {name} of the stage {stage} is missing; name its data")
    ours = ["method=pipeline_all", f"method.stages=[{','.join(STAGES[kind])}]"]
    ours += [f"{key}={value}" for key, value in _run(actor_config, stages[STAGES[kind][0]]).items()]
    for stage in STAGES[kind]:
        ours += [f"method.settings.{stage}.{key}={_typed(value)}" for key, value in stages[stage].items()]
    left_out = {key for section in sections.values() for key in section if key in _NEEDLESS}
    if sections["critic_config"]:
        left_out.add("critic_config")
    reasons = _NEEDLESS | {"critic_config": "the value head is one layer on the actor's own states"}
    return ours, [f"{key} ({reasons[key]})" for key in sorted(left_out)]


def _sections(path: Path) -> dict[str, dict[str, Any]]:
    import yaml

    content = yaml.safe_load(read_text(path))
    for name in content:
        if name not in SECTIONS:
            raise ValueError(f"{path}: unknown section '{name}'; ChatLLaMA's are: {', '.join(SECTIONS)}")
    known = {"trainer_config": RL, "actor_config": TRAINING, "reward_config": TRAINING, "critic_config": TRAINING}
    for section, keys in known.items():
        for key in content.get(section) or {}:
            if key not in (*keys, *_JOINED, *_NEEDLESS):
                raise ValueError(f"{path}: {section} has no key '{key}'; see docs/migrating.md for those it has")
    return {name: dict(content.get(name) or {}) for name in SECTIONS}


def _run(actor: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, str]:
    """What the whole run must be told, whatever its stages."""
    named = {"model": actor["model"], "data": first["data.train"], "trainer.output": actor["model_folder"]}
    return {key: quoted(str(value)) for key, value in named.items()}


def _named(section: Mapping[str, Any], keys: Mapping[str, Key]) -> dict[str, Any]:
    values = {key.ours: section.get(name, key.default) for name, key in keys.items()}
    return {ours: value for ours, value in values.items() if value is not None}


def _training(section: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Of the actor or the reward model: learning from data."""
    return {**_named(section, TRAINING), "trainer.schedule": "cosine_with_restarts", **_common(section, path)}


def _common(section: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What several keys say together."""
    if section.get("checkpoint_name") not in (None, "last"):
        raise ValueError(
            f"{path}: checkpoint_name={section['checkpoint_name']}: the run goes on from its last checkpoint; for "
            "another one give trainer.resume=PATH, and null here"
        )
    found: dict[str, Any] = {}
    if section.get("deepspeed_enable"):
        found["distributed.deepspeed"] = str(section.get("deepspeed_config_path"))
    if section.get("peft_enable") or section.get("load_8bit"):
        found |= {"peft.name": "lora", **_peft(section.get("peft_config_path"), path)}
    if section.get("load_8bit"):
        found["model.quantize"] = "int8"
    return found


def _peft(file: str | None, path: Path) -> dict[str, Any]:
    import yaml

    content = yaml.safe_load(read_text(path.parent / file)) if file else {}
    for key in content:
        if key not in (*_PEFT, *_OF_PEFT_ITSELF):
            raise ValueError(f"{file}: unknown key '{key}'; known are: {', '.join(_PEFT)}")
    return _named(content, _PEFT)


def _reinforced(trainer: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A round is what was learned at once: `num_examples` prompts in each of `update_timesteps` steps."""
    updates, steps = int(trainer.get("update_timesteps", 1)), int(trainer.get("max_timesteps", 1))
    episodes = int(trainer.get("num_episodes", 100))
    if updates < 1 or episodes * steps % updates:
        raise ValueError(
            f"{path}: num_episodes x max_timesteps, {episodes * steps}, is no multiple of update_timesteps={updates}"
        )
    rounds = {
        "method.prompts": int(trainer.get("num_examples", 32)) * updates,
        "trainer.epochs": episodes * steps // updates,
    }
    return {**_named(trainer, RL), **rounds, **_common(trainer, path)}


def _answers(actor: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """How the actor answers. Prompt and answer share `max_sequence_length`: an answer has half of it at most."""
    longest = int(actor.get("max_sequence_length", 1024))
    found = {
        "data.max_length": longest,
        "method.new_tokens": max(1, min(int(actor.get("max_tokens", 1024)), longest // 2)),
        "method.temperature": float(actor.get("temperature", 0.1)),
    }
    adapter = {key: value for key, value in _common(actor, path).items() if key.startswith(("peft", "model"))}
    return {**found, **({"model.tokenizer": actor["tokenizer_path"]} if actor.get("tokenizer_path") else {}), **adapter}


def _typed(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def told(ours: Sequence[str], left_out: Sequence[str]) -> Iterator[str]:
    """Lines for the user."""
    import shlex

    yield f"in Parley's own keys: {shlex.join(ours)}"
    if left_out:
        yield f"without counterpart, and left out: {'; '.join(left_out)}"

"""ChatLLaMA's config.yaml: what it comes to in our keys, a whole run of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from training.config.compat.chatllama import RL, STAGES, TRAINING, translated
from training.config.door import compose
from training.config.door import keys as our_keys
from training.main import cli
from training.methods.pipeline_all import stage_configs

# As its artifacts had it, with paths of this test.
MODEL = {
    "model": "facebook/opt-125m",
    "model_folder": "./models",
    "tokenizer_path": None,
    "train_dataset_path": "./datasets/actor_training_data.json",
    "validation_dataset_path": None,
    "froze_embeddings": True,
    "use_fairscale": False,
    "max_sequence_length": 512,
    "max_tokens": 512,
    "min_tokens": 100,
    "additonal_prompt_tokens": 20,
    "temperature": 0.5,
    "batch_size": 2,
    "iteration_per_print": 7,
    "lr": 0.0001,
    "epochs": 3,
    "checkpoint_steps": 40,
    "n_checkpoints_to_keep": 4,
    "checkpoint_name": None,
    "deepspeed_enable": False,
    "deepspeed_config_path": "./ds.json",
    "accelerate_enable": False,
    "load_8bit": False,
    "peft_enable": False,
    "peft_config_path": "./peft.yaml",
}
TRAINER = {
    "actor_lr": 0.00002,
    "critic_lr": 0.00001,
    "actor_eps_clip": 0.3,
    "critic_eps_clip": 0.4,
    "beta_s": 0.05,
    "gamma_discounted": 0.9,
    "examples_path": "./datasets/rlhf_training_data.json",
    "num_episodes": 10,
    "max_timesteps": 4,
    "update_timesteps": 2,
    "num_examples": 3,
    "batch_size": 6,
    "epochs": 5,
    "checkpoint_steps": 9,
    "n_checkpoints_to_keep": 8,
    "checkpoint_name": None,
    "deepspeed_enable": False,
    "accelerate_enable": False,
}


@pytest.fixture
def write_config(tmp_path: Path) -> Any:
    """(changes to sections) -> the file; a value of None for a section leaves it out."""

    def write(**changes: Any) -> Path:
        reward = MODEL | {"model": "gpt2", "train_dataset_path": "./datasets/reward_training_data.json"}
        sections: dict[str, Any] = {
            "trainer_config": TRAINER,
            "actor_config": MODEL,
            "reward_config": reward | {"model_head_hidden_size": 2048},
            "critic_config": {"model": "gpt2", "model_head_hidden_size": 2048},
        }
        for section, own in changes.items():
            sections[section] = sections.get(section, {}) | own
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(sections))
        return file

    return write


def stages(file: Path, kind: str = "ALL", **models: str) -> dict[str, Any]:
    return stage_configs(compose(translated(file, kind, **models)[0]))


def test_each_key_is_one_of_ours() -> None:
    assert {key.ours for key in TRAINING.values()} <= {*our_keys("sft"), *our_keys("reward")}
    assert {key.ours for key in RL.values()} <= set(our_keys("ppo"))


def test_all_is_the_three_stages_in_our_keys(write_config: Any) -> None:
    found = stages(write_config())
    assert list(found) == ["reward", "sft", "ppo"]
    assert [each.trainer.output for each in found.values()] == ["models/reward", "models/sft", "models/ppo"]
    sft, reward, ppo = found["sft"], found["reward"], found["ppo"]
    assert (sft.model.name, sft.data.train) == ("facebook/opt-125m", "./datasets/actor_training_data.json")
    assert (reward.model.name, reward.method.loss.value) == ("gpt2", "scores")
    for each in (sft, reward):
        told = each.trainer
        assert (told.batch_size, told.log_every, told.lr, told.epochs) == (2, 7, 0.0001, 3)
        assert (told.save_every, told.keep_checkpoints, told.schedule) == (40, 4, "cosine_with_restarts")
        assert (each.data.max_length, each.data.eval, each.peft.name) == (512, None, None)
    assert (ppo.model.name, ppo.method.reward) == ("models/sft", "models/reward")
    assert ppo.data.train == "./datasets/rlhf_training_data.json"
    method = ppo.method
    assert (method.clip_range, method.value_clip, method.entropy_coeff, method.gamma) == (0.3, 0.4, 0.05, 0.9)
    # 10 x 4 steps of 3 prompts, learned after every 2: twenty rounds of 6
    assert (method.prompts, ppo.trainer.epochs, ppo.trainer.batch_size, method.passes) == (6, 20, 6, 5)
    assert (ppo.trainer.lr, ppo.trainer.save_every, ppo.trainer.keep_checkpoints) == (0.00002, 9, 8)
    assert (method.new_tokens, method.temperature, ppo.data.max_length) == (256, 0.5, 512)


def test_models_of_the_command_line_and_single_types(write_config: Any) -> None:
    for kind, names in STAGES.items():
        assert list(stages(write_config(), kind)) == names
    found = stages(write_config(), actor="other/actor", reward="other/reward")
    assert (found["sft"].model.name, found["reward"].model.name) == ("other/actor", "other/reward")


def test_what_is_not_said_is_as_in_chatllama(write_config: Any, tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    actor = {"model": "m", "model_folder": "out", "train_dataset_path": "a.json"}
    trainer = {"examples_path": "e.json"}
    file.write_text(yaml.safe_dump({"actor_config": actor, "trainer_config": trainer}))
    sft = stages(file, "ACTOR")["sft"]
    assert (sft.trainer.lr, sft.trainer.batch_size, sft.data.max_length) == (9e-6, 1, 1024)
    ppo = stages(file, "RL")["ppo"]
    assert (ppo.trainer.lr, ppo.method.prompts, ppo.trainer.epochs, ppo.method.passes) == (5e-6, 32, 100, 1)
    assert (ppo.method.temperature, ppo.method.new_tokens) == (0.1, 512)


def test_adapters_and_eight_bits(write_config: Any, tmp_path: Path) -> None:
    found = stages(write_config(actor_config={"peft_enable": True, "peft_config_path": None}))
    for stage in ("sft", "ppo"):
        peft = found[stage].peft
        assert (peft.name, peft.r, peft.alpha, peft.dropout) == ("lora", 8, 32, 0.1)
    assert found["reward"].peft.name is None
    (tmp_path / "peft.yaml").write_text("inference_mode: false\nr: 4\nlora_alpha: 16\nlora_dropout: 0.0\n")
    found = stages(write_config(actor_config={"peft_enable": True, "load_8bit": True}))
    assert (found["sft"].peft.r, found["sft"].peft.alpha, found["sft"].peft.dropout) == (4, 16, 0)
    assert found["sft"].model.quantize.value == "int8"
    deepspeed = write_config(actor_config={"deepspeed_enable": True})
    assert stages(deepspeed, "ACTOR")["sft"].distributed.deepspeed == "./ds.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actor_config": {"learning_rate": 1}}, "actor_config has no key 'learning_rate'"),
        ({"trainer_config": {"actor": 1}}, "trainer_config has no key 'actor'"),
        ({"other_config": {}}, "unknown section 'other_config'"),
        ({"actor_config": {"model": None}}, "actor_config needs model and model_folder"),
        ({"actor_config": {"train_dataset_path": None}}, "train_dataset_path of the stage sft is missing"),
        ({"trainer_config": {"examples_path": None}}, "examples_path of the stage ppo is missing"),
        ({"trainer_config": {"update_timesteps": 3}}, "40, is no multiple of update_timesteps=3"),
        ({"actor_config": {"checkpoint_name": "opt_epoch_1"}}, "checkpoint_name=opt_epoch_1"),
        ({"actor_config": {"peft_enable": True}}, "no such file"),
    ],
)
def test_what_cannot_be_read_is_refused_in_a_line(changes: dict[str, Any], message: str, write_config: Any) -> None:
    done = CliRunner().invoke(cli, [str(write_config(**changes)), "--type", "ALL", "--show"])
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_its_flags_need_its_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli, ["method=sft", "model=m", "data=d", "--type", "RL"])
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
    assert "go with ChatLLaMA's config.yaml" in done.stderr
    (tmp_path / "ours.yaml").write_text("method: sft\nmodel: m\ndata: d\n")
    shown = CliRunner().invoke(cli, [str(tmp_path / "ours.yaml"), "trainer.lr=0.5", "--show"])
    assert shown.exit_code == 0, shown.stderr
    assert "lr: 0.5" in shown.stdout


def test_a_whole_run(write_config: Any, tiny_chat_model: Path, tmp_path: Path) -> None:
    rows = [{"user_input": f"Add {n}.", "completion": f"It is {n + 1}.", "score": float(n % 5)} for n in range(8)]
    for name in ("actor", "reward", "rlhf"):
        wanted = [{key: row[key] for key in row if name == "reward" or key != "score"} for row in rows]
        (tmp_path / f"{name}.json").write_text(json.dumps(wanted))
    both = {"model": str(tiny_chat_model), "model_folder": str(tmp_path / "out"), "epochs": 1}
    file = write_config(
        actor_config=both | {"train_dataset_path": str(tmp_path / "actor.json"), "max_sequence_length": 64},
        reward_config=both | {"train_dataset_path": str(tmp_path / "reward.json"), "max_sequence_length": 64},
        trainer_config={"examples_path": str(tmp_path / "rlhf.json"), "num_episodes": 1},
    )
    done = CliRunner().invoke(
        cli, [str(file), "--type", "ALL", "model.device=cpu", "method.settings.ppo.method.new_tokens=8"]
    )
    assert done.exit_code == 0, done.stderr
    assert "in Parley's own keys: method=pipeline_all" in done.stderr
    assert "critic_lr (the value head learns with the policy" in done.stderr
    assert done.stdout.strip().splitlines()[-1] == str(tmp_path / "out" / "ppo")
    for stage in ("reward", "sft", "ppo"):
        assert json.loads((tmp_path / "out" / stage / "run.json").read_text())["status"] == "finished"

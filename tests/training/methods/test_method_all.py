"""Reward model, finetuning and PPO in one run, with ChatLLaMA's files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.methods.pipeline_all import stage_configs


@pytest.fixture
def datasets(tmp_path: Path) -> Path:
    """The three files, in ChatLLaMA's formats."""
    folder = tmp_path / "datasets"
    folder.mkdir()
    rows = [{"user_input": f"Add {n} and 1.", "completion": f"{n + 1}."} for n in range(8)]
    scored = [{**row, "score": number % 6} for number, row in enumerate(rows)]
    for name, data in (
        ("actor", rows),
        ("reward", scored),
        ("rlhf", [{"user_input": row["user_input"]} for row in rows]),
    ):
        (folder / f"{name}_training_data.json").write_text(json.dumps(data))
    return folder


OVERRIDES = (
    "method=pipeline_all",
    "trainer.max_steps=2",
    "method.settings.reward.method.loss=scores",
    "method.settings.ppo.method.prompts=4",
    "method.settings.ppo.method.new_tokens=6",
)


def test_all_stages_run_and_what_is_done_is_not_done_again(run: Any, datasets: Path, weights: Any) -> None:
    last = run("all", *OVERRIDES, f"data={datasets}", "method.stages=[reward,sft]")
    assert last.name == "sft"
    finished = (last / "model.safetensors").stat().st_mtime_ns
    last = run("all", *OVERRIDES, f"data={datasets}")
    assert last.name == "ppo"
    assert (last.parent / "sft" / "model.safetensors").stat().st_mtime_ns == finished
    record = json.loads((last / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["config"]["model"]["name"] == str(last.parent / "sft")
    assert record["config"]["method"]["reward"] == str(last.parent / "reward")
    before, after = weights(last.parent / "sft"), weights(last)
    assert before.keys() == after.keys()
    assert any(not before[key].equal(after[key]) for key in before)


def test_a_stage_is_told_what_is_its_own(configured: Any, datasets: Path) -> None:
    more = ("method.settings.ppo.trainer.epochs=7", "method.settings.sft.data.train=elsewhere.jsonl")
    made = stage_configs(configured("all", *OVERRIDES, f"data={datasets}", *more))
    assert list(made) == ["reward", "sft", "ppo"]
    assert [made[stage].trainer.epochs for stage in made] == [2, 2, 7]
    assert made["sft"].data.train == "elsewhere.jsonl"
    assert made["reward"].method.loss.value == "scores"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.stages=[actor]", "no stage 'actor'; its stages are: reward, sft, ppo"),
        ("method.settings.ppo.method.kl_coef=1", "did you mean method.kl_coeff"),
        ("method.settings.ppo.trainer.epochs=many", "method.settings.ppo"),
        ("method.settings.sft.trainer.batch_size=0", "trainer.batch_size=0"),
        ("data=nowhere", "reward_training_data.json is not there"),
        ("method.stages=[]", "method.stages is empty"),
        ("data.eval=x.jsonl", "data.eval is one stage's"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(
    override: str, message: str, configured: Any, datasets: Path
) -> None:
    given = [each for each in OVERRIDES if each.partition("=")[0] != override.partition("=")[0]]
    data = [] if override.startswith("data=") else [f"data={datasets}"]
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        stage_configs(configured("all", *given, *data, override))

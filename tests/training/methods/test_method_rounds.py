"""PPO, GRPO and online rejection on tiny models: what is learned of a round, that runs go on exactly, and when they
stop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tools.launching import environments
from training.rl.rounds import Rollout

ROOT = Path(__file__).resolve().parents[3]
METHODS = {
    "ppo": ("method.passes=2", "method.kl_target=3"),
    "ppo-lora": ("method.passes=2", "peft=lora", "peft.dropout=0.3", "method.entropy_coeff=0.01"),
    "ppo-nucleus": ("method.passes=2", "method.top_p=0.8", "method.top_k=50", "method.temperature=0.7"),
    "grpo": ("method.prompts=2", "method.samples=4", "method.loss=answers"),
    "rejection": ("method.prompts=8", "method.samples=2"),
}


def metrics(directory: Path) -> list[dict[str, Any]]:
    """What was logged, without times."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    hidden = ("time", "runtime", "second", "memory")
    return [{key: value for key, value in line.items() if not any(word in key for word in hidden)} for line in lines]


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_goes_on_within_a_round_ends_where_an_undisturbed_one_does(
    name: str, rounds: Any, weights: Any
) -> None:
    overrides = (name.partition("-")[0], *METHODS[name], "trainer.max_steps=6", "data.eval_fraction=0.25")
    whole = rounds("whole", *overrides)
    told = metrics(whole)
    assert {0, 1} <= {line["round"] for line in told if "round" in line}
    assert all(line["kl"] == pytest.approx(0, abs=1e-4) for line in told if line.get("round") == 0)
    assert all(np.isfinite(value) for line in told for value in line.values() if isinstance(value, float))
    samples = [json.loads(line) for line in (whole / "samples.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "answer", "reward", "kl"} <= samples[0].keys()
    for step in (1, 4):
        halved = whole.parent / f"halved-{step}"
        (halved / "checkpoints").mkdir(parents=True)
        place = f"checkpoints/step-{step:06d}"
        shutil.copytree(whole / place, halved / place)
        for file in ("run.json", "metrics.jsonl"):
            shutil.copy(whole / file, halved)
        rounds(halved.name, *overrides)
        first, second = weights(whole), weights(halved)
        assert first.keys() == second.keys()
        assert all(first[key].equal(second[key]) for key in first)
        assert metrics(halved)[:-1] == told[:-1]  # the last one is of the run's time


def test_what_was_trained_loads_as_a_language_model_without_the_value_head(rounds: Any) -> None:
    from transformers import AutoModelForCausalLM

    directory = rounds("r", "ppo", "trainer.max_steps=2")
    _, told = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert (directory / "checkpoints" / "step-000002" / "training" / "value.safetensors").is_file()


def test_accumulated_batches_are_one_large_batch(rounds: Any, weights: Any) -> None:
    plain = ("trainer.optimizer=sgd", "trainer.lr=0.01", "trainer.max_grad_norm=0", "trainer.max_steps=2")
    for method in ("ppo", "grpo", "rejection"):
        more = ("method.prompts=2", "method.samples=4") if method == "grpo" else ()
        large = weights(rounds(f"{method}-large", method, *plain, *more, "trainer.batch_size=8"))
        small = weights(
            rounds(f"{method}-small", method, *plain, *more, "trainer.batch_size=2", "trainer.accumulate=4")
        )
        for key, value in large.items():
            assert float((value - small[key]).abs().max()) < 1e-5, key


def test_how_many_answers_are_written_at_once_is_no_matter(rounds: Any, weights: Any) -> None:
    one = weights(rounds("one", "ppo", "trainer.max_steps=2", "method.rollout_batch=1"))
    many = weights(rounds("many", "ppo", "trainer.max_steps=2", "method.rollout_batch=8"))
    for key, value in one.items():
        assert float((value - many[key]).abs().max()) < 1e-4, key


def test_a_run_stops_where_it_has_gone_too_far_and_names_the_last_good_checkpoint(rounds: Any, tmp_path: Path) -> None:
    far = ("trainer.lr=0.5", "method.max_kl=0.5", "trainer.max_steps=20", "trainer.keep_checkpoints=1")
    with pytest.raises(ValueError, match=r"begin again with a lower trainer\.lr") as error:
        rounds("far", "ppo", *far)
    assert "nats from the untrained model, over method.max_kl=0.5" in str(error.value)
    slowly = ("trainer.lr=0.0004", "method.max_kl=0.5", "trainer.max_steps=80", "trainer.keep_checkpoints=1")
    with pytest.raises(ValueError, match=r"begin from .*step-\d+, the last one within it,") as error:
        rounds("slowly", "ppo", *slowly, "method.kl_coeff=0")
    named = Path(str(error.value).partition("begin from ")[2].partition(",")[0])
    assert (named / "config.json").is_file()
    assert (named / "model.safetensors").is_file()


def rollout(reward: float, num: int = 3, **tokens: Any) -> Rollout:
    numbers = {"logp": np.zeros(num), "ref_logp": np.zeros(num), "values": np.zeros(num)} | tokens
    ids = np.arange(2 + num, dtype=np.int32)
    return Rollout(ids, 2, "", reward, True, None, {key: np.asarray(each, np.float32) for key, each in numbers.items()})


def test_ppo_learns_a_round_as_computed_by_hand() -> None:
    from training.methods.ppo import Settings, learn

    settings = Settings(kl_coeff=0.1, kl_target=0.2, gae_lambda=0.5)
    one = rollout(1.0, 2, logp=[-1, -2], ref_logp=[-1.5, -1.5], values=[0.2, 0.4])
    two = rollout(0.0, 1, values=[0.5])
    numbers = {"kl_coeff": 0.1}
    rows, told = learn(settings, [[one], [two]], numbers)
    # rewards [-.05, 1.05] and [0]; deltas [-.05 + .4 - .2, 1.05 - .4] and [-.5]
    raw = np.array([0.15 + 0.5 * 0.65, 0.65, -0.5])
    found = np.concatenate([row.tokens["advantages"] for row in rows])
    assert found == pytest.approx((raw - raw.mean()) / raw.std(), abs=1e-5)
    assert one.tokens["returns"].tolist() == pytest.approx([0.675, 1.05])
    assert two.tokens["returns"].tolist() == [0]
    assert told["kl_coeff"] == 0.1
    assert numbers["kl_coeff"] == pytest.approx(0.1 * 0.98)


def test_online_rejection_keeps_the_first_of_the_best() -> None:
    from training.methods.rejection import learn

    group = [rollout(score) for score in (0.1, 0.9, 0.9)]
    rows, told = learn([group], {})
    assert rows == [group[1]]
    assert told == {"reward_best": 0.9}


def test_the_loss_falls_with_entropy_and_counts_answers_alone(tiny_chat_model: Path) -> None:
    """The bonus has the right sign; and what the prompt is changes nothing but what is seen of it."""
    from functools import partial

    from transformers import AutoModelForCausalLM

    from training.examples.collate import causal_batch, num_loss_tokens
    from training.methods.ppo import Settings, _loss, learn
    from training.rl.meter import Meter
    from training.rl.policy import token_numbers
    from training.rl.rounds import rollout_batch

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    collate = partial(causal_batch, pad_id=0, packed=False)
    some = [rollout(1.0, 3), rollout(-1.0, 5)]
    for each in some:
        numbers = token_numbers(model, rollout_batch([[each]], collate), 1.0)
        each.tokens["logp"] = each.tokens["ref_logp"] = numbers.logp.detach().numpy()
    learn(Settings(), [[each] for each in some], {"kl_coeff": 0.1})
    batch = rollout_batch([some], collate)
    assert int(num_loss_tokens(batch)) == 8
    together = token_numbers(model, batch, 1.0)
    assert together.logp.detach().numpy() == pytest.approx(
        np.concatenate([each.tokens["logp"] for each in some]), abs=1e-4
    )
    plain = _loss(Settings(), model, batch, Meter()).detach()
    assert float(plain) == pytest.approx(
        -float(batch["advantages"].sum()) + 0.25 * float((batch["returns"] ** 2).sum()), abs=1e-3
    )
    paid = _loss(Settings(entropy_coeff=0.5), model, batch, Meter()).detach()
    assert float(paid) == pytest.approx(float(plain - 0.5 * together.entropy.detach().sum()), abs=1e-3)


def test_encoder_decoders_learn_too(rounds: Any, tmp_path: Path, tiny_chat_model: Path, weights: Any) -> None:
    from transformers import AutoTokenizer, T5Config, T5ForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(tiny_chat_model)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    directory = rounds("t5-run", "ppo", f"model={tmp_path / 't5'}", "trainer.max_steps=4", "data.eval_fraction=0.25")
    told = [line for line in metrics(directory) if "round" in line]
    assert told[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert 0 < told[0]["length"] <= 8
    before, after = weights(tmp_path / "t5"), weights(directory)
    assert before.keys() == after.keys()
    assert not before["shared.weight"].equal(after["shared.weight"])


def test_a_prompt_that_does_not_fit_loses_its_oldest_turns_or_is_left_out(rounds: Any, write: Any, capsys: Any) -> None:
    turns = [{"role": role, "content": f"{role} speaks."} for role in ("user", "assistant") * 6]
    long = [*turns, {"role": "user", "content": "Add 1."}]
    rows = [{"messages": long}, *({"messages": [{"role": "user", "content": text}]} for text in ("word " * 80, "Hi"))]
    rounds("r", "ppo", f"data={write('long.jsonl', rows)}", "trainer.max_steps=1")
    told = capsys.readouterr().err
    assert "1 x oldest turns dropped to fit" in told
    assert "1 x prompts left out: too long" in told


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method.prompts=7", "a round has 7 answers to learn, which steps of 4"),
        ("method.temperature=0", "method.temperature=0.0 must be more than 0"),
        ("method.top_p=1.5", "method.top_p=1.5"),
        ("method.new_tokens=64", "leaves no room for a prompt within data.max_length=64"),
        ("method.kl_coeff=-1", "method.kl_coeff=-1.0 must be 0 or more"),
        ("method.reward=null", "method.reward is missing"),
        ("data.packing=true", "set data.packing=false"),
        ("method.gamma=2", "method.gamma=2.0"),
        ("method.max_kl=0", "null is no limit"),
    ],
)
def test_impossible_settings_are_refused(override: str, message: str, rounds: Any) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        rounds("r", "ppo", override)


def test_answers_are_compared_so_grpo_needs_two(rounds: Any) -> None:
    with pytest.raises(ValueError, match=r"method\.samples=1 must be at least 2"):
        rounds("r", "grpo", "method.samples=1")


def test_two_processes_write_and_learn_what_one_does(rounds: Any, prompts: Path, weights: Any, tmp_path: Path) -> None:
    more = ("trainer.optimizer=sgd", "trainer.lr=0.01", "trainer.max_steps=4", "data.eval_fraction=0.25")
    one = rounds("one", "ppo", *more, "method.passes=2", "trainer.batch_size=4")
    record = json.loads((one / "run.json").read_text())["config"]
    config = {section: dict(record[section]) for section in ("model", "data", "trainer", "method")}
    config["trainer"] |= {"output": str(tmp_path / "two"), "batch_size": 2}
    (tmp_path / "two.json").write_text(json.dumps(config))  # JSON is YAML
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "training" / "main.py"), "--config", str(tmp_path / "two.json")],
            env=os.environ | {"PYTHONPATH": str(tmp_path)} | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        for own in environments(2)
    ]
    for process in started:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()
    first, second = weights(one), weights(tmp_path / "two")
    for key, value in first.items():
        assert float((value - second[key]).abs().max()) < 1e-5, key
    told = [{key: line[key] for key in ("reward", "kl")} for line in metrics(one) if "round" in line]
    for line, expected in zip((each for each in metrics(tmp_path / "two") if "round" in each), told, strict=True):
        assert [line["reward"], line["kl"]] == pytest.approx([expected["reward"], expected["kl"]], abs=1e-4)

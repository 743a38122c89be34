"""RRHF, weighted learning, offline PPO and rejection sampling by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from training.methods.offline_ppo import offline_ppo_loss
from training.methods.rrhf import best_of_rows, rank_loss
from training.methods.weighted import weighted_loss


def ranked_sum(p: list[float], scores: list[float]) -> float:
    return float(rank_loss(torch.tensor(p), torch.tensor(scores), torch.zeros(len(p), dtype=torch.long)).sum())


def test_rrhf_by_hand() -> None:
    assert ranked_sum([-1.0, -0.5], [1.0, 0.0]) == pytest.approx(0.5)
    assert ranked_sum([-0.2, -0.9, -0.4], [0.0, 2.0, 1.0]) == pytest.approx(1.4)
    assert ranked_sum([-0.5, -1.0], [1.0, 0.0]) == 0


def test_the_best_of_each_row_is_the_first_with_the_highest_score() -> None:
    scores, rows = torch.tensor([0.1, 0.9, 0.9, -3.0, -4.0]), torch.tensor([0, 0, 0, 1, 1])
    assert best_of_rows(scores, rows).tolist() == [False, True, False, True, False]


def test_unlikelihood_by_hand() -> None:
    logp = torch.tensor([math.log(0.25)] * 3 + [0.0])
    losses = weighted_loss(logp, torch.tensor([1.0, -1.0, -2.0, -1.0]))
    assert losses[:3].tolist() == pytest.approx([1.386294, 0.287682, 2 * 0.287682], abs=1e-6)
    assert math.isfinite(float(losses[3]))


def test_offline_ppo_by_hand() -> None:
    def loss(rho: float, reward: float, **more: Any) -> float:
        ratio, given = torch.tensor([math.log(rho)]), torch.tensor([reward])
        return float(offline_ppo_loss(ratio, given, 0.2, more.pop("kl_coeff", 0.0), **more))

    assert loss(1.5, 1) == pytest.approx(-1.2)
    assert loss(1.5, -1) == pytest.approx(1.5)
    assert loss(0.5, -1) == pytest.approx(0.8)
    # A = 1 - 0.1 ln 1.1, and its like for |x| and x^2 / 2
    x = math.log(1.1)
    assert loss(1.1, 1, kl_coeff=0.1) == pytest.approx(-1.1 * (1 - 0.1 * x), rel=1e-5)
    assert loss(1 / 1.1, 1, kl_coeff=0.1, kl_penalty="abs") == pytest.approx(-(1 - 0.1 * x) / 1.1, rel=1e-5)
    assert loss(1.1, 1, kl_coeff=0.1, kl_penalty="mse") == pytest.approx(-1.1 * (1 - 0.05 * x * x), rel=1e-5)


def test_the_first_gradient_of_offline_ppo_is_that_of_the_weighted_log_probability() -> None:
    """At rho = 1 the policy-gradient theorem: d loss / d log p = -A."""
    ratios = torch.zeros(3, requires_grad=True)
    rewards = torch.tensor([1.0, -2.0, 0.5])
    offline_ppo_loss(ratios, rewards, 0.2, 0.1).sum().backward()
    assert ratios.grad is not None
    assert ratios.grad.tolist() == pytest.approx((-rewards).tolist())


def test_rejection_is_finetuning_on_the_first_best_answer(run: Any, write: Any, weights: Any) -> None:
    asked = [f"Add {number} and 1." for number in range(8)]
    ranked = [{"prompt": each, "responses": ["No", "Yes!", "Yes?"], "scores": [0.1, 0.9, 0.9]} for each in asked]
    chats = [
        {"messages": [{"role": "user", "content": each}, {"role": "assistant", "content": "Yes!"}]} for each in asked
    ]
    one = ("trainer.max_steps=2",)
    first = weights(run("first", "method=rejection", f"data={write('ranked.jsonl', ranked)}", *one))
    second = weights(run("second", "method=sft", f"data={write('chats.jsonl', chats)}", *one))
    assert all(value.equal(second[key]) for key, value in first.items())


def test_unscored_answers_are_learned_by_offline_ppo(run: Any, write: Any, evaluations: Any) -> None:
    rows = [{"prompt": f"Add {n} and 1.", "responses": ["Yes.", "No."], "scores": [None, None]} for n in range(8)]
    data: Path = write("unscored.jsonl", rows)
    directory = run("r", "method=offline_ppo", f"data={data}", f"data.eval={data}", "trainer.max_steps=6")
    told = evaluations(directory)
    assert told[-1]["eval_loss"] < told[0]["eval_loss"]


def test_unlearned_answers_become_less_likely(run: Any, write: Any, evaluations: Any) -> None:
    rows = [{"prompt": f"Add {n} and 1.", "completion": "No!", "label": False} for n in range(8)]
    data: Path = write("bad.jsonl", rows)
    directory = run("r", "method=weighted", f"data={data}", f"data.eval={data}", "trainer.max_steps=6")
    told = evaluations(directory)
    assert told[-1]["eval_loss"] < told[0]["eval_loss"]

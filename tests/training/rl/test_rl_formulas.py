"""PPO's and GRPO's pieces by hand, against NumPy written from the definitions, and against TRL."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from training.methods.grpo import grpo_loss
from training.methods.ppo import policy_loss, value_loss
from training.rl.advantages import (
    explained_variance,
    gae,
    group_advantages,
    next_kl_coeff,
    token_rewards,
    whitened,
)
from training.rl.policy import chosen_numbers

NUMBERS = st.floats(-5, 5, width=32)


def test_gae_by_hand() -> None:
    found = gae(np.array([0.0, 0, 1]), np.full(3, 0.5), 1.0, 0.95)
    assert found.tolist() == pytest.approx([0.45125, 0.475, 0.5])
    assert gae(np.array([2.0]), np.array([0.5]), 0.9, 0.9).tolist() == [1.5]


@given(st.integers(1, 8), st.floats(0, 1), st.floats(0, 1), st.data())
def test_gae_is_the_sum_of_its_definition(num: int, gamma: float, lam: float, data: Any) -> None:
    rewards, values = (data.draw(arrays(np.float64, num, elements=NUMBERS)) for _ in range(2))
    deltas = [rewards[t] + gamma * (values[t + 1] if t + 1 < num else 0) - values[t] for t in range(num)]
    expected = [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, num)) for t in range(num)]
    assert gae(rewards, values, gamma, lam) == pytest.approx(np.array(expected), abs=1e-9)


def test_the_penalty_is_of_each_token_and_the_score_of_the_last() -> None:
    ref = np.zeros(3)
    assert token_rewards(1.0, np.array([0.2, -0.1, 0.3]), ref, 0.1).tolist() == pytest.approx([-0.02, 0.01, 0.97])
    assert token_rewards(-3.0, np.array([0.5]), np.array([0.5]), 0.1).tolist() == [-3.0]


def test_policy_loss_by_hand() -> None:
    rho = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1])
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0, 2.0])
    losses = policy_loss(rho.log(), torch.zeros(5), advantages, 0.2)
    assert losses.tolist() == pytest.approx([-1.2, 1.5, 0.8, -0.5, -2.2])


def test_a_clipped_token_has_no_gradient_and_another_has() -> None:
    logp = torch.tensor([math.log(1.5), math.log(1.5), 0.0], requires_grad=True)
    policy_loss(logp, torch.zeros(3), torch.tensor([1.0, -1.0, 1.0]), 0.2).sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([0, 1.5, -1])


def test_value_loss_by_hand() -> None:
    one = torch.ones(1)
    assert value_loss(one, 0 * one, 0.5 * one, 0.2).item() == pytest.approx(0.125)
    assert value_loss(one, 0 * one, one, 0.2).item() == pytest.approx(0.32)  # the clipped one is worse: (0.2 - 1)^2 / 2
    assert value_loss(one, 0 * one, one, None).item() == 0


def test_log_probabilities_are_of_the_sampled_token() -> None:
    logits = torch.tensor([[0.0, math.log(3)]])
    assert chosen_numbers(logits, torch.tensor([0]), 1.0)[0].item() == pytest.approx(-1.386294)  # argmax: -0.287682
    assert chosen_numbers(logits, torch.tensor([1]), 1.0)[0].item() == pytest.approx(-0.287682)
    assert chosen_numbers(logits, torch.tensor([0]), 0.5)[0].item() == pytest.approx(-math.log(10))


def test_entropy_by_hand_also_over_the_kept_tokens_alone() -> None:
    rows, ids = torch.tensor([0, 0]), torch.tensor([0, 2])
    logits = torch.tensor([[1.0, 9.0, 1.0]], requires_grad=True)
    logp, entropy = chosen_numbers(logits, torch.tensor([2]), 1.0, rows, ids)
    assert logp.item() == pytest.approx(-math.log(2))
    assert entropy.item() == pytest.approx(0.693147)
    (logp + entropy).sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert logits.grad[0, 1] == 0


@given(arrays(np.float64, st.integers(2, 20), elements=NUMBERS))
def test_whitened_values_have_no_mean_and_unit_variance(values: Any) -> None:
    found = whitened(values)
    assert abs(found.mean()) < 1e-6
    if values.std() > 0.01:
        assert found.std() == pytest.approx(1, abs=1e-3)


def test_whitening_equal_values_gives_zeros() -> None:
    assert whitened(np.full(4, 7.0)).tolist() == [0] * 4


def test_the_coefficient_goes_towards_the_target() -> None:
    assert next_kl_coeff(0.2, 6.0, 6.0) == 0.2
    assert next_kl_coeff(0.2, 60.0, 6.0) == pytest.approx(0.2 * 1.02)
    assert next_kl_coeff(0.2, 0.0, 6.0) == pytest.approx(0.2 * 0.98)
    assert next_kl_coeff(0.2, 6.6, 6.0) == pytest.approx(0.2 * 1.01)
    assert next_kl_coeff(0.2, 60.0, None) == 0.2


def test_explained_variance_by_hand() -> None:
    returns = np.array([1.0, 2, 3])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.zeros(3), returns) == 0
    assert explained_variance(-returns, returns) == -3


def test_group_advantages_by_hand() -> None:
    scores = np.array([1.0, 2, 3])
    assert group_advantages(scores).tolist() == pytest.approx([-1 / 1.0001, 0, 1 / 1.0001])
    assert group_advantages(scores, scaled=False).tolist() == [-1, 0, 1]
    assert group_advantages(np.full(3, 5.0)).tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["tokens", "answers"])
def test_grpo_loss_and_gradients_are_those_of_trl(kind: str, tmp_path: Path, tiny_chat_model: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from training.rl.policy import token_numbers

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    args = GRPOConfig(
        str(tmp_path / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        loss_type="grpo" if kind == "answers" else "bnpo",
        beta=0.3,
        per_device_train_batch_size=2,
        num_generations=2,
        temperature=0.7,
    )
    trainer = GRPOTrainer(
        str(tiny_chat_model),
        lambda completions, **_: [0.0] * len(completions),
        args,
        train_dataset=Dataset.from_list([{"prompt": "Hi"}] * 2),
        processing_class=AutoTokenizer.from_pretrained(tiny_chat_model),
    )
    theirs = trainer.model
    prompt, first, second = [5, 9, 11], [20, 21, 22, 23], [30, 31]
    lengths = [len(first), len(second)]
    advantages = torch.tensor([0.7, -0.4])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    ids = torch.tensor([prompt + first, [*prompt, *second, 0, 0]])
    labels = torch.full_like(ids, -100)
    labels[0, 2:6], labels[1, 2:4] = torch.tensor(first), torch.tensor(second)
    logp = token_numbers(model, {"input_ids": ids, "shift_labels": labels}, 0.7).logp
    kept = mask.bool()
    old, ref = torch.zeros(2, 4), torch.zeros(2, 4)  # near the policy: some ratios are clipped, some are not
    old[kept] = logp.detach() + torch.tensor([0.3, -0.1, 0.05, -0.4, 0.1, -0.3])
    ref[kept] = logp.detach() + torch.tensor([-0.5, 0.5, 0.2, 1.0, -1.0, 0.1])
    inputs = {
        "prompt_ids": torch.tensor([prompt] * 2),
        "prompt_mask": torch.ones(2, 3, dtype=torch.long),
        "completion_ids": torch.tensor([first, [*second, 0, 0]]),
        "completion_mask": mask,
        "old_per_token_logps": old,
        "ref_per_token_logps": ref,
        "advantages": advantages,
        "num_items_in_batch": mask.sum(),
    }
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer._compute_loss(theirs, inputs)
    expected.backward()
    per_token = advantages[:, None].expand(2, 4)[kept]
    losses = grpo_loss(logp, old[kept], ref[kept], per_token, 0.2, 0.3)
    weights = 1 / torch.tensor(lengths).repeat_interleave(torch.tensor(lengths)) / 2 if kind == "answers" else 1 / 6
    loss = (losses * weights).sum()
    loss.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    for (name, mine), other in zip(model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=2e-3, atol=1e-5, msg=name)

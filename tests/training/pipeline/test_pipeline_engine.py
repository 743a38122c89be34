"""Pipelines of two processes against one process: losses, every gradient, clipping, many steps."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pipeline_cases import CASES, NORM, Case, adapted, batches, make_model, optimizer_of


@cache
def in_one_process(case: Case) -> dict[str, Any]:
    """The same with the whole model, all rows at once, and torch's own clipping."""
    import torch

    from training.objective import language_model_loss

    model = adapted(make_model(case)) if case.adapter else make_model(case)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    optimizer = optimizer_of(trained.values())
    told: dict[str, Any] = {"losses": [], "norms": [], "tokens": []}
    for step in range(case.steps):
        shares = batches(case, step)
        num_tokens = sum(int(each["shift_labels"].ne(-100).sum()) for each in shares)
        optimizer.zero_grad()
        loss = (
            sum(
                language_model_loss(model, {key: each for key, each in share.items() if key != "num_tokens"})
                for share in shares
            )
            / num_tokens
        )
        loss.backward()
        told["losses"].append(loss.item())
        told["tokens"].append(num_tokens)
        if step == 0:
            told["gradients"] = {name: each.grad.clone() for name, each in trained.items()}
        told["norms"].append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), NORM)))
        optimizer.step()
    return told


def told_by(results: Path, case: Case) -> list[dict[str, Any]]:
    return [json.loads((results / f"{case.name}-{rank}.json").read_text()) for rank in range(2)]


def tensors_of(results: Path, case: Case, kind: str) -> list[dict[str, Any]]:
    from safetensors.torch import load_file

    return [load_file(results / f"{case.name}-{kind}-{rank}.safetensors") for rank in range(2)]


def largest_difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Relative to the largest value of the tensor."""
    return max(float((found[name] - each).abs().max() / each.abs().max()) for name, each in expected.items())


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


def test_losses_are_those_of_one_process_at_every_step(results, case):
    expected = in_one_process(case)
    for told in told_by(results, case):
        assert told["tokens"] == expected["tokens"]
        assert told["losses"] == pytest.approx(expected["losses"], rel=2e-5)
        assert told["evaluated"] == pytest.approx(expected["losses"][0], rel=2e-6)


def test_every_gradient_is_that_of_one_process(results, case):
    expected = in_one_process(case)["gradients"]
    found = tensors_of(results, case, "grads")
    merged = {name: each for rank in found for name, each in rank.items()}
    copy = {name: each for name, each in merged.items() if name not in expected}  # the tied head
    assert set(expected) <= set(merged)
    assert set(copy) <= {"lm_head.weight"}
    assert largest_difference(merged, expected) < 5e-6


def test_clipping_is_over_all_stages(results, case):
    expected = in_one_process(case)["norms"]
    assert max(expected) > NORM  # it is tested only where something is clipped
    for told in told_by(results, case):
        assert told["norms"] == pytest.approx(expected, rel=1e-4)


TIED = [case for case in CASES if case.tied and case.data == 1 and not case.adapter]


@pytest.mark.parametrize("case", TIED, ids=lambda case: case.name)
def test_both_ends_of_a_tied_model_stay_the_same_to_the_bit(results, case):
    import torch

    weights = tensors_of(results, case, "weights")
    heads = [each["lm_head.weight"] for each in weights if "lm_head.weight" in each]
    assert len(heads) == (0 if case.schedule in ("zbv", "dualpipev") else 1)
    embedding = weights[0].get("model.embed_tokens.weight", weights[0].get("transformer.wte.weight"))
    assert all(torch.equal(head, embedding) for head in heads)


def test_pipelines_side_by_side_stay_the_same_to_the_bit(results):
    import torch

    case = next(each for each in CASES if each.data > 1)
    first, second = tensors_of(results, case, "weights")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_process_that_finds_an_infinity_has_all_leave_the_step_out(results):
    told = [json.loads((results / f"scaler-{rank}.json").read_text()) for rank in range(2)]
    for each in told:
        assert each["scales"] == [1024.0, 512.0]
        assert each["moved"] == [True, False]
    unscaled = in_one_process(next(case for case in CASES if case.name == "1f1b"))
    assert told[0]["loss"] == pytest.approx(unscaled["losses"][0], rel=2e-6)
    assert told[0]["norm"] == pytest.approx(unscaled["norms"][0], rel=1e-4)


def test_a_process_that_is_gone_is_told_of_and_nothing_hangs(results):
    died = json.loads((results / "died.json").read_text())
    assert died["told"].startswith("another process of this run ended")
    assert died["seconds"] < 20

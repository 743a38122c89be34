"""Every method that learns from given answers or labels: it learns, goes on exactly, and batching is no matter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

METHODS = {
    "reward": ("ranked", ()),
    "reward-lora": ("ranked", ("peft=lora", "peft.dropout=0.1")),
    "reward-scores": ("ranked", ("method.loss=scores",)),
    "reward-language": ("ranked", ("method.lm_coeff=0.2", "method.lm_threshold=0.5", "method.pooling=average")),
    "dpo": ("ranked", ()),
    "dpo-lora": ("ranked", ("peft=lora", "peft.dropout=0.1")),
    "dpo-precomputed": ("ranked", ("method.precompute_reference=true", "method.loss=ipo", "method.beta=1")),
    "kto": ("rated", ()),
    "rrhf": ("ranked", ()),
    "rejection": ("ranked", ()),
    "weighted": ("ranked", ()),
    "offline_ppo": ("ranked", ()),
    "offline_ppo-tokens": ("ranked", ("method.token_level=true", "method.kl_penalty=mse")),
    "classification": ("labelled", ()),
}


@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_a_run_that_goes_on_ends_where_an_undisturbed_one_does(
    name: str, run: Any, weights: Any, evaluations: Any, request: pytest.FixtureRequest
) -> None:
    kind, more = METHODS[name]
    data = request.getfixturevalue(kind)
    overrides = (
        f"method={name.partition('-')[0]}",
        f"data={data}",
        "data.eval_fraction=0.25",
        "trainer.save_every=1",
        "trainer.keep_checkpoints=99",
        "trainer.max_steps=10",
        "trainer.samples=1",
        "trainer.sample_tokens=4",
        *more,
    )
    whole = run("whole", *overrides)
    told = evaluations(whole)
    assert told[-1]["eval_loss"] < told[0]["eval_loss"]
    halved = whole.parent / "halved"
    (halved / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / "step-000003", halved / "checkpoints" / "step-000003")
    shutil.copy(whole / "run.json", halved)
    run("halved", *overrides)
    first, second = weights(whole), weights(halved)
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "kto" and "lora" not in name])
def test_accumulated_batches_are_one_large_batch(
    name: str, run: Any, weights: Any, request: pytest.FixtureRequest
) -> None:
    kind, more = METHODS[name]
    data = request.getfixturevalue(kind)
    overrides = (f"method={name.partition('-')[0]}", f"data={data}", "trainer.max_steps=2", *more)
    plain = ("trainer.optimizer=sgd", "trainer.lr=0.01", "trainer.max_grad_norm=0")
    large = weights(run("large", *overrides, *plain, "trainer.batch_size=8"))
    small = weights(run("small", *overrides, *plain, "trainer.batch_size=2", "trainer.accumulate=4"))
    for key, value in large.items():
        assert float((value - small[key]).abs().max()) < 5e-6, key


@pytest.mark.parametrize("name", ["reward", "dpo"])
def test_packing_is_refused(name: str, run: Any, ranked: Path) -> None:
    with pytest.raises(ValueError, match=r"set data\.packing=false"):
        run("r", f"method={name}", f"data={ranked}", "data.packing=true")

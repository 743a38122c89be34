"""Models through stages and back, and checkpoints that other numbers of stages go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pipeline_cases import batches, make_model
from saving_cases import SAVED

from training.adapters import open_adapter
from training.objective import language_model_loss


def weights_in(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: each for file in folder.glob("*.safetensors") for name, each in load_file(file).items()}


def whole(folder: Path) -> dict[str, Any]:
    """What transformers makes of a directory."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_model_through_stages_and_back_is_the_same_to_the_bit(results):
    assert len(list((results / "source").glob("*.safetensors"))) > 2
    assert len(list((results / "copy").glob("*.safetensors"))) == 2
    assert same(weights_in(results / "copy"), weights_in(results / "source"))
    assert same(whole(results / "copy"), make_model(SAVED).state_dict())


def test_files_call_tensors_as_those_of_transformers_do(results):
    assert "embed_out.weight" in weights_in(results / "neox")
    assert same(weights_in(results / "neox-copy"), weights_in(results / "neox"))


def test_going_on_from_a_checkpoint_is_the_same_to_the_bit(results):
    from safetensors.torch import load_file

    parts = [load_file(results / f"saved-whole-{rank}.safetensors") for rank in range(2)]
    uninterrupted = {name: each for part in parts for name, each in part.items()}
    resumed = whole(results / "same")
    assert set(uninterrupted) == set(resumed)
    assert all(torch.equal(resumed[name], each) for name, each in uninterrupted.items())
    trained_since = whole(results / "step-2")
    assert not same(resumed, trained_since)


@pytest.mark.parametrize("name", ["zbv", "one"])
def test_other_numbers_of_stages_go_on_alike(results, name):
    expected, found = whole(results / "same"), whole(results / name)
    assert found.keys() == expected.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 2e-5


def test_each_process_writes_its_own_part(results):
    assert sorted(path.name for path in (results / "step-2").rglob("*.safetensors")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "optimizer-0-of-2.safetensors",
        "optimizer-1-of-2.safetensors",
    ]


def test_an_adapter_over_stages_is_one_for_the_whole_model(results):
    from transformers import AutoModelForCausalLM

    told = [json.loads((results / f"adapter-saved-{rank}.json").read_text()) for rank in range(2)]
    base = AutoModelForCausalLM.from_pretrained(results / "source", dtype=torch.float32)
    model = open_adapter(base, results / "adapter")
    (batch,) = batches(SAVED, 2)
    num_tokens = int(batch["shift_labels"].ne(-100).sum())
    with torch.no_grad():
        loss = language_model_loss(model, {key: each for key, each in batch.items() if key != "num_tokens"})
    for each in told:
        assert each["loss"] == pytest.approx(loss.item() / num_tokens, rel=2e-6)
        assert each["again"] == pytest.approx(each["loss"], rel=2e-6)
        assert abs(each["before"] - each["loss"]) > 1e-3

"""Checkpoints on disk: whole or not there, and the states in them exact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.checkpoints import STATE, Checkpoints, export_model, name_of
from training.state_files import load_tree, random_state, save_tree, set_random_state


def write(checkpoints: Checkpoints, name: str, step: int) -> Path:
    made = checkpoints.begin(name)
    (made / STATE).write_text(json.dumps({"global_step": step}))
    (made / "model.safetensors").write_text(f"weights of {step}")
    (made / "config.json").write_text(f"config of {step}")
    return checkpoints.finish(name)


def names(checkpoints: Checkpoints) -> list[str]:
    return [each.path.name for each in checkpoints.all()]


def test_names() -> None:
    assert name_of(100, 2, False, speaker=False) == "step-000100"
    assert [name_of(7, 1, end, speaker=True) for end in (False, True)] == ["1_7", "1"]


def test_the_newest_the_best_and_the_held_stay(tmp_path: Path) -> None:
    held: set[str] = {"b"}
    checkpoints = Checkpoints(tmp_path, 2, lambda path: path.name in held)
    for step, name in enumerate("abcdef", 1):
        write(checkpoints, name, step)
    checkpoints.prune(best_step=3)
    assert names(checkpoints) == ["b", "c", "e", "f"]
    held.clear()
    checkpoints.prune(best_step=3)
    assert names(checkpoints) == ["c", "e", "f"]
    newest = checkpoints.newest()
    assert newest is not None
    assert newest.step == 6


def test_an_unfinished_one_does_not_count_and_is_cleaned_up(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    write(checkpoints, "a", 1)
    half = checkpoints.begin("b")
    (half / STATE).write_text('{"global_step": 2}')
    assert names(checkpoints) == ["a"]
    checkpoints.recover()
    assert names(checkpoints) == ["a"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_one_that_was_being_replaced_is_not_lost(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    write(checkpoints, "a", 1)
    checkpoints.begin("a")
    (tmp_path / "a").rename(tmp_path / ".a.old")  # killed here
    checkpoints.recover()
    assert names(checkpoints) == ["a"]
    write(checkpoints, "a", 5)
    assert [each.step for each in checkpoints.all()] == [5]


def test_a_damaged_one_is_named(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 2)
    (write(checkpoints, "a", 1) / STATE).write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .* delete that checkpoint"):
        checkpoints.all()


def test_the_run_becomes_the_model_and_keeps_it_when_the_checkpoint_goes(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    first, second = write(checkpoints, "a", 1), write(checkpoints, "b", 2)
    export_model(first, tmp_path)
    export_model(second, tmp_path)
    checkpoints.prune(None)
    assert names(checkpoints) == ["b"]
    assert (tmp_path / "model.safetensors").read_text() == "weights of 2"
    assert (tmp_path / "config.json").read_text() == "config of 2"
    assert not (tmp_path / STATE).exists()


def test_states_come_back_as_they_were(tmp_path: Path) -> None:
    tree: dict[str, Any] = {
        "state": {0: {"step": torch.tensor(3.0), "avg": torch.randn(3, 2).T}, 7: {}},
        "groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "names": ["a"], "flag": True, "none": None}],
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    save_tree(tmp_path, "s", tree)
    back = load_tree(tmp_path, "s")
    assert list(back["state"]) == [0, 7]
    assert back["groups"] == tree["groups"]
    assert isinstance(back["groups"][0]["betas"], tuple)
    for path in (("state", 0, "step"), ("state", 0, "avg"), ("bytes",), ("half",)):
        mine, theirs = tree, back
        for key in path:
            mine, theirs = mine[key], theirs[key]
        assert mine.dtype == theirs.dtype  # type: ignore[attr-defined]
        assert torch.equal(mine, theirs)  # type: ignore[arg-type]


def test_what_cannot_be_kept_exactly_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="holds a set"):
        save_tree(tmp_path, "s", {"a": {1, 2}})


@pytest.mark.parametrize("damage", ["s.json", "s.safetensors"])
def test_damage_is_told(tmp_path: Path, damage: str) -> None:
    save_tree(tmp_path, "s", {"a": torch.zeros(3)})
    content = (tmp_path / damage).read_bytes()
    (tmp_path / damage).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=damage.replace(".", r"\.")):
        load_tree(tmp_path, "s")


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    import random

    def draw() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    draw()
    save_tree(tmp_path, "r", random_state())
    expected = [draw() for _ in range(3)]
    set_random_state(load_tree(tmp_path, "r"))
    assert [draw() for _ in range(3)] == expected

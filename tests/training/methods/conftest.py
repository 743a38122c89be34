"""Data of each kind, and runs over it on tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from training.config.door import compose
from training.config.schema import Config
from training.methods import method_run


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Sequence[Any]], Path]:
    """(name, rows) -> a file of JSON Lines."""

    def to_file(name: str, rows: Sequence[Any]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


@pytest.fixture
def ranked(write: Any) -> Path:
    """24 prompts with two to four answers; scores below zero too, and one of null."""
    rows = []
    for number in range(24):
        answers = [f"{number + 1}.", f"{number}, no", "What?", "I do not know."][: 2 + number % 3]
        scores = [1.5, -0.5, -2.0, None][: len(answers)]
        rows.append({"prompt": f"Add {number} and 1.", "responses": answers, "scores": scores})
    return write("ranked.jsonl", rows)


@pytest.fixture
def rated(write: Any) -> Path:
    """24 answers, half of them bad."""
    return write(
        "rated.jsonl",
        [
            {"prompt": f"Add {n} and 1.", "completion": "No!" if n % 2 else f"{n + 1}.", "label": n % 2 == 0}
            for n in range(24)
        ],
    )


@pytest.fixture
def labelled(write: Any) -> Path:
    """24 texts of two kinds."""
    texts = [f"Buy {n} now, cheap!" if n % 2 else f"The bridge has {n} lanes." for n in range(24)]
    return write("labelled.jsonl", [{"text": text, "label": ("ham", "spam")[n % 2]} for n, text in enumerate(texts)])


@pytest.fixture
def configured(tmp_path: Path, tiny_chat_model: Path) -> Callable[..., Config]:
    """(name of the run, overrides) -> its configuration."""

    def make(name: str, *overrides: str) -> Config:
        common = [
            f"model={tiny_chat_model}",
            f"data.cache={tmp_path / 'cache'}",
            "data.max_length=64",
            "model.device=cpu",
            "trainer.lr=1e-3",
            "trainer.batch_size=4",
            "trainer.epochs=2",
            f"trainer.output={tmp_path / name}",
        ]
        given = {each.partition("=")[0] for each in overrides}
        return compose([each for each in common if each.partition("=")[0] not in given] + list(overrides))

    return make


@pytest.fixture
def run(configured: Any) -> Callable[..., Path]:
    """(name of the run, overrides) -> its directory."""

    def start(name: str, *overrides: str) -> Path:
        config = configured(name, *overrides)
        directory: Path = method_run(config.method.name)(config)
        return directory

    return start


@pytest.fixture
def evaluations() -> Callable[[Path], list[dict[str, float]]]:
    """Directory of a run -> what each evaluation told."""

    def read(directory: Path) -> list[dict[str, float]]:
        lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if "eval_loss" in line]

    return read


@pytest.fixture
def weights() -> Callable[[Path], dict[str, Any]]:
    """Directory -> its tensors by name."""

    def read(directory: Path) -> dict[str, Any]:
        from safetensors.torch import load_file

        return {
            key: value for file in sorted(directory.glob("*.safetensors")) for key, value in load_file(file).items()
        }

    return read


@pytest.fixture
def prompts(write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve prompts, and rules to reward answers by."""
    (tmp_path / "rules_of_rounds.py").write_text(
        "def vowels(messages, answers):\n    return [sum(answer.count(v) for v in 'aeiou') / 5 for answer in answers]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return write("prompts.jsonl", [{"prompt": f"Add {n} and 1."} for n in range(12)])


@pytest.fixture
def rounds(run: Any, prompts: Path) -> Any:
    """(name of the run, method, overrides) -> its directory: four steps of four answers, two rounds of eight."""

    def start(name: str, method: str, *overrides: str) -> Path:
        common = (
            f"method={method}",
            f"data={prompts}",
            "method.reward=rules_of_rounds:vowels",
            "method.prompts=8",
            "method.new_tokens=8",
            "method.rollout_batch=3",
            "trainer.log_every=1",
            "trainer.save_every=1",
            "trainer.keep_checkpoints=99",
        )
        given = {each.partition("=")[0] for each in overrides}
        return run(name, *[each for each in common if each.partition("=")[0] not in given], *overrides)

    return start

"""The reference of training: as it is in docs/, and all keys are in it."""

from __future__ import annotations

from pathlib import Path

from tools.write_reference import training_reference
from training.config.door import keys
from training.methods import METHODS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "training-reference.md"


def test_the_training_reference_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == training_reference(), "run: python tools/write_reference.py"


def test_every_key_has_its_line() -> None:
    lines = training_reference().splitlines()
    for method in METHODS:
        for key in keys(method):
            if "." in key and key != "method.name":
                assert any(line.startswith(f"| `{key}` |") for line in lines), key


def test_types_defaults_and_comments_are_the_codes() -> None:
    page = training_reference()
    assert "| `model.quantize` | `none`, `int8`, `int4` | `none` | load frozen weights in 8 or 4 bits" in page
    assert "| `trainer.betas` | list of numbers | `[0.9, 0.999]` |" in page
    assert "| `method.length` | whole number, or null | `null` | windows an epoch;" in page
    assert "noqa" not in page

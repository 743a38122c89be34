"""The page of hardware is what the estimator says: its text, and the lines of a model that is quick to ask about."""

from __future__ import annotations

from pathlib import Path

from tools.write_hardware import MODELS, hardware
from training.estimate.known import known_config

PAGE = Path(__file__).resolve().parents[2] / "docs" / "hardware.md"


def test_the_page_is_current():
    page = PAGE.read_text(encoding="utf-8").splitlines()
    lines = hardware(("smollm2-135m",), plans=False).splitlines()
    rows = [line for line in lines if line.startswith("| smollm2-135m")]
    assert len(rows) == 3
    for line in lines:
        assert line in page, f"{line}\nrun: python tools/write_hardware.py"


def test_every_model_is_in_every_table():
    page = PAGE.read_text(encoding="utf-8")
    for model in MODELS:
        assert known_config(model) is not None
        assert page.count(f"\n| {model} (") == 3, f"{model}: run: python tools/write_hardware.py"

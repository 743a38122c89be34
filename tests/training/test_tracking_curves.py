"""The picture: that it is one, of the right lines, whole at any moment."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from training.tracking.curves import CURVES, _smoothed, draw_curves
from training.tracking.metrics import METRICS, MetricsFile

ROOT = Path(__file__).resolve().parents[2]
TRAIN, EVAL = (0x3B, 0x6F, 0xB6), (0xD1, 0x49, 0x5B)


def run_lines(steps: int, evals: int) -> list[dict]:
    noise = random.Random(1)
    lines = [{"step": s, "loss": 2 + 2 * math.exp(-s / 200) + noise.gauss(0, 0.1)} for s in range(10, steps, 10)]
    return lines + [{"step": s, "eval_loss": 2.1 + 2 * math.exp(-s / 200)} for s in range(0, steps, steps // evals)]


def rows_with(colour: tuple[int, int, int], path: Path, columns: slice) -> np.ndarray:
    """The rows of the picture, counted from the top, that have this colour in these columns."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))[100:, columns]
    return np.nonzero((pixels == colour).all(axis=2).any(axis=1))[0]


def test_both_curves_are_there_and_fall(tmp_path):
    path = tmp_path / CURVES
    assert draw_curves(run_lines(1000, 8), path, "a run")
    width = 960
    for colour in (TRAIN, EVAL):
        begins, ends = rows_with(colour, path, slice(90, width // 4)), rows_with(colour, path, slice(width // 2, width))
        assert begins.min() < ends.max()


def test_nothing_to_draw(tmp_path):
    assert not draw_curves([{"step": 1, "note": "x"}, {"step": 2, "loss": None}], tmp_path / CURVES)
    assert list(tmp_path.iterdir()) == []


def test_one_point_and_a_title_that_looks_like_a_formula(tmp_path):
    assert draw_curves([{"step": 1, "loss": 2.0}], tmp_path / CURVES, "a_$x")
    assert [path.name for path in tmp_path.iterdir()] == [CURVES]


def test_smoothing_is_the_mean_of_neighbours():
    assert np.allclose(_smoothed([3.0] * 100), 3.0)
    losses = [random.Random(2).uniform(1, 3) for _ in range(200)]
    by_hand = [np.mean(losses[max(0, at - 5) : at + 6]) for at in range(200)]
    assert np.allclose(_smoothed(losses), by_hand)


def test_the_command_draws_a_run_and_refuses_an_empty_one(tmp_path):
    command = [sys.executable, "-m", "training.tracking.curves", str(tmp_path)]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    MetricsFile(tmp_path / METRICS).append(1, {"loss": 1.0})
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, str(tmp_path / CURVES), "")
    with Image.open(tmp_path / CURVES) as image:
        assert (image.format, image.size) == ("PNG", (960, 540))


def test_importing_loads_neither_torch_nor_matplotlib():
    names = "console, curves, logfile, metrics, redaction, throughput"
    code = f"from training.tracking import {names}; import training.upload, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "transformers", "matplotlib", "fsspec", "loguru"} & set(done.stdout.split()) == set()

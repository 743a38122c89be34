"""Lines as a person reads them: in a pipe, and in a real terminal."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pexpect
from hypothesis import given
from hypothesis import strategies as st

from training.tracking.console import PIPED_EVERY_S, Console, duration, line_of

ROOT = Path(__file__).resolve().parents[2]


def test_a_line_of_training():
    values = {
        "learning_rate": 2e-5,
        "loss": 1.23456,
        "grad_norm": 0.5,
        "epoch": 0.4,
        "tokens_per_second": 1234.5,
        "loss_tokens_per_second": 200.2,
        "mfu": 0.4123,
        "memory_gib": 2.04,
    }
    assert line_of(20, 200, values, seconds_left=3723) == (
        "step 20/200  epoch 0.40  loss 1.2346  lr 2.00e-05  grad 0.5  tokens/s 1,234  with loss 200  MFU 41.2%"
        "  memory 2.0 GiB  ETA 1:02:03"
    )


def test_a_line_of_evaluation_and_of_another_method():
    assert (
        line_of(5, 10, {"eval_loss": 2.0, "eval_perplexity": 7.389}) == "step 5/10  eval loss 2.0000  perplexity 7.389"
    )
    assert (
        line_of(5, 0, {"rewards/margin": 0.123456789, "note": "a\nb\x1b[2J"})
        == "step 5  rewards/margin 0.123457  note a b[2J"
    )


def test_durations():
    assert [duration(seconds) for seconds in (0, 59.6, 61, 3600, 360000)] == [
        "0:00",
        "1:00",
        "1:01",
        "1:00:00",
        "100:00:00",
    ]


@given(st.dictionaries(st.text(), st.none() | st.floats() | st.integers() | st.text() | st.lists(st.integers())))
def test_any_values_make_one_line(values):
    assert "\n" not in line_of(1, 2, values)


def test_in_a_pipe_lines_are_rare_but_evaluations_are_all_there():
    now = 0.0
    out = io.StringIO()
    console = Console(out, clock=lambda: now)
    console.start(0, 100)
    for step in range(100):
        now = step * 1.0
        console.step(step, None)
        console.show(f"step {step}")
        if step % 40 == 1:
            console.show(f"eval {step}", important=True)
    console.stop()
    lines = out.getvalue().splitlines()
    assert [line for line in lines if line.startswith("eval")] == ["eval 1", "eval 41", "eval 81"]
    assert [line for line in lines if line.startswith("step")] == [f"step {int(PIPED_EVERY_S) * n}" for n in range(4)]


def test_in_a_terminal_there_is_a_live_line_below_the_others():
    code = (
        "import time; from training.tracking.console import Console; console = Console(); console.start(0, 10)\n"
        "for step in range(1, 11): console.step(step, 75.0); console.show(f'line [b]{step}[/b]'); time.sleep(0.03)\n"
        "console.stop()"
    )
    child = pexpect.spawn(
        sys.executable, ["-c", code], cwd=str(ROOT), encoding="utf-8", dimensions=(24, 100), timeout=30
    )
    child.expect(pexpect.EOF)
    assert [f"line [b]{step}[/b]" in child.before for step in range(1, 11)] == [True] * 10
    assert "10/10" in child.before
    assert "ETA 1:15" in child.before

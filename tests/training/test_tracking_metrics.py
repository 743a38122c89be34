"""The metrics file: always JSON, one line a log, one curve after a kill."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.tracking.metrics import MetricsFile

NUMBERS = st.floats() | st.integers(-(2**60), 2**60)


def strict(text: str | bytes):
    """Parse JSON as the standard has it: no NaN, no Infinity."""

    def refuse(name):
        raise AssertionError(name)

    return json.loads(text, parse_constant=refuse)


@given(
    values=st.dictionaries(
        st.text(min_size=1, max_size=8).filter(lambda name: name not in {"step", "time", "non_finite"}),
        NUMBERS,
        max_size=5,
    )
)
def test_what_is_read_is_what_was_logged(values, tmp_path_factory):
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    file = MetricsFile(path)
    file.append(3, values)
    (text,) = path.read_bytes().splitlines()
    line = strict(text)
    odd = line.pop("non_finite", {})
    for name, value in values.items():
        if line[name] is None:
            assert str(float(odd[name])) == str(float(value))
            assert not math.isfinite(value)
        else:
            assert line[name] == value or line[name] == "<hidden>"
    assert file.read()[0]["step"] == 3


def test_numpy_and_torch_numbers(tmp_path):
    file = MetricsFile(tmp_path / "m.jsonl")
    file.append(1, {"a": np.float32(0.5), "b": torch.tensor(2.0), "c": np.float64("nan"), "d": "text"})
    line = strict((tmp_path / "m.jsonl").read_text())
    assert (line["a"], line["b"], line["c"], line["d"]) == (0.5, 2.0, None, "text")
    assert line["non_finite"] == {"c": "nan"}


def test_a_resumed_run_leaves_one_curve(tmp_path):
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    for step in (1, 2, 3, 4):
        file.append(step, {"loss": step / 10})
    with open(path, "a") as half:
        half.write('{"step": 5, "lo')  # the writer was killed here
    assert MetricsFile(path).cut_after(2) == 3
    file.append(3, {"loss": 0.33})
    assert [(line["step"], line["loss"]) for line in file.read()] == [(1, 0.1), (2, 0.2), (3, 0.33)]
    assert len(path.read_text().splitlines()) == 3


def test_nothing_to_cut_leaves_the_file_untouched(tmp_path):
    path = tmp_path / "m.jsonl"
    file = MetricsFile(path)
    assert file.cut_after(0) == 0
    assert not path.exists()
    file.append(1, {"loss": 1.0})
    before = path.stat()
    assert file.cut_after(1) == 0
    assert path.stat().st_ino == before.st_ino


def test_secrets_do_not_reach_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_verysecretvalue")
    file = MetricsFile(tmp_path / "m.jsonl")
    file.append(1, {"sample": "it said hf_verysecretvalue", "api_key": "abc"})
    assert "verysecret" not in file.path.read_text()
    assert "abc" not in file.path.read_text()


@given(rubbish=st.lists(st.binary(max_size=30) | st.just(b"[" * 100_000) | st.just(b'{"step": "x"}')))
def test_damaged_lines_are_passed_over(rubbish, tmp_path_factory):
    path = tmp_path_factory.mktemp("metrics") / "m.jsonl"
    path.write_bytes(b"\n".join(rubbish) + b"\n")
    file = MetricsFile(path)
    file.append(7, {"loss": 1.0})
    assert file.read()[-1]["loss"] == 1.0
    file.cut_after(7)
    assert [line["step"] for line in file.read()] == [7]

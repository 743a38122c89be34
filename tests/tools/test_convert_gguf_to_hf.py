"""GGUF -> model directory, the command; tests/tools/test_prepare_model.py and test_convert_hf_to_gguf.py have more."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.convert_gguf_to_hf import cli
from tools.convert_hf_to_gguf import write_gguf


@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_the_command(kind: str, tiny_chat_model: Path, tmp_path: Path) -> None:
    write_gguf(tiny_chat_model, tmp_path / "model.gguf", kind)
    target = tmp_path / "out" / "model"
    result = CliRunner().invoke(cli, [str(tmp_path / "model.gguf"), "--out", str(target)])
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "128 of 128 greedy tokens are the same; log-probabilities differ by 0 " in result.stderr
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {each.name for each in target.iterdir()}
    again = CliRunner().invoke(cli, [str(tmp_path / "model.gguf"), "--out", str(target)])
    assert (again.exit_code, "exists; remove it first" in again.stderr) == (2, True)


def test_what_is_no_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"PK")
    for name, message in (("model.gguf", "is no GGUF file"), ("none.gguf", "does not exist")):
        result = CliRunner().invoke(cli, [str(tmp_path / name), "--out", str(tmp_path / "out")])
        assert (result.exit_code, message in result.stderr) == (2, True), result.stderr
    assert not (tmp_path / "out").exists()

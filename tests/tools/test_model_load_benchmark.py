"""The load benchmark: all figures of a model that works, the error of one that does not, and both in one report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from tools.model_load_benchmark import cli

SECONDS = ("tokenizer_load", "load_to_ram", "transfer_to_device", "inference", "inference_warm")


def test_the_report(tiny_chat_model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    models = {"gone": "/nowhere/at all", "broken": str(broken), "tiny": str(tiny_chat_model)}
    (tmp_path / "models.json").write_text(json.dumps(models))
    arguments = ["-i", str(tmp_path / "models.json"), "-o", str(tmp_path / "times.json"), "-d", "cpu", "-r", "2"]
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, done.stdout) == (0, ""), done.stderr
    report = json.loads((tmp_path / "times.json").read_text())
    assert list(report) == list(models)
    assert report["gone"] == {"model": models["gone"], "error": "model directory '/nowhere/at all' does not exist"}
    assert f"cannot load model '{broken}'" in report["broken"]["error"]
    found = report["tiny"]
    assert len(found["repeats"]) == 2
    for key in SECONDS:
        assert found[f"{key}_sec"] == pytest.approx(sum(each[f"{key}_sec"] for each in found["repeats"]) / 2)
        assert found[f"{key}_sec"] >= 0
    assert found["total_sec"] == pytest.approx(sum(found[f"{key}_sec"] for key in SECONDS))
    assert 1 < found["main_memory_MB"] < 1000
    assert (found["gpu_memory_MB"], found["model_download_sec"], found["tokenizer_download_sec"]) == (None,) * 3


@pytest.mark.parametrize("content", ["[]", "{}", '{"a": 1}', '{"a": ""}', "{"])
def test_what_is_no_list_of_models_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text(content)
    done = CliRunner().invoke(cli, ["-i", str(tmp_path / "models.json"), "-o", str(tmp_path / "o.json"), "-d", "cpu"])
    assert (done.exit_code, "models.json" in done.stderr) == (2, True), done.stderr
    assert not (tmp_path / "o.json").exists()


def test_a_device_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "models.json").write_text('{"a": "b"}')
    arguments = ["-i", str(tmp_path / "models.json"), "-o", str(tmp_path / "o.json"), "-d", "nonsense"]
    done = CliRunner().invoke(cli, arguments)
    assert (done.exit_code, "device 'nonsense' cannot be used" in done.stderr) == (2, True), done.stderr

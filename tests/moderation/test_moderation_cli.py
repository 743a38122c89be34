"""The commands, run in process, and once as `python -m moderation`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from moderation.cli import cli
from moderation.policy import DEFAULT_POLICY, load_policy


def run(*arguments: object, stdin: str = ""):
    return CliRunner().invoke(cli, [str(argument) for argument in arguments], input=stdin)


def failed(*arguments: object) -> str:
    """The one line that the command must fail with."""
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    line, empty = result.stderr.split("\n")
    assert line.startswith("error: ")
    assert empty == ""
    return line


@pytest.fixture
def policy_file(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("labels: {insult: {output: {action: block, threshold: 0.9}}}\n")
    return path


def test_check_prints_a_line_for_each_text(classifiers):
    result = run("check", "good day", "bad", "", "--model", classifiers["multi"])
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        "allow\t-\tinsult 0.047, threat 0.047",
        "warn\tinsult\tinsult 1.000, threat 0.047",
        "allow\t-\t",
    ]


def test_check_reads_standard_input_and_follows_policy_and_direction(classifiers, policy_file):
    texts = ["bad", "", "good"] * 30
    arguments = ("check", "--model", classifiers["multi"], "--policy", policy_file, "--json", "--direction")
    for direction, action in (("input", "warn"), ("output", "block")):
        result = run(*arguments, direction, stdin="\n".join(texts) + "\n")
        verdicts = [json.loads(line) for line in result.stdout.splitlines()]
        assert [verdict["action"] for verdict in verdicts] == [action, "allow", "allow"] * 30
        assert set(verdicts[0]) == {"flagged", "action", "scores", "labels", "error"}
        assert verdicts[0]["labels"] == ["insult"]


def test_check_shows_what_failed(classifiers):
    result = run("check", "nan", "--model", classifiers["single"])
    assert result.exit_code == 0
    assert result.stdout == "block\t-\tthe score of label 'safe' is nan, not a probability from 0 to 1\n"


def test_check_with_bad_input_is_one_line(classifiers, policy_file, tmp_path):
    model = classifiers["single"]
    assert "Missing option '--model'" in failed("check", "text")
    assert f"'{tmp_path}/none' does not exist" in failed("check", "text", "--model", tmp_path / "none")
    assert "none.yaml: No such file" in failed("check", "x", "--model", model, "--policy", tmp_path / "none.yaml")
    assert "label 'insult'" in failed("check", "x", "--model", model, "--policy", policy_file)
    assert "'inptu' is not one of" in failed("check", "x", "--model", model, "--direction", "inptu")
    policy_file.write_text("default: {action: blok}")
    assert f"{policy_file}:1: action 'blok'" in failed("check", "x", "--model", model, "--policy", policy_file)


def test_check_with_a_model_that_is_no_classifier_is_one_line(random_model, tmp_path):
    path = random_model(tmp_path, "LlamaForCausalLM", "LlamaConfig")
    assert "is not a classifier" in failed("check", "text", "--model", path)


def test_policy_prints_the_default_with_its_comments(tmp_path):
    result = run("policy")
    path = tmp_path / "copy.yaml"
    path.write_text(result.stdout)
    assert result.stdout.startswith("# The default moderation policy")
    assert load_policy(path) == DEFAULT_POLICY


def test_policy_prints_a_file_resolved(policy_file):
    result = run("policy", policy_file)
    assert result.exit_code == 0
    assert "threshold: 0.9" in result.stdout
    before = load_policy(policy_file)
    policy_file.write_text(result.stdout)
    assert load_policy(policy_file).rule("insult", "output") == before.rule("insult", "output")


def test_policy_with_a_bad_file_is_one_line(policy_file):
    policy_file.write_text("fail: opne\n")
    assert f"{policy_file}:1: fail 'opne' is not one of open, closed; did you mean 'open'?" in failed(
        "policy", policy_file
    )


def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "moderation", "policy"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fail: closed" in done.stdout

"""The commands, run in process, and once as `python -m moderation`."""

from __future__ import annotations

import json
import re
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


def columns(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def test_check_prints_a_table(classifiers):
    result = run("check", "good day", "bad", "", "--model", classifiers["multi"])
    assert (result.exit_code, result.stderr) == (0, "")
    title, *lines = result.stdout.splitlines()
    assert columns(title) == ["action", "flagged", "highest scores", "text"]
    assert [columns(line) for line in lines] == [
        ["allow", "-", "insult 0.05, threat 0.05", "good day"],
        ["warn", "insult", "insult 1.00, threat 0.05", "bad"],
        ["allow", "-", "none known"],
    ]
    assert title.index("highest") == lines[0].index("insult 0.05") == lines[1].index("insult 1.00")


def test_the_table_is_harmless_to_a_terminal_and_cut_with_dots(classifiers):
    text = "bad\x1b]0;title\x07\u202e\nsecond line " + "word " * 50
    line = run("check", text, "--model", classifiers["one"]).stdout.splitlines()[1]
    assert columns(line)[3].startswith("bad]0;title second line word")
    assert line.endswith("...")
    assert run("check", "bad \udcff", "--model", classifiers["one"]).stdout.splitlines()[1].endswith("bad ?")
    assert len(line) < 180


def test_check_shows_levels_of_caution(classifiers):
    arguments = ("check", "good day", "bad", "", "--model", classifiers["multi"], "--view", "levels")
    title, *lines = run(*arguments).stdout.splitlines()
    assert columns(title)[1] == "level"
    assert [columns(line)[1] for line in lines] == ["casual", "needs intervention", "unknown"]
    verdicts = [json.loads(line) for line in run(*arguments, "--json").stdout.splitlines()]
    assert [verdict["level"] for verdict in verdicts] == ["casual", "needs intervention", None]
    assert verdicts[1]["labels"] == ["insult"]


def test_check_shows_hazards_of_a_model_with_a_label_map(classifiers, tmp_path):
    labels = tmp_path / "map.yaml"
    labels.write_text("insult: hate\nthreat: illicit/violent\n")
    arguments = ("check", "bad", "--model", classifiers["multi"], "--label-map", labels, "--view", "hazards")
    title, line = run(*arguments).stdout.splitlines()
    assert columns(title)[2] == "highest hazards"
    assert columns(line)[1:3] == ["hate", "S10 hate 1.00, S1 violent crimes 0.05"]
    (verdict,) = map(json.loads, run(*arguments, "--json").stdout.splitlines())
    assert list(verdict["hazards"]) == [f"S{number}" for number in range(1, 15)]
    assert verdict["hazards"]["S10"] == verdict["scores"]["hate"] > 0.99
    assert verdict["hazards"]["S2"] is None


def test_check_reads_a_file_line_by_line(classifiers, tmp_path):
    texts = tmp_path / "texts.txt"
    texts.write_bytes("\ufeffgood\r\nbad\nüble Nachrede\n".encode())
    result = run("check", "--file", texts, "--model", classifiers["one"], "--json")
    assert [json.loads(line)["action"] for line in result.stdout.splitlines()] == ["allow", "warn", "allow"]
    assert "give texts or --file, not both" in failed("check", "x", "--file", texts, "--model", classifiers["one"])
    assert "does not exist" in failed("check", "--file", tmp_path / "none", "--model", classifiers["one"])
    texts.write_bytes(b"good\n\xff\n")
    result = run("check", "--file", texts, "--model", classifiers["one"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "line 2 of the input is not UTF-8 text" in result.stderr


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
    (line,) = result.stdout.splitlines()[1:]
    assert line == "allow   failed: the score of label 'safe' is nan, not a probability from 0 to 1"


def test_check_with_bad_input_is_one_line(classifiers, policy_file, tmp_path):
    model = classifiers["single"]
    assert "a label map is for" in failed("check", "x", "--model", "openai", "--label-map", policy_file)
    assert "needs a FILE" in failed("policy", "--check")
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
    assert f"{policy_file}:1: fail 'opne' is not one of auto, open, closed; did you mean 'open'?" in failed(
        "policy", policy_file
    )


def test_policy_can_only_check(policy_file):
    result = run("policy", "--check", policy_file)
    assert (result.exit_code, result.stdout) == (0, f"{policy_file}: no mistakes\n")
    policy_file.write_text("labels:\n  hate: {treshold: 1}\n")
    assert f"{policy_file}:2: unknown key 'treshold'" in failed("policy", "--check", policy_file)


def test_the_commands_of_the_head_are_there_when_asked_for():
    help_ = run("--help").stdout
    assert re.findall(r"^  (\w+)  ", help_, re.MULTILINE) == ["check", "evaluate", "policy", "train"]
    assert set(cli.commands) == {"check", "evaluate", "policy", "train"}
    for name in ("evaluate", "train"):
        assert "--device" in run(name, "--help").stdout
    code = "import sys; from moderation.cli import cli\ntry: cli(['check', '--help'])\nfinally: print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "--label-map" in done.stdout
    assert not {"moderation.head.commands", "numpy", "torch"} & set(done.stdout.split())


def test_the_module_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "moderation", "policy"], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fail: auto" in done.stdout

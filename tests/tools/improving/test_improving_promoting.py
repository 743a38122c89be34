"""The switch: the bot runs what was promoted, rollback goes back one by one, what is missing or damaged is said with
the remedy, and a kill at any moment leaves the old default or the new one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from chatbot.bot import cli as chat
from chatbot.options import DEFAULT_MODEL, bot_options, check_options
from common.default_model import RECORD, default_model, incomplete, num_passages, pointer, read_default
from common.files import sha256_of, write_json
from tools.improve import cli
from tools.improving.promoting import damaged, promote, rollback, status


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    model(tmp_path / "models" / DEFAULT_MODEL)
    return tmp_path


def model(folder: Path, num_bytes: int = 1000, **about: Any) -> Path:
    """A directory that passes for a prepared model, with its record."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * num_bytes)
    files = {
        each.name: {"num_bytes": each.stat().st_size, "sha256": sha256_of(each)} for each in sorted(folder.iterdir())
    }
    write_json(folder / RECORD, {**about, "files": files})
    return folder


def chosen(*arguments: str) -> dict[str, Any]:
    """The bot's options, filled in."""
    found: dict[str, Any] = {}

    @click.command()
    @bot_options
    def command(**options: Any) -> None:
        check_options(options)
        found.update(options)

    done = CliRunner().invoke(command, list(arguments), catch_exceptions=False)
    return found | {"stderr": done.stderr}


def test_without_a_switch_the_first_model_runs(home: Path) -> None:
    assert default_model() is None
    assert (chosen()["model"], chosen()["k"], chosen()["stderr"]) == (DEFAULT_MODEL, 1, "")


def test_promote_and_roll_back_one_by_one(home: Path) -> None:
    for name in ("one", "two"):
        assert promote(model(home / name, num_passages=2), name, DEFAULT_MODEL, None, home / "report.html")
        assert chosen()["model"] == name
        assert chosen()["k"] == 2
        assert f"running {name}, the default model since 20" in chosen()["stderr"]
    assert chosen("--model", "elsewhere")["model"] == "elsewhere"  # what is named is not switched
    assert rollback() == ("two", "one")
    assert rollback() == ("one", DEFAULT_MODEL)
    assert (chosen()["model"], chosen()["k"]) == (DEFAULT_MODEL, 1)
    with pytest.raises(ValueError, match="no model to go back to"):
        rollback()
    told = "\n".join(status(DEFAULT_MODEL))
    assert f"default model: {DEFAULT_MODEL}" in told
    assert [line.split()[1:] for line in told.splitlines()[-4:]] == [
        ["one", "promoted"],
        ["two", "promoted"],
        ["two", "rolled", "back", "to", "one"],
        ["one", "rolled", "back", "to", DEFAULT_MODEL],
    ]


def test_what_is_promoted_needs_nothing_of_the_work_folder(home: Path) -> None:
    made = model(home / "work")
    promote(made, "one", DEFAULT_MODEL, None, home / "report.html")
    (made / "model.safetensors").write_bytes(b"other")  # nor is it a link
    assert damaged(home / "models" / "one") is None
    shutil.rmtree(made)
    assert incomplete("one") is None


def test_promoting_twice_is_promoting_once(home: Path) -> None:
    made = model(home / "work")
    assert promote(made, "one", DEFAULT_MODEL, None, home / "r")
    before = pointer().read_bytes()
    assert not promote(made, "one", DEFAULT_MODEL, None, home / "r")
    assert pointer().read_bytes() == before


def test_a_model_that_was_compared_with_another_is_not_promoted(home: Path) -> None:
    promote(model(home / "a"), "one", DEFAULT_MODEL, DEFAULT_MODEL, home / "r")
    with pytest.raises(ValueError, match=r"one by now.*compared with smollm2-135m.*another --work"):
        promote(model(home / "b"), "two", DEFAULT_MODEL, DEFAULT_MODEL, home / "r")
    assert chosen()["model"] == "one"


DAMAGES = {
    "is gone": (lambda folder: shutil.rmtree(folder), "is not in"),
    "is cut off": (lambda folder: (folder / "model.safetensors").write_bytes(b"w" * 999), "999 bytes instead of 1,000"),
    "lacks a file": (lambda folder: (folder / "model.safetensors").unlink(), "lacks its file model.safetensors"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_default_model_that_is_damaged_is_one_line_with_the_remedy(home: Path, kind: str) -> None:
    promote(model(home / "work"), "one", DEFAULT_MODEL, None, home / "r")
    damage, words = DAMAGES[kind]
    damage(home / "models" / "one")
    done = CliRunner().invoke(chat, ["--no-retrieval"], input="hello\n")
    assert done.exit_code == 2
    assert done.stderr.count("\n") == 1
    assert words in done.stderr
    assert "--rollback" in done.stderr
    back = CliRunner().invoke(cli, ["--rollback"])
    assert back.exit_code == 0, back.output
    assert chosen()["model"] == DEFAULT_MODEL


def test_status_sees_what_sizes_do_not(home: Path) -> None:
    promote(model(home / "work"), "one", DEFAULT_MODEL, None, home / "r")
    (home / "models" / "one" / "model.safetensors").write_bytes(b"x" * 1000)
    assert "is damaged: model.safetensors" in next(status(DEFAULT_MODEL))


def test_going_back_to_a_model_that_is_gone_is_refused(home: Path) -> None:
    promote(model(home / "work"), "one", DEFAULT_MODEL, None, home / "r")
    shutil.rmtree(home / "models" / DEFAULT_MODEL)
    with pytest.raises(ValueError, match="cannot go back to 'smollm2-135m'"):
        rollback()
    assert read_default().model == "one"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '"one"', '{"model": "one"}', '{"model": 3, "since": "x"}', '{"mode": "one"}', "{"]
)
def test_a_pointer_that_is_none_is_one_line(home: Path, text: str) -> None:
    pointer().write_text(text)
    done = CliRunner().invoke(chat, ["--no-retrieval"], input="hello\n")
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "default.json" in done.stderr
    assert chosen("--model", "elsewhere")["model"] == "elsewhere"


def test_passages_of_a_model_are_those_it_was_tested_with(home: Path) -> None:
    model(home / "models" / "mine", num_passages=5)
    assert num_passages("mine") == num_passages(str(home / "models" / "mine")) == 5
    assert num_passages(DEFAULT_MODEL) is None
    assert num_passages("no-such/model") is None


PROGRAM = """
import sys
from pathlib import Path
from tools.improving.promoting import promote
for number in range(int(sys.argv[2])):
    promote(Path(sys.argv[1]), f"model-{number}", "smollm2-135m", None, Path("r"))
    print(number, flush=True)
"""


def test_killed_while_it_switches_the_default_is_the_old_or_the_new_one(home: Path) -> None:
    made = model(home / "work", num_bytes=3_000_000)
    seen = 0
    for number in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(made), "1000"],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        until = time.monotonic() + 0.02 * number
        while time.monotonic() < until:  # a reader never sees half of it
            found = default_model()
            assert found is not None
            seen += 1
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = default_model()
        assert found is not None
        assert damaged(home / "models" / found.model) is None
        promoted = [each["model"] for each in found.history]
        assert promoted == [f"model-{each}" for each in range(len(promoted))]
    assert seen > 10
    assert json.loads(pointer().read_text())["previous"][0]["model"] == DEFAULT_MODEL

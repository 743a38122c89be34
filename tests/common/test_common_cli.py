"""Manners of commands: a mistake is one line on stderr and exit code 2."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
import sys, time
import click
from common.cli import OneLineCommand, OneLineGroup

@click.group(cls=OneLineGroup)
def cli(): pass

def command(function): return cli.command(cls=OneLineCommand)(function)

@command
def value(): raise ValueError("first\\n  second")
@command
def bug(): raise RuntimeError("a bug")
@command
def system(): open("/no/such/folder/file")
@command
def own(): raise click.ClickException("own words")
@command
def leave(): sys.exit(3)
@command
def code(): return 4
@command
@click.option("--number", type=int, required=True)
def option(number): click.echo(number)
@command
def many():
    for n in range(100_000): click.echo(n)
@command
def late():
    time.sleep(0.3)
    print("one line that waits in the buffer")
@command
def wait():
    click.echo("ready")
    time.sleep(60)

if __name__ == "__main__":
    cli()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A script with a command for each kind of ending."""
    file = tmp_path_factory.mktemp("program") / "program.py"
    file.write_text(PROGRAM)
    return str(file)


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def run(program: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, program, *arguments]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["value"], "error: first second"),
        (["own"], "error: own words"),
        (["option", "--number", "x"], "error: Invalid value for '--number': 'x' is not a valid integer."),
        (["option", "--size", "1"], "error: No such option '--size'."),
        (["option"], "error: Missing option '--number'."),
        (["nonsense"], "error: No such command 'nonsense'."),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], line: str, program: str) -> None:
    done = run(program, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{line}\n")


def test_a_file_that_cannot_be_opened_is_named_in_one_line(program: str) -> None:
    done = run(program, "system")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: ")
    assert "/no/such/folder/file" in done.stderr
    assert "No such file or directory" in done.stderr


def test_parley_debug_shows_the_traceback(program: str) -> None:
    done = run(program, "value", PARLEY_DEBUG="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("ValueError: first\n  second\n")


def test_a_bug_is_not_hidden(program: str) -> None:
    done = run(program, "bug")
    assert done.returncode == 1
    assert "RuntimeError: a bug" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["option", "--number", "7"], 0), (["leave"], 3), (["code"], 4), (["--help"], 0)], ids=str
)
def test_exit_codes_are_the_commands_own(arguments: list[str], code: int, program: str) -> None:
    done = run(program, *arguments)
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.parametrize(("command", "reader"), [("many", "head -1"), ("late", "true")])
def test_a_reader_that_goes_away_is_no_error(command: str, reader: str, program: str) -> None:
    line = f'"{sys.executable}" "{program}" {command} | {reader}; exit ${{PIPESTATUS[0]}}'
    done = subprocess.run(
        ["bash", "-c", line], env=environment(), capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_says_interrupted_and_exits_with_130(program: str) -> None:
    process = subprocess.Popen(
        [sys.executable, program, "wait"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors.strip()) == (130, "interrupted")

"""The documentation is executed: every `sh` block of README and docs runs as it stands, and what the pages claim
about commands agrees with the code.

`sh install` blocks make a virtual environment of their own; they run where PARLEY_TEST_INSTALL=1 (in CI).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from chatbot.shell import Shell
from tools.write_reference import reference

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
# CONTRIBUTING's block is the test run itself.
EXECUTED = [page for page in PAGES if "```sh" in page.read_text() and page.name != "CONTRIBUTING.md"]


def _blocks(page: Path, info: str) -> list[str]:
    return re.findall(rf"^```{info}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path, smollm2: Path, minilm: Path) -> Path:
    """A copy of the project's files, with the models and the virtual environment linked in."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "models").mkdir()
    for model in (smollm2, minilm):
        (tmp_path / "models" / model.name).symlink_to(model)
    return tmp_path


def _run(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=inherited | {"PARLEY_HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.name)
def test_commands_run(page: Path, checkout: Path) -> None:
    (checkout / ".venv").symlink_to(Path(sys.prefix))
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"
    if "indexes/sample" in page.read_text():
        built = _run("python -m retrieval build docs/sample --index indexes/sample", checkout, PATH=path)
        assert built.returncode == 0, built.stderr
    for block in _blocks(page, "sh"):
        done = _run(block, checkout, PATH=path)
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr


@pytest.mark.timeout(900)
@pytest.mark.skipif(os.environ.get("PARLEY_TEST_INSTALL") != "1", reason="installs everything anew; CI does")
def test_install_by_hand(checkout: Path) -> None:
    shutil.rmtree(checkout / "models")
    (block,) = _blocks(ROOT / "README.md", "sh install")
    done = _run(block, checkout, PARLEY_HOME=str(checkout))
    assert done.returncode == 0, done.stderr
    assert "Switzerland" in done.stdout
    assert "docs/sample/cities/zurich.md" in done.stdout


def test_reference_is_current() -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == reference(), "run: python tools/write_reference.py"


def test_every_shell_command_is_documented() -> None:
    page = (ROOT / "docs" / "chat.md").read_text()
    shell = Shell(None, None, None, None)  # type: ignore[arg-type]  # only its table of commands is read
    for name in shell.commands:
        assert f"`{name}" in page, f"docs/chat.md does not mention {name}"


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_conda_installs_the_same() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[gguf,lora,server,train,trackers,dev]"]

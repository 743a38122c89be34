"""Two processes of a pipeline, started once for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from two_processes import run_on_two


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, for all cases."""
    return run_on_two(Path(__file__).with_name("pipeline_cases.py"), tmp_path_factory.mktemp("pipeline"))

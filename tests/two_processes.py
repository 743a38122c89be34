"""Cases that take two processes of torch.distributed: all in one script, since starting takes longer than the cases."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tools.launching import environments

ROOT = Path(__file__).resolve().parents[1]


def run_on_two(script: Path, folder: Path) -> Path:
    """Run `script folder` as two processes; return the folder, where each has written what it found."""
    common = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(folder)]
    runs = [subprocess.Popen(command, env=common | own, stderr=subprocess.PIPE, text=True) for own in environments(2)]
    try:
        errors = [run.communicate(timeout=200)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
            run.wait()
    assert [run.returncode for run in runs] == [0, 0], "\n".join(errors)
    return folder

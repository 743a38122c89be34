"""Steps of the benchmark of retrieval-aware training: done once, redone where something changed, gone on with."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench.raft import Steps

APPEND = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text((p.read_text() if p.exists() else '') + 'x')"
FAIL = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('half'); sys.exit(3)"


def test_a_step_is_done_once_and_anew_where_it_or_one_before_it_changed(tmp_path: Path) -> None:
    steps, product = Steps(tmp_path), tmp_path / "product"

    def run(*more: str, after: str = "", resumes: bool = False) -> str:
        steps.run("one", product, "-c", APPEND, product, *more, after=after, resumes=resumes)
        return product.read_text()

    assert [run(), run()] == ["x", "x"]
    product.write_text("kept")
    assert run() == "kept"
    assert run("other") == "x", "made by another command, and deleted first"
    assert run("other", after="changed") == "x"
    product.unlink()
    assert run("other", after="changed") == "x"


@pytest.mark.parametrize(("resumes", "expected"), [(True, "halfx"), (False, "x")])
def test_what_a_failed_step_left_is_gone_on_with_where_the_command_can(
    tmp_path: Path, resumes: bool, expected: str
) -> None:
    steps, product, flag = Steps(tmp_path), tmp_path / "product", tmp_path / "flag"
    script = f"import pathlib\nif pathlib.Path({str(flag)!r}).exists():\n {APPEND}\nelse:\n {FAIL}"
    with pytest.raises(ValueError, match="step 'one' ended with exit code 3"):
        steps.run("one", product, "-c", script, product, resumes=resumes)
    assert product.read_text() == "half"
    flag.touch()
    steps.run("one", product, "-c", script, product, resumes=resumes)
    assert product.read_text() == expected

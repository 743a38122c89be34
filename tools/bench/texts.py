"""Running text for benchmarks of training."""

from __future__ import annotations

from pathlib import Path


def write_text(path: Path) -> Path:
    """Write Parley's own documentation into `path`, which is returned."""
    pages = sorted((Path(__file__).parents[2] / "docs").rglob("*.md"))
    path.write_text("\n\n".join(page.read_text("utf-8") for page in pages), "utf-8")
    return path

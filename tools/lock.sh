#!/usr/bin/env bash
# Writes constraints.txt: one exact version for every package that any extra needs, for each supported Python.
# Run: bash tools/lock.sh        (needs `pip install uv`; extra arguments go to `uv pip compile`)
#
# CUDA libraries are left out: torch itself names the exact ones that it was built with.
set -euo pipefail
cd "$(dirname "$0")/.."
uv pip compile pyproject.toml --universal --python-version 3.10 --all-extras --upgrade \
    --constraint <(echo "torch==2.13.0") \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet "$@" |
    grep -vE '^(nvidia-|cuda-|triton|setuptools)' > constraints.tmp
{ echo "# Written by tools/lock.sh; do not edit."; cat constraints.tmp; } > constraints.txt
rm constraints.tmp

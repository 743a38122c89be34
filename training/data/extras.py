"""Packages that only the extra `train` brings, imported when they are needed."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def needed(module: str, what_for: str) -> Any:
    """The module; ValueError, which says how to install it, where it is not there."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        if error.name != package:
            raise
        raise ValueError(f"{what_for}, which needs the {package} package: pip install 'parley[train]'") from None

"""How good predictions of labels are: F1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def f1(said: NDArray[np.float64], true: NDArray[np.float64], label: int) -> float | None:
    """2 right / (said + true) of one label (n); None where it is neither said nor true anywhere."""
    right = float(((said == label) & (true == label)).sum())
    total = float((said == label).sum() + (true == label).sum())
    return 2 * right / total if total else None

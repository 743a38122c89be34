"""Means of what the objective sees between two lines of the log."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Meter:
    """Sums over tokens of what the objective sees, until the next line of the log."""

    def __init__(self) -> None:
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, **numbers_N: torch.Tensor) -> None:
        """Numbers for each token of a batch."""
        import torch

        for name, each_N in numbers_N.items():
            count = torch.tensor(each_N.numel(), dtype=torch.float64, device=each_N.device)
            sums = torch.stack([each_N.detach().double().sum(), count])
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums

    def take(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Means over all processes, which `reduce` sums; the sums begin anew."""
        means = {}
        for name, sums in self.sums.items():
            total, count = reduce(sums).tolist()
            means[name] = total / max(count, 1)
        self.sums = {}
        return means

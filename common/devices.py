"""Where torch models run: a device by name, or the GPU where there is one. Importing this does not load torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def choose_device(name: str | None) -> torch.device:
    """The torch device called `name` ('cpu', 'cuda', 'cuda:1'); without a name the GPU, or the CPU where there is none.

    Raises ValueError for a device that torch does not know or that this machine lacks.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)  # names a device that this machine lacks as an error now, not later
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built for the device
        raise ValueError(f"device '{name}' cannot be used ({str(error).splitlines()[0]}); try: cpu") from None
    return device

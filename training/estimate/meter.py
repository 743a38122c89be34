"""Counting the bytes of tensors while they are made and go, of real ones and of fake ones."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


class Meter:
    """Counts the bytes of all storages that operations make while it is `watching`: `live` now, `peak` at most."""

    def __init__(self) -> None:
        self.live = self.peak = 0
        self._seen: dict[int, Any] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count the storage of `tensor`, once, as long as it lives."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:

            def gone(_: Any) -> None:
                self.live -= size
                del self._seen[key]

            self._seen[key] = weakref.ref(storage, gone)
            self.live += size
            self.peak = max(self.peak, self.live)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is made meanwhile."""
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode

        add = self.add

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                made = function(*args, **(kwargs or {}))
                for each in made if isinstance(made, tuple | list) else (made,):
                    if isinstance(each, torch.Tensor):
                        add(each)
                return made

        with Watch():  # type: ignore[no-untyped-call]
            yield

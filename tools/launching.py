"""What torchrun tells each process of a run on this machine, for benchmarks and tests that start them by themselves."""

from __future__ import annotations

import socket


def environments(num_processes: int) -> list[dict[str, str]]:
    """The variables of each process, from first to last, with a free port to meet at; none for one process alone."""
    if num_processes == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    common |= {"WORLD_SIZE": str(num_processes), "LOCAL_WORLD_SIZE": str(num_processes)}
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_processes)]

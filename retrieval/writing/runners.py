"""Where the shards of a build are written: in this process, in several on this machine, or on Ray workers.

All three call the same function on the same shards; the results are in the order of the shards.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from retrieval.encoders import open_encoder
from retrieval.index.segment import VECTORS
from retrieval.types import Encoder
from retrieval.writing.pool import Source, VectorPool
from retrieval.writing.shards import Shard, ShardResult, write_shard

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from multiprocessing.connection import Connection

OnProgress = Callable[[int, int, int], None]  # (bytes read, bytes to read, passages written)
POLL_SECONDS = 0.5


class Runner(Protocol):
    """Writes shards. `num_workers`: how many at a time."""

    @property
    def num_workers(self) -> int:
        """How many shards are written at a time."""
        ...

    def __call__(
        self, shards: Sequence[Shard], encoder: Encoder, known: Sequence[Source], on_progress: OnProgress | None
    ) -> list[ShardResult]:
        """The results, in the order of `shards`; `known`: vectors that need not be made again."""
        ...


class RunHere:
    """One shard after the other, in this process."""

    num_workers = 1

    def __call__(
        self, shards: Sequence[Shard], encoder: Encoder, known: Sequence[Source], on_progress: OnProgress | None
    ) -> list[ShardResult]:
        """See `Runner`."""
        pool = VectorPool(encoder.dim, known)
        total = sum(shard.num_bytes for shard in shards)
        done = [0, 0]

        def count(num_bytes: int, num_passages: int) -> None:
            done[0] += num_bytes
            done[1] += num_passages
            if on_progress:
                on_progress(done[0], total, done[1])

        return [write_shard(shard, encoder, pool, count) for shard in shards]


run_here = RunHere()


class RunInProcesses:
    """`num_workers` processes on this machine, each with its share of the cores and its own copy of the encoder."""

    def __init__(self, num_workers: int, device: str | None = None) -> None:
        if num_workers < 1:
            raise ValueError(f"--workers {num_workers} must be at least 1")
        self.num_workers = num_workers
        self._device = device

    def __call__(
        self, shards: Sequence[Shard], encoder: Encoder, known: Sequence[Source], on_progress: OnProgress | None
    ) -> list[ShardResult]:
        """See `Runner`."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor
        from concurrent.futures.process import BrokenProcessPool

        num = min(self.num_workers, len(shards))
        # A fresh interpreter each: a fork would copy the threads' locks of torch and Faiss in whatever state they are.
        context = multiprocessing.get_context("spawn")
        threads = max((os.cpu_count() or 1) // num, 1)
        # Nothing is ever sent. The workers see this end close, when it is closed here or this process dies.
        theirs, ours = context.Pipe(duplex=False)
        try:
            with theirs, ours, ProcessPoolExecutor(num, context, _begin_worker, (threads, theirs)) as executor:
                try:
                    return self._run(executor, shards, encoder, known, on_progress)
                except BaseException:
                    # The executor would wait until they have written their shards.
                    executor.shutdown(wait=False, cancel_futures=True)
                    ours.close()
                    raise
        except BrokenProcessPool:
            raise ValueError(
                f"one of {num} workers was ended from outside, as the system does when memory runs out; start this "
                "again with fewer --workers, and it goes on where it was"
            ) from None

    def _run(
        self,
        executor: Executor,
        shards: Sequence[Shard],
        encoder: Encoder,
        known: Sequence[Source],
        on_progress: OnProgress | None,
    ) -> list[ShardResult]:
        from concurrent.futures import FIRST_COMPLETED, wait

        progress = _Progress(shards, encoder.dim, on_progress)
        wanted = (encoder.name, encoder.fingerprint, self._device, tuple(known))
        futures = [executor.submit(write_shard_alone, shard, *wanted) for shard in shards]
        pending = set(futures)
        while pending:
            finished, pending = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
            for future in finished:
                future.result()  # the first error ends it all
            progress.show([future.done() for future in futures])
        return [future.result() for future in futures]


class RunOnRay:
    """Ray workers (https://docs.ray.io), on this machine or a cluster, all of which see the index's folder and the
    documents under the same paths. Also a context manager, which closes it."""

    def __init__(self, address: str = "local", device: str | None = None) -> None:
        """`address`: 'local' starts Ray on this machine, 'auto' finds a running cluster, 'ray://host:10001' names one.

        Raises ValueError where Ray is not installed, or cannot be used there.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        try:
            import ray
        except ImportError:
            raise ValueError('Ray is not installed; get it with: pip install "parley[ray]"') from None
        self._ray: Any = ray
        self._device = device
        self._started = not self._ray.is_initialized()
        if self._started:
            more = {"include_dashboard": False} if address == "local" else {}
            try:
                self._ray.init(address=address, log_to_driver=False, logging_level="ERROR", **more)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise ValueError(f"Ray at '{address}' cannot be used: {' '.join(str(error).split())[:200]}") from None

    def __enter__(self) -> RunOnRay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop Ray, if it was started here."""
        if self._started:
            self._ray.shutdown()

    @property
    def num_workers(self) -> int:
        """As many as the cluster has cores."""
        return max(int(self._ray.cluster_resources().get("CPU", 1)), 1)

    def __call__(
        self, shards: Sequence[Shard], encoder: Encoder, known: Sequence[Source], on_progress: OnProgress | None
    ) -> list[ShardResult]:
        """See `Runner`."""
        ray = self._ray
        # Ray hides all GPUs from a task that does not ask for one.
        num_gpus = 1 if self._device and self._device.startswith("cuda") else 0
        task = ray.remote(max_retries=2, num_gpus=num_gpus)(write_shard_alone)
        absolute = tuple(replace(source, folder=os.path.abspath(source.folder)) for source in known)  # noqa: PTH100
        wanted = (encoder.name, encoder.fingerprint, self._device, ray.put(absolute))
        progress = _Progress(shards, encoder.dim, on_progress)
        references = [task.remote(_absolute(shard), *wanted) for shard in shards]
        pending = list(references)
        try:
            while pending:
                finished, pending = ray.wait(pending, timeout=POLL_SECONDS)
                ray.get(finished)  # the first error ends it all
                waiting = set(pending)
                progress.show([each not in waiting for each in references])
            results: list[ShardResult] = ray.get(references)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ValueError):
                raise ValueError(str(error.cause)) from None
            raise
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"a Ray worker was lost ({reason}); start this again, and it goes on where it was"
            ) from None
        finally:
            for each in pending:
                ray.cancel(each, force=True)
        return results


def _absolute(shard: Shard) -> Shard:
    """A shard for a process that may run in another folder."""
    files = tuple(
        replace(file, path=file.path.absolute(), root=file.root and file.root.absolute()) for file in shard.files
    )
    return replace(shard, index=os.path.abspath(shard.index), files=files)  # noqa: PTH100


def write_shard_alone(
    shard: Shard, encoder: str, fingerprint: str, device: str | None, known: Sequence[Source]
) -> ShardResult:
    """`write_shard` in a process of its own, which opens the encoder itself.

    Raises ValueError where that gives another encoder than the one with `fingerprint`.
    """
    opened = open_encoder(encoder, device)
    if opened.fingerprint != fingerprint:
        raise ValueError(
            f"a worker's encoder '{encoder}' is not the one of this build; workers must see the same files"
        )
    return write_shard(shard, opened, VectorPool(opened.dim, known))


def _begin_worker(num_threads: int, parent: Connection) -> None:
    """Share the cores, which torch, ONNX Runtime and Faiss read once when they load, and end with the parent."""
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()


def _end_with(parent: Connection) -> None:
    """A worker whose parent was killed would else go on for as long as its shard takes, and then wait for ever."""
    parent.poll(None)
    os._exit(1)


class _Progress:
    """Reads off the disk how far workers are."""

    def __init__(self, shards: Sequence[Shard], dim: int, on_progress: OnProgress | None) -> None:
        self._shards, self._dim, self._on_progress = shards, dim, on_progress
        self._total = sum(shard.num_bytes for shard in shards)
        self._index = Path(shards[0].index) if shards else None
        own = {shard.segment_name(sequence) for shard in shards for sequence in range(64)}
        # Those of the index, and what a killed build had left unfinished, are not this one's progress.
        self._others = {path.parent.name for path in self._vectors()} - own

    def show(self, done: Sequence[bool]) -> None:
        """`done`: for each shard whether it is."""
        if self._on_progress is None:
            return
        num_bytes = 0
        for path in self._vectors():
            if path.parent.name not in self._others:
                with contextlib.suppress(FileNotFoundError):  # it has got its name in this moment
                    num_bytes += path.stat().st_size
        num_done = sum(shard.num_bytes for shard, is_done in zip(self._shards, done, strict=True) if is_done)
        self._on_progress(num_done, self._total, num_bytes // (4 * self._dim))

    def _vectors(self) -> Iterable[Path]:
        return self._index.glob(f"segment-*/{VECTORS}") if self._index else ()

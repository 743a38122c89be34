"""Requests at work: the models run in threads of their own, and the event loop watches over client and clock.

A thread that generates cannot be interrupted from outside. So it looks at the request's `Watch` after every token; the
event loop sets the watch when the client is gone, which it learns at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, Generator, MutableMapping
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import Cancelled, body_of
from chatbot.api.watch import Watch, too_late
from chatbot.server.errors import internal_error, to_json
from chatbot.server.limits import Lane, Slot
from chatbot.server.metrics import Metrics

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

Item = dict[str, Any]
Items = Generator[Item, None, None]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GRACE = 5.0  # seconds after a request's time in which an answer may still come: moderation has the last word
UNREAD = 60.0  # seconds after that until a client that does not read what it is sent is dropped
PATIENCE = 0.5  # seconds in which work that nobody waits for should notice it, before others get its place
GONE = 499  # what nginx calls a request whose client did not wait; only the metrics see it


class Threads:
    """At most so many threads, made when first needed. They do not keep the process from ending."""

    def __init__(self, num: int, name: str) -> None:
        self._num, self._name = num, name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._idle = 0
        self._made = 0
        self._lock = threading.Lock()

    def start(self, work: Callable[[], None]) -> None:
        """Have `work`, which must not raise, done."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._made < self._num:
                self._made += 1
                threading.Thread(target=self._run, name=f"{self._name}-{self._made}", daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        """Let all threads end, each when its work has ended."""
        with self._lock:
            for _ in range(self._made):
                self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
            with self._lock:
                self._idle += 1


class _End:
    """The last item of a job: how it ended."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error


class Job:
    """Work in a thread whose items are awaited on the event loop."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._items: asyncio.Queue[Item | _End] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._slot: Slot | None = None
        self.stopped = asyncio.Event()
        self._timer = self._loop.call_later(min(watch.remaining + GRACE, 1e6), self._give_up)

    def _run(self, work: Callable[[], Items], done: Callable[[], None]) -> None:
        """In the thread: make all items. `done` is called on the loop, whatever happened."""
        end = _End()
        try:
            with contextlib.closing(work()) as items:
                for item in items:
                    if self.watch.cancelled:
                        break
                    self._post(self._items.put_nowait, item)
        except Cancelled:
            pass  # nobody waits for what it would say
        except Exception as error:  # of whatever kind: it is told to the client, or logged
            end = _End(error)
        self._post(self._items.put_nowait, end)
        self._post(done)

    def _post(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            self._loop.call_soon_threadsafe(function, *arguments)

    def start(self, threads: Threads, work: Callable[[], Items], slot: Slot) -> None:
        """Begin, in one of the threads."""
        self._slot = slot
        threads.start(lambda: self._run(work, slot.give_back))

    def leave(self) -> None:
        """The client is gone, if it was not answered before."""
        if not self._timer.cancelled():
            self.stop(Cancelled())

    def _give_up(self) -> None:
        """The engine is at something that takes too long, and does not look at the watch meanwhile."""
        self.stop(too_late())

    def stop(self, reason: Exception) -> None:
        """Wait no longer; `next` raises the reason."""
        self.watch.cancel()
        self._items.put_nowait(_End(reason))
        self.stopped.set()
        if self._slot is not None:
            self._loop.call_later(PATIENCE, self._slot.abandon)

    def end(self) -> None:
        """Nothing more is awaited."""
        self.watch.cancel()
        self._timer.cancel()

    async def next(self) -> Item | None:
        """The next item, None at the end. Raises what the work raised, Cancelled where the client is gone, and
        ApiError where the time is up and nothing comes."""
        item = await self._items.get()
        if not isinstance(item, _End):
            return item
        if item.error is not None:
            raise item.error
        return None


class Desk:
    """Where the requests of one kind are worked on."""

    def __init__(self, name: str, lane: Lane, metrics: Metrics, jobs: set[Job], seconds: float) -> None:
        self.lane, self._metrics, self._jobs, self._seconds = lane, metrics, jobs, seconds
        self._threads = Threads(2 * lane.num_slots, name)  # half of them may be at work for nobody

    def close(self) -> None:
        """No more requests."""
        self._threads.close()

    async def serve(self, request: Request, work: Callable[[Watch], Items], stream: bool = False) -> Response:
        """The answer to a request: the one item of its work, or all of them as a stream of events.

        A stream begins with its first item: until then an error still has its own status."""
        from starlette.responses import Response

        watch = Watch(self._seconds)
        job = Job(watch)
        self._jobs.add(job)
        gone = asyncio.ensure_future(_wait_until_gone(request.receive))
        in_stream = False
        try:
            gone.add_done_callback(lambda _: job.leave())
            await self._start(job, lambda: work(watch))
            first = await job.next()
            if first is None:
                raise Cancelled  # only work that was cancelled gives nothing
            if stream:
                in_stream = True
                events: Response = _stream_class()(job, first, lambda: self._end(job, gone), request.scope["parley.id"])
                return events
            return Response(to_json(first), media_type="application/json")
        except Cancelled:
            return Response(status_code=GONE)
        finally:
            if not in_stream:
                self._end(job, gone)

    async def _start(self, job: Job, work: Callable[[], Items]) -> None:
        """Wait for a slot, unless the job is stopped meanwhile, and start."""
        waiting: asyncio.Future[Slot] = asyncio.ensure_future(self.lane.acquire(job.watch))
        stopped: asyncio.Future[Any] = asyncio.ensure_future(job.stopped.wait())
        both: set[asyncio.Future[Any]] = {waiting, stopped}
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
            if not waiting.done():
                waiting.cancel()
        if not waiting.done():
            return  # the reason is the job's next item
        job.start(self._threads, work, waiting.result())

    def _end(self, job: Job, gone: asyncio.Future[None]) -> None:
        watch = job.watch
        gone.cancel()
        job.end()
        self._jobs.discard(job)
        first = None if watch.first_token is None else watch.first_token - watch.started
        self._metrics.answer(watch.prompt_tokens, watch.completion_tokens, first)


async def _wait_until_gone(receive: Receive) -> None:
    """Until the client is gone. Its whole request was read before."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _stream_class() -> Any:
    """A response of server-sent events, in OpenAI's form."""
    from starlette.responses import Response

    class EventStream(Response):
        media_type = "text/event-stream"

        def __init__(self, job: Job, first: Item, end: Callable[[], None], id_: str) -> None:
            super().__init__(headers={"X-Accel-Buffering": "no"})
            del self.headers["content-length"]
            self._job, self._first, self._end, self._id = job, first, end, id_

        async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
            del scope, receive  # the job watches over the client
            task = asyncio.current_task()
            assert task is not None  # noqa: S101
            limit = min(self._job.watch.remaining + GRACE + UNREAD, 1e6)
            timer = asyncio.get_running_loop().call_later(limit, task.cancel, UNREAD)
            try:
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                async for event in self._events():
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            except asyncio.CancelledError as error:
                if error.args != (UNREAD,):
                    raise
                # A client that does not read: there is nobody to tell, and the connection is closed with this return.
            finally:
                timer.cancel()
                self._end()

        async def _events(self) -> Any:
            item: Item | None = self._first
            while item is not None:
                yield b"data: " + to_json(item) + b"\n\n"
                try:
                    item = await self._job.next()
                except Cancelled:
                    return
                except ValueError as error:  # too late for another status code
                    item = None
                    yield b"data: " + to_json(body_of(error)) + b"\n\n"
                except Exception as error:
                    item = None
                    yield b"data: " + to_json(internal_error(error, self._id)) + b"\n\n"
            yield b"data: [DONE]\n\n"

    return EventStream

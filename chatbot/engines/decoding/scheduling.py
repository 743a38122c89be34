"""Runs everybody's requests together: one thread, which owns the model and all caches.

Before each forward pass it lets newcomers in, in order of arrival, and lets those go that ended or were closed. A pass
holds the next token of every answer in the making and as much of the newcomers' prompts as `chunk` allows, so that a
long prompt delays the others by a fraction of a second at a time. Where a pass fails, each of its sequences is tried
alone, and only those that fail again are told.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from chatbot.engines.base import FinishReason, Generation
from chatbot.engines.decoding.choosing import Chooser, Token
from chatbot.engines.decoding.running import KeyValues, Runner, Work, common_prefix
from chatbot.engines.decoding.store import PrefixStore

if TYPE_CHECKING:
    import torch

    from chatbot.engines.decoding.speculation import Drafter

_OUT_OF_MEMORY = (
    "the GPU ran out of memory; shorten the conversation (/reset), lower --max-tokens or --k, or load the model with "
    "--load-in-8bit"
)
_UNDISTURBED = 4  # times as much of the prompts is read in a pass while nobody waits for a next token
_WORTH_WAITING = 32  # tokens: so long a common beginning that it is better read once


class Request:
    """One answer that is wanted, and the way its tokens come back. `num_cached` is known with the first token."""

    def __init__(self, prompt: list[int], generation: Generation, end_ids: set[int], adapter: str | None) -> None:
        self.prompt, self.generation, self.end_ids, self.adapter = prompt, generation, end_ids, adapter
        self.num_cached = 0
        self.closed = False
        self.results: queue.SimpleQueue[Token | FinishReason | Exception] = queue.SimpleQueue()

    def tokens(self) -> Iterator[Token]:
        """Tokens as they come. One of `end_ids` is the last. Raises what went wrong."""
        while True:
            result = self.results.get()
            if isinstance(result, Exception):
                raise result
            if isinstance(result, str):
                return
            yield result


class _Sequence:
    """A request that has its place: `pending` ids are still to be run, the newest token among them."""

    def __init__(self, request: Request, cache: KeyValues) -> None:
        self.request, self.cache = request, cache
        self.pending = request.prompt[len(cache.tokens) :]
        self.chooser = Chooser(request.generation)
        self.num_said = 0
        self.outcome: FinishReason | Exception | None = None

    @property
    def reading(self) -> bool:
        """Whether its prompt has not been run to the end."""
        return self.num_said == 0

    @property
    def speculates(self) -> bool:
        return not self.reading and self.request.generation.greedy

    def say(self, logits_V: torch.Tensor) -> Token:
        """Choose the next token and hand it over."""
        request = self.request
        token = self.chooser.choose(logits_V)
        self.num_said += 1
        self.pending = [token.id]
        request.results.put(token)
        if token.id in request.end_ids:
            self.outcome = "stop"
        elif self.num_said == request.generation.max_tokens:
            self.outcome = "length"
        return token


class Scheduler:
    """Takes requests from any thread. `use_adapter` switches the model, and is called between two passes."""

    def __init__(
        self,
        runner: Runner,
        store: PrefixStore,
        use_adapter: Callable[[str | None], None],
        adapter: str | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self.store = store
        self._runner, self._use_adapter, self._adapter, self._drafter = runner, use_adapter, adapter, drafter
        self._waiting: deque[Request] = deque()
        self._active: list[_Sequence] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = self._forgetting = False

    def submit(self, request: Request) -> None:
        """Queue a request; its tokens come through `request.tokens()`. RuntimeError after `stop`."""
        with self._changed:
            if self._stopping:
                raise RuntimeError("the model was closed")
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._work, name="parley-generation", daemon=True)
                self._thread.start()
            self._waiting.append(request)
            self._changed.notify()

    def close(self, request: Request) -> None:
        """Free the request's place: it takes part in no later pass."""
        with self._changed:
            request.closed = True
            self._changed.notify()

    def forget(self) -> None:
        """Drop the caches that are kept, before anything that is submitted later begins."""
        with self._changed:
            self._forgetting = True
            self._changed.notify()

    def stop(self) -> None:
        """End the thread after the pass it is in; what is still wanted fails."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    # All below runs in the thread -----------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._await_work():
            try:
                self._admit()
                self._step()
            except Exception as error:  # outside a pass, so it is everybody's; whoever waits for tokens has to know
                for each in self._active:
                    each.outcome = error
                self._part()
        for request in [*(each.request for each in self._active), *self._waiting]:
            request.results.put(RuntimeError("the model was closed while it generated"))

    def _await_work(self) -> bool:
        """Block until there is something to run; False when stopping. Lets go what was closed or is to be forgotten."""
        with self._changed:
            while True:
                if self._stopping:
                    return False
                if self._forgetting:
                    self.store.clear()
                    self._forgetting = False
                self._waiting = deque(each for each in self._waiting if not each.closed)
                gone = [each for each in self._active if each.request.closed]
                self._active = [each for each in self._active if not each.request.closed]
                for each in gone:
                    self.store.keep(each.request.adapter, each.cache)
                if self._waiting or self._active:
                    return True
                self._changed.wait()

    def _admit(self) -> None:
        """Give places to those who wait, in order of arrival; whoever cannot have one yet holds up those behind."""
        reading = sum(len(each.pending) for each in self._active if each.reading)
        while len(self._active) < self._runner.max_batch and reading < (self._runner.chunk or 1):
            with self._changed:
                if not self._waiting or not self._may_join(self._waiting[0]):
                    return
                request = self._waiting.popleft()
            if sequence := self._seat(request):
                self._active.append(sequence)
                reading += len(sequence.pending)

    def _seat(self, request: Request) -> _Sequence | None:
        """Its adapter in use, and a cache to begin with; None where that fails, which the request is told."""
        try:
            if request.adapter != self._adapter:  # then nobody else has a place
                self._use_adapter(request.adapter)
                self._adapter = request.adapter
            running = [each.cache for each in self._active]
            sequence = _Sequence(request, self.store.start(request.adapter, request.prompt, running))
        except Exception as error:
            request.results.put(error)
            return None
        request.num_cached = len(sequence.cache.tokens)
        return sequence

    def _may_join(self, request: Request) -> bool:
        """Not with another adapter in use, nor beside one who is reading the same text: a pass later it is cached."""
        return all(
            each.request.adapter == request.adapter
            and not (each.reading and common_prefix(each.request.prompt, request.prompt) >= _WORTH_WAITING)
            for each in self._active
        )

    def _step(self) -> None:
        if not self._active:
            return
        alone = self._active[0] if len(self._active) == 1 else None
        if self._drafter and alone and alone.speculates and self._speculate(self._drafter, alone):
            return
        room = self._runner.chunk or max(len(each.pending) for each in self._active)
        if all(each.reading for each in self._active):
            room *= _UNDISTURBED
        work: list[tuple[_Sequence, Work]] = []
        for each in self._active:
            num = min(len(each.pending), room) if each.reading else 1
            if num:
                work.append((each, Work(each.cache, each.pending[:num], int(num == len(each.pending)))))
                room -= num if each.reading else 0
        results = self._run([item for _, item in work])
        for (sequence, item), result in zip(work, results, strict=True):
            if isinstance(result, Exception):
                sequence.outcome = result
                continue
            sequence.pending = sequence.pending[len(item.ids) :]
            if not sequence.pending:
                self._say(sequence, result[-1])
        self._part()

    def _say(self, sequence: _Sequence, logits_V: torch.Tensor) -> Token | None:
        """The next token of one; None where its settings make it fail, which is its own affair."""
        try:
            return sequence.say(logits_V)
        except Exception as error:
            sequence.outcome = error
            return None

    def _part(self) -> None:
        """Let go those who are done, and keep the caches of those who did not fail."""
        done = [each for each in self._active if each.outcome is not None]
        self._active = [each for each in self._active if each.outcome is None]
        for each in done:
            if not isinstance(each.outcome, Exception):
                self.store.keep(each.request.adapter, each.cache)
            if each.outcome is not None:
                each.request.results.put(each.outcome)

    def _run(self, work: list[Work]) -> list[torch.Tensor | Exception]:
        """Logits of each, or why there are none. Kept caches make room where memory runs out."""
        import torch

        try:
            return [*self._runner.forward(work)]
        except torch.OutOfMemoryError:
            self.store.clear()
            torch.cuda.empty_cache()
        except Exception as error:
            if len(work) == 1:
                return [error]
        return [self._run_alone(each) for each in work]

    def _run_alone(self, work: Work) -> torch.Tensor | Exception:
        import torch

        try:
            return self._runner.forward([work])[0]
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return ValueError(_OUT_OF_MEMORY)
        except Exception as error:
            return error

    def _speculate(self, drafter: Drafter, sequence: _Sequence) -> bool:
        """Let the drafter propose and the model verify, in one pass. False where there is nothing to propose."""
        before = len(sequence.cache.tokens)
        text = [*sequence.cache.tokens, *sequence.pending]
        room = sequence.request.generation.max_tokens - sequence.num_said - 1
        proposed = drafter.propose(text, room)
        if not proposed:
            return False
        (result,) = self._run([Work(sequence.cache, [*sequence.pending, *proposed], len(proposed) + 1)])
        if isinstance(result, Exception):
            sequence.outcome = result
            self._part()
            return True
        num_right = 0
        for logits_V, guess in zip(result, [*proposed, None], strict=True):
            token = self._say(sequence, logits_V)
            if sequence.outcome or token is None or token.id != guess:
                break
            num_right += 1
        drafter.learn(num_right, len(proposed))
        sequence.cache.truncate(before + 1 + num_right)
        self._part()
        return True

"""The queue: in order, never more at once than agreed, and no slot is ever lost, whoever leaves and when."""

from __future__ import annotations

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.api.errors import ApiError
from chatbot.api.watch import Watch
from chatbot.server.limits import Lane
from chatbot.server.metrics import Metrics
from chatbot.server.work import Threads


def test_slots_go_to_those_who_came_first():
    async def run():
        lane, order = Lane(2, 10), []

        async def one(number):
            slot = await lane.acquire(Watch())
            order.append(number)
            await asyncio.sleep(0.001)
            slot.give_back()

        await asyncio.gather(*(one(number) for number in range(12)))
        return order, lane.running, lane.waiting

    assert asyncio.run(run()) == (list(range(12)), 0, 0)


def test_a_newcomer_does_not_overtake():
    async def run():
        lane = Lane(1, 10)
        slot = await lane.acquire(Watch())
        waiting = asyncio.ensure_future(lane.acquire(Watch()))
        await asyncio.sleep(0)
        slot.give_back()  # the slot is the waiting one's, though it has not woken up yet
        newcomer = asyncio.ensure_future(lane.acquire(Watch()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        done = waiting.done(), newcomer.done()
        newcomer.cancel()
        return done

    assert asyncio.run(run()) == (True, False)


def test_a_full_queue_and_a_deadline():
    async def run():
        lane = Lane(1, 1)
        await lane.acquire(Watch())
        waiting = asyncio.ensure_future(lane.acquire(Watch(0.05)))
        await asyncio.sleep(0)
        with pytest.raises(ApiError, match="1 requests are at work and 1 wait") as full:
            await lane.acquire(Watch())
        with pytest.raises(ApiError, match="time is up") as late:
            await waiting
        return full.value.status, int(full.value.headers["Retry-After"]), late.value.status, lane.waiting

    status, retry_after, late, waiting = asyncio.run(run())
    assert (status, late, waiting) == (429, 408, 0)
    assert 1 <= retry_after <= 60


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3), st.lists(st.tuples(st.sampled_from("acrl+"), st.integers(0, 9)), max_size=60))
def test_no_slot_is_lost_whatever_happens(num_slots, steps):
    """Acquire, cancel, leave, release and let the loop turn, in any order: at most `num_slots` hold one, at most as
    many are left, and all come back."""

    async def run():
        lane = Lane(num_slots, 5)
        tasks, most = [], 0
        released = set()

        def holders():
            return [i for i, each in enumerate(tasks) if has_slot(each) and i not in released]

        def has_slot(task):
            return task.done() and not task.cancelled() and task.exception() is None

        for step, number in steps:
            if step == "a":
                tasks.append(asyncio.ensure_future(lane.acquire(Watch())))
            elif step == "c" and tasks:
                tasks[number % len(tasks)].cancel()
            elif step == "r" and holders():
                place = holders()[number % len(holders())]
                released.add(place)
                tasks[place].result().give_back()
            elif step == "l" and holders():
                tasks[holders()[number % len(holders())]].result().abandon()
            else:
                await asyncio.sleep(0)
            most = max(most, len(holders()))
            assert 0 <= lane.running <= num_slots
            assert 0 <= lane.abandoned <= num_slots
        while any(not task.done() for task in tasks) or holders():
            for place in holders():
                released.add(place)
                tasks[place].result().give_back()
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for task in tasks:
            if not task.cancelled():
                task.exception()
        return most, lane.running, lane.waiting, lane.abandoned

    most, *rest = asyncio.run(run())
    assert most <= 2 * num_slots
    assert rest == [0, 0, 0]


def test_threads_are_made_when_needed_and_used_again():
    threads, names, lock = Threads(3, "test-worker"), [], threading.Lock()

    def work(done):
        def run():
            with lock:
                names.append(threading.current_thread().name)
            done.set()

        return run

    for _ in range(5):
        done = threading.Event()
        threads.start(work(done))
        assert done.wait(5)
    assert len(names) == 5
    assert len(set(names)) <= 3
    gate, started = threading.Event(), threading.Semaphore(0)
    for _ in range(3):
        threads.start(lambda: (started.release(), gate.wait(5)))
    assert all(started.acquire(timeout=5) for _ in range(3))
    gate.set()
    assert all(thread.daemon for thread in threading.enumerate() if thread.name.startswith("test-worker"))


def test_what_is_counted_adds_up():
    metrics = Metrics()
    for seconds in (0.004, 0.005, 0.3, 1000.0):
        metrics.request("/v1/x", 200, seconds)
    metrics.answer(10, 3, 0.06)
    metrics.answer(5, 0, None)
    metrics.rejected("queue")
    lines = metrics.text({"running": {"generation": 2}}).splitlines()
    assert 'parley_requests_total{route="/v1/x",status="200"} 4' in lines
    found = [line for line in lines if line.startswith("parley_request_seconds_bucket")]
    counts = [int(line.rsplit(" ", 1)[1]) for line in found]
    assert counts == [2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4]
    assert found[0] == 'parley_request_seconds_bucket{route="/v1/x",le="0.005"} 2'
    assert found[-1].endswith('le="+Inf"} 4')
    assert 'parley_request_seconds_sum{route="/v1/x"} 1000.309000' in lines
    assert 'parley_tokens_total{kind="prompt"} 15' in lines
    assert 'parley_running{lane="generation"} 2' in lines
    assert "parley_time_to_first_token_seconds_count 1" in lines
    # Each line is what the text format allows: a comment, or name{labels} number.
    assert all(line.startswith("# ") or float(line.rsplit(" ", 1)[1]) >= 0 for line in lines)

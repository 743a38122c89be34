"""Calls with a time limit."""

from __future__ import annotations

import threading
import time

import pytest

from moderation.workers import TooSlow, Workers


def test_a_call_returns_or_raises_what_it_would():
    workers = Workers()
    assert workers.run(lambda: 7, 10) == workers.run(lambda: 7, None) == 7
    for timeout in (10, None):
        with pytest.raises(ZeroDivisionError):
            workers.run(lambda: 1 // 0, timeout)


def test_even_ctrl_c_reaches_the_caller():
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Workers().run(interrupt, 10)


def test_without_a_limit_there_is_no_other_thread():
    here = threading.current_thread()
    assert Workers().run(threading.current_thread, None) is here
    assert Workers().run(threading.current_thread, 10) is not here


def test_a_thread_serves_one_call_after_the_other():
    workers = Workers()
    assert len({workers.run(threading.get_ident, 10) for _ in range(20)}) == 1


def test_a_call_that_does_not_end_is_given_up_and_its_thread_used_again():
    workers, end = Workers(), threading.Event()
    start = time.monotonic()
    with pytest.raises(TooSlow, match=r"took longer than 0\.05 s"):
        workers.run(end.wait, 0.05)
    assert time.monotonic() - start < 5
    assert workers.run(lambda: "others go on", 10) == "others go on"
    end.set()
    deadline = time.monotonic() + 10
    while workers._busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len({workers.run(threading.get_ident, 10) for _ in range(5)}) == 1


def test_calls_that_never_end_do_not_pile_up():
    workers, end = Workers(most=2), threading.Event()
    for _ in range(2):
        with pytest.raises(TooSlow, match="took longer"):
            workers.run(end.wait, 0.01)
    with pytest.raises(TooSlow, match="still works on 2 earlier calls"):
        workers.run(lambda: 7, 10)
    end.set()
    deadline = time.monotonic() + 10
    while workers._busy and time.monotonic() < deadline:
        time.sleep(0.01)
    assert workers.run(lambda: 7, 10) == 7


def test_calls_at_the_same_time_each_get_their_own_answer():
    workers, together = Workers(), threading.Barrier(8, timeout=30)
    answers = [0] * 8

    def call(i: int) -> None:
        def work() -> int:
            together.wait()
            return i * i

        answers[i] = workers.run(work, 60)

    threads = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [i * i for i in range(8)]

"""Orders of pipelines: bubbles against the published formulas, what is in flight against the definition."""

from __future__ import annotations

from collections import Counter

import pytest

from training.estimate.orders import BACKWARD, FORWARD, INPUT, WEIGHT, orders, play
from training.pipeline.schedules import SCHEDULES, find_schedule

SHAPES = [(2, 8), (4, 8), (8, 32)]


def stages(name: str, processes: int) -> int:
    return processes * (2 if SCHEDULES[name].several_stages else 1)


@pytest.mark.parametrize("name", ["gpipe", "1f1b", "looped_bfs", "interleaved_1f1b"])
@pytest.mark.parametrize(("p", "m"), SHAPES)
def test_bubbles_are_those_of_the_formula(name, p, m):
    # (p - 1) / (v m + p - 1): Huang et al. 2019 for v = 1, Narayanan et al. 2021 for v stages a process.
    num = stages(name, p)
    played = play(orders(find_schedule(name), p, num, m), [1.0] * num, [2.0] * num)
    assert played.bubble == pytest.approx((p - 1) / (num // p * m + p - 1))
    assert played.length * p * (1 - played.bubble) == pytest.approx(3 * m * num)


@pytest.mark.parametrize(("p", "m"), SHAPES)
def test_zero_bubble_orders_wait_less(p, m):
    found = {}
    for name in ("interleaved_1f1b", "interleaved_zero_bubble", "zbv", "dualpipev"):
        num = stages(name, p)
        found[name] = play(orders(find_schedule(name), p, num, m), [1.0] * num, [2.0] * num).bubble
    assert max(found[name] for name in ("interleaved_zero_bubble", "zbv", "dualpipev")) < found["interleaved_1f1b"] / 2


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_micro_batch_goes_through_every_stage_once(name):
    p, m = 4, 8
    num = stages(name, p)
    made = orders(find_schedule(name), p, num, m)
    counts = Counter((each.stage, each.kind) for actions in made for each in actions)
    for stage in range(num):
        assert counts[stage, FORWARD] == m
        assert counts[stage, BACKWARD] + counts[stage, INPUT] == m
        assert counts[stage, INPUT] == counts[stage, WEIGHT]
    for process, actions in enumerate(made):
        assert {each.stage for each in actions} == set(SCHEDULES[name].stages_of(process, p, num))


def test_one_forward_one_backward_keeps_few_micro_batches():
    for process, actions in enumerate(orders(find_schedule("1f1b"), 4, 4, 8)):
        live = most = 0
        for each in actions:
            live += 1 if each.kind == FORWARD else -1
            most = max(most, live)
        assert most == 4 - process


def test_an_order_that_waits_for_itself_is_refused():
    backwards = [[*reversed(actions)] for actions in orders(find_schedule("gpipe"), 2, 2, 2)]
    with pytest.raises(ValueError, match="never ends"):
        play(backwards, [1.0, 1.0], [2.0, 2.0])

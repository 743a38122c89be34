"""Splitting layers, schedules and their limits, plans: against arithmetic by hand and exhaustive search."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.pipeline.balance import as_told, by_cost, by_count, costs
from training.pipeline.plan import Plan
from training.pipeline.schedules import SCHEDULES, check_fits, find_schedule


def sizes(cuts: list[range]) -> list[int]:
    return [len(each) for each in cuts]


def test_equal_shares_by_hand():
    assert by_count(8, 4) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert sizes(by_count(30, 4)) == [7, 8, 8, 7]
    assert sizes(by_count(5, 5)) == [1] * 5


@given(st.integers(1, 60), st.integers(1, 60))
def test_equal_shares_are_all_layers_once_and_differ_by_one(num_layers, num_stages):
    if num_stages > num_layers:
        with pytest.raises(ValueError, match=f"{num_layers} layers cannot make {num_stages} stages"):
            by_count(num_layers, num_stages)
        return
    cuts = by_count(num_layers, num_stages)
    assert [number for cut in cuts for number in cut] == list(range(num_layers))
    assert max(sizes(cuts)) - min(sizes(cuts)) <= 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=9), st.integers(0, 30), st.integers(1, 4))
def test_no_split_has_a_cheaper_worst_stage(layer_costs, head, num_stages):
    num_layers = len(layer_costs)
    if num_stages > num_layers:
        return

    def worst(cuts: list[range]) -> int:
        each = [sum(layer_costs[number] for number in cut) for cut in cuts]
        return max([*each[:-1], each[-1] + head])

    every = []
    for ends in combinations(range(1, num_layers), num_stages - 1):
        bounds = [0, *ends, num_layers]
        every.append([range(start, end) for start, end in pairwise(bounds)])
    cuts = by_cost(layer_costs, head, num_stages)
    assert cuts in every
    assert worst(cuts) == min(worst(each) for each in every)


def test_the_head_of_a_large_vocabulary_counts():
    # SmolLM2-135M: 30 layers of 3.54 million multiplications, and a head of 49,152 x 576.
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152,
    )  # fmt: skip
    layers, head = costs(config, tokens=512)
    matrices = 576 * (576 + 192 + 192 + 576) + 3 * 576 * 1536
    assert layers == [matrices + 512 * 576] * 30
    assert head == 49152 * 576
    assert sizes(by_cost(layers, head, 2)) == [19, 11]


def test_experts_that_a_token_does_not_visit_cost_nothing():
    from transformers import MixtralConfig

    config = MixtralConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        num_local_experts=8, num_experts_per_tok=2, vocab_size=64,
    )  # fmt: skip
    (layer,), _ = costs(config, tokens=16)
    assert layer == 32 * (32 + 16 + 16 + 32) + 8 * 32 + 2 * (3 * 32 * 64) + 16 * 32


def test_layers_that_are_told():
    assert sizes(as_told([19, 11], 30)) == [19, 11]
    for counts in ([19, 10], [30, 0], []):
        with pytest.raises(ValueError, match=r"do not make the model's 30"):
            as_told(counts, 30)


def test_every_stage_is_at_one_process():
    for schedule in SCHEDULES.values():
        num_stages = 8 if schedule.several_stages else 4
        places = {n: schedule.process_of(n, 4, num_stages) for n in range(num_stages)}
        for process in range(4):
            numbers = schedule.stages_of(process, 4, num_stages)
            assert numbers == sorted(n for n, place in places.items() if place == process)
    assert find_schedule("zbv").stages_of(0, 4, 8) == [0, 7]


@pytest.mark.parametrize(
    ("name", "processes", "stages", "micro_batches", "message"),
    [
        ("1f1b", 4, 4, 3, "at least as many micro-batches as processes"),
        ("gpipe", 2, 4, 4, "1 stage a process, not 2"),
        ("zbv", 2, 6, 4, "exactly 2 stages a process, not 3"),
        ("interleaved_1f1b", 4, 4, 4, "at least 2 stages a process"),
        ("interleaved_1f1b", 4, 8, 9, "rounds of 4: 9 does not, 8 does"),
        ("dualpipev", 2, 4, 3, r"as stages \(4\), not 3"),
        ("gpipe", 2, 2, 0, "at least 1 micro-batch"),
        ("gpipe", 2, 3, 4, "3 stages cannot be shared evenly by 2 processes"),
    ],
)
def test_what_a_schedule_cannot_do_is_refused_with_the_numbers(name, processes, stages, micro_batches, message):
    with pytest.raises(ValueError, match=message):
        check_fits(find_schedule(name), processes, stages, micro_batches)


def test_an_unknown_schedule_lists_the_known():
    with pytest.raises(ValueError, match=r"zero_bubbles.*zbv"):
        find_schedule("zero_bubbles")


def test_plans():
    from transformers import LlamaConfig

    config = LlamaConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=6, num_attention_heads=2, vocab_size=50
    )
    assert Plan(2, schedule="zbv").num_stages == 4
    assert sizes(Plan(2, layers="count").cuts(config, 8)) == [3, 3]
    assert sizes(Plan(2, layers=[4, 2]).cuts(config, 8)) == [4, 2]
    Plan(2, data_parallel=3).check(6)
    with pytest.raises(ValueError, match="need 6 processes, not 4; start so many with torchrun"):
        Plan(2, data_parallel=3).check(4)
    with pytest.raises(ValueError, match="told for 2 stages, but there are 3"):
        Plan(3, layers=[4, 2]).cuts(config, 8)
    with pytest.raises(ValueError, match="6 layers cannot make 7 stages"):
        Plan(7).cuts(config, 8)
    with pytest.raises(ValueError, match="not 'even'"):
        Plan(2, layers="even").cuts(config, 8)
    with pytest.raises(ValueError, match="each must be at least 1"):
        Plan(0).check(0)

"""Shards, states and micro-batches in flight: against the tables of papers and arithmetic by hand."""

from __future__ import annotations

import dataclasses

import pytest

from training.estimate.memory import (
    DDP,
    FSDP,
    LIBRARIES,
    NONE,
    ZERO1,
    ZERO2,
    ZERO3,
    Sharing,
    flight,
    of_process,
    optimizer_bytes,
    weight_bytes,
)
from training.estimate.orders import BACKWARD, FORWARD, INPUT, WEIGHT, Action
from training.estimate.parameters import Size
from training.estimate.tracing import Needs, Work

NOTHING = Needs(0, 0, (0, 0, 0), (0, 0, 0))
WORK = Work("{}", 1, 1, 1)
F, B, I, W = FORWARD, BACKWARD, INPUT, WEIGHT  # noqa: E741  # as papers call them


def order(stage: int, *actions: tuple[str, int]) -> list[Action]:
    return [Action(stage, kind, number) for kind, number in actions]


@pytest.mark.parametrize(("kind", "gigabytes"), [(ZERO1, 31.4), (ZERO2, 16.6), (ZERO3, 1.88)])
def test_zero_as_in_its_paper(kind, gigabytes):
    # Rajbhandari et al. 2020, figure 1: 7.5 billion parameters, 64 processes, Adam with 16-bit weights.
    size = Size(7_500_000_000, 7_500_000_000)
    work = dataclasses.replace(WORK, dtype="bfloat16")
    one = of_process(
        {0: size}, {0: NOTHING}, order(0, (F, 0), (B, 0)), work, "adamw_torch_fused", "cuda", sharing=Sharing(kind, 64)
    )
    assert (one.weights + one.gradients + one.optimizer) / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_one_process_and_its_copies():
    size = Size(1000, 1000, largest=100)
    one = of_process({0: size}, {0: NOTHING}, order(0, (F, 0), (B, 0)), WORK, "adamw_torch", "cpu")
    assert (one.weights, one.gradients, one.optimizer) == (4000, 4000, 8000)
    assert one.peak - LIBRARIES["cpu"] == pytest.approx(16000 + 2 * 100 * 4)  # two temporaries of the largest tensor
    two = of_process(
        {0: size}, {0: NOTHING}, order(0, (F, 0), (B, 0)), WORK, "adamw_torch", "cpu", sharing=Sharing(DDP, 2)
    )
    assert two.peak - one.peak == pytest.approx(4000)  # buckets
    shared = of_process(
        {0: size}, {0: NOTHING}, order(0, (F, 0), (B, 0)), WORK, "adamw_torch", "cpu", sharing=Sharing(FSDP, 4)
    )
    assert (shared.weights, shared.gradients, shared.optimizer) == (1000, 1000, 2000)


def test_offloaded_states_are_the_hosts():
    sharing = Sharing(ZERO2, 2, offload=True)
    work = dataclasses.replace(WORK, dtype="bfloat16")
    one = of_process(
        {0: Size(1000, 1000)}, {0: NOTHING}, order(0, (F, 0), (B, 0)), work, "adamw_torch", "cuda", sharing=sharing
    )
    assert (one.optimizer, one.host) == (0, 6000)


def test_weights_under_adapters():
    size = Size(1000, 100, packable=800)
    half = dataclasses.replace(WORK, dtype="bfloat16", peft="{}")
    assert weight_bytes(size, half) == 900 * 2 + 100 * 4
    assert weight_bytes(size, dataclasses.replace(half, quantize="int8")) == 800 + 200 * 4
    # QLoRA: 4 bits, and 0.127 bits for the constants (Dettmers et al. 2023, section 3).
    assert weight_bytes(size, dataclasses.replace(half, quantize="int4")) == pytest.approx(800 * 4.127 / 8 + 800)


@pytest.mark.parametrize(
    ("name", "values"),
    [("adamw_torch", 8.0), ("adamw_bnb_8bit", 2.03125), ("paged_adamw_32bit", 8.0), ("sgd", 0.0), ("lion_32bit", 4.0),
     ("adafactor", 0.0), ("something_new", 8.0)],
)  # fmt: skip
def test_states_of_optimizers(name, values):
    assert optimizer_bytes(name, 1, 4) == pytest.approx(values)


def test_micro_batches_in_flight_by_hand():
    need = Needs(kept=10, between=14, first=(12, 15, 11), later=(13, 12, 11))
    # Two held while the first goes back without gradients before it; then gradients of 5 stay, and the peak is 13.
    most, peak = flight(order(0, (F, 0), (F, 1), (B, 0), (F, 2), (B, 1), (B, 2)), {0: need}, {0: 5})
    assert (most, peak) == (20, 10 + 5 + 13)
    most, peak = flight(order(0, (F, 0), (B, 0)), {0: need}, {0: 5})
    assert (most, peak) == (10, 15)
    # Apart: 14 are kept for the gradients of weights, beside the 10 of the next micro-batch.
    most, peak = flight(order(0, (F, 0), (I, 0), (F, 1), (W, 0), (I, 1), (W, 1)), {0: need}, {0: 5})
    assert (most, peak) == (24, 10 + 15)


def test_a_single_process_shares_nothing():
    assert Sharing().kind == NONE

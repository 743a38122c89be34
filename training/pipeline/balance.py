"""Which layers go to which stage: as many each, as told, or so that the slowest stage is as fast as can be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def by_count(num_layers: int, num_stages: int) -> list[range]:
    """Equal shares. Where they cannot be, some have one layer more: never the last stage, which has the head."""
    _check(num_layers, num_stages)
    share, more = divmod(num_layers, num_stages)
    first = max(num_stages - 1 - more, 0)
    return as_told([share + (first <= number < first + more) for number in range(num_stages)], num_layers)


def as_told(counts: Sequence[int], num_layers: int) -> list[range]:
    """Stages of so many layers each. Raises ValueError where these are not all layers of the model."""
    if sum(counts) != num_layers or min(counts, default=0) < 1:
        raise ValueError(f"stages of {list(counts)} layers do not make the model's {num_layers}; each needs at least 1")
    ends = [sum(counts[: number + 1]) for number in range(len(counts))]
    return [range(end - count, end) for count, end in zip(counts, ends, strict=True)]


def by_cost(layer_costs: Sequence[float], head_cost: float, num_stages: int) -> list[range]:
    """The split whose most expensive stage is cheapest; among such the one whose squared costs sum up to least.

    Costs are in any one unit; the embedding is a look-up and has none. Dynamic programming over (stages, layers):
    best[s][l] is the best split of the first l layers into s stages.
    """
    num_layers = len(layer_costs)
    _check(num_layers, num_stages)
    sums = [0.0]
    for cost in layer_costs:
        sums.append(sums[-1] + cost)
    best: dict[int, tuple[float, float, tuple[int, ...]]] = {0: (0.0, 0.0, ())}
    for stage in range(1, num_stages + 1):
        last = stage == num_stages
        now: dict[int, tuple[float, float, tuple[int, ...]]] = {}
        for end in range(stage, num_layers - (num_stages - stage) + 1):
            options = []
            for start, (worst, squares, counts) in best.items():
                if start < end:
                    cost = sums[end] - sums[start] + (head_cost if last else 0.0)
                    options.append((max(worst, cost), squares + cost * cost, (*counts, end - start)))
            if options:
                now[end] = min(options)
        best = now
    return as_told(best[num_layers][2], num_layers)


def costs(config: Any, tokens: int) -> tuple[list[float], float]:
    """(of each layer, of the head) of the model that `config` describes: multiplications a token, forward.

    A matrix costs its size; attention over T tokens in causal order costs about T times the width besides (T/2 for the
    scores, T/2 for their values). Of a mixture of experts only those count that a token goes to.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from training.pipeline.anatomy import anatomy_of

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    anatomy = anatomy_of(model)
    used, experts = getattr(config, "num_experts_per_tok", None), _num_experts(config)
    share = used / experts if used and experts else 1.0
    layers = []
    for layer in model.get_submodule(anatomy.layers):
        cost = float(tokens * config.hidden_size)
        for name, weight in layer.named_parameters():
            if weight.ndim > 1:
                cost += weight.numel() * (share if ".experts." in f".{name}" else 1.0)
        layers.append(cost)
    return layers, float(model.get_output_embeddings().weight.numel())


def _num_experts(config: Any) -> int | None:
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    return next((getattr(config, name) for name in names if getattr(config, name, None)), None)


def _check(num_layers: int, num_stages: int) -> None:
    if not 1 <= num_stages <= num_layers:
        raise ValueError(
            f"{num_layers} layers cannot make {num_stages} stages; between 1 and {num_layers} are possible"
        )

"""What a micro-batch takes beside the weights, asked of PyTorch itself: layers of a model run forward and backward on
tensors that have shapes and no values (FakeTensor), while every storage that comes and goes is counted.

So nothing is assumed of what a layer keeps for its backward pass, of checkpointing, autocast or an adapter; a formula
such as Korthikanti et al. 2022, eq. 2 (s b h (34 + 5 a s / h) bytes a layer) holds for one kind of layer and precision.
Two small models, of 2 and of 3 layers, are run: what they take grows evenly with each layer. Kernels are those of a
CPU; those of a GPU keep the same tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from training.config.schema import ModelConfig, PeftConfig, Quantize
from training.estimate.meter import Meter

if TYPE_CHECKING:
    import torch

    from training.pipeline.stages import Stage

# Under this name transformers makes no mask. Rows that are not packed need none, which it cannot see in fake tensors.
_CAUSAL = "parley_causal"


@dataclass(frozen=True)
class Work:
    """A micro-batch of `rows` x `tokens`, of which `loss_tokens` have a loss, through layers of the model `config` (its
    JSON), with the embedding where they are the `first`, with the head where they are the `last`.

    `dtype` is the weights', `precision` what is computed in (autocast), `attention` transformers' attn_implementation,
    `peft` an adapter's settings (JSON). `scores` is a number a row in place of logits. `splits_backward`: gradients of
    weights are computed apart from those of activations.
    """

    config: str
    rows: int
    tokens: int
    loss_tokens: int
    first: bool = True
    last: bool = True
    dtype: str = "float32"
    precision: str | None = None
    checkpointing: bool = False
    attention: str = "sdpa"
    packed: bool = False
    peft: str | None = None
    quantize: str = "none"
    scores: bool = False
    splits_backward: bool = False


@dataclass(frozen=True)
class Needs:
    """Bytes beside weights and received tensors.

    `kept`: from a forward to its backward pass. `between`: kept from the backward pass of activations to that of
    weights, where they are apart. `first`: peaks of forward and backward where no gradients were before, those that
    come included: at the head, in the last layer, in the first layer with the embedding. `later`: the same peaks where
    all gradients are there already, without these.
    """

    kept: float
    between: float
    first: tuple[float, float, float]
    later: tuple[float, float, float]


def needs(work: Work, num_layers: int) -> Needs:
    """What `work` needs with `num_layers` layers. Raises ValueError for models that cannot be cut (see anatomy.py), and
    for those that do not run without values."""
    try:
        two, three = _traced(work, 2), _traced(work, 3)
    except (RuntimeError, TypeError, LookupError, AttributeError) as error:
        kind, reason = json.loads(work.config)["model_type"], str(error).strip().splitlines()[0]
        raise ValueError(f"there is no estimate for a model of type {kind}: it cannot be traced ({reason})") from error

    def with_layers(small: float, large: float) -> float:
        return small + (large - small) * (num_layers - 2)

    def peaks(small: tuple[float, float, float], large: tuple[float, float, float]) -> tuple[float, float, float]:
        end, last, first = (with_layers(*each) for each in zip(small, large, strict=True))
        return end, last, first

    return Needs(
        with_layers(two.kept, three.kept),
        with_layers(two.between, three.between),
        peaks(two.first, three.first),
        peaks(two.later, three.later),
    )


@cache
def _traced(work: Work, num_layers: int) -> Needs:
    """What `num_layers` layers need: two micro-batches are run, the first without gradients before it."""
    import torch
    from torch._subclasses import FakeTensorMode

    stage = _stage(work, num_layers)
    with FakeTensorMode():
        _on_fake_tensors(stage)
        parameters = list(stage.parameters())
        x, came_BTH = _input(work, stage), None
        if not work.last:
            came_BTH = torch.empty(work.rows, work.tokens, stage.bare.config.hidden_size, dtype=stage.dtype)
        meter = Meter()
        for each in parameters:
            meter.add(each)
        still = meter.live
        with meter.watching():
            kept, _, first = _micro_batch(work, stage, x, came_BTH, meter)
            gradients = sum(each.grad.nbytes for each in parameters if each.grad is not None)
            _, between, later = _micro_batch(work, stage, x, came_BTH, meter)
    there = still + gradients
    return Needs(
        kept - still,
        max(between - there, 0),
        (first[0] - still, first[1] - still, first[2] - still),
        (later[0] - there, later[1] - there, later[2] - there),
    )


def _micro_batch(
    work: Work, stage: Stage, x: torch.Tensor, came_BTH: torch.Tensor | None, meter: Meter
) -> tuple[int, int, tuple[int, int, int]]:
    """(live after the forward pass, live between the two backward passes, peaks at the head, in the last layer, in the
    first); `came_BTH` are the gradients that come from the next stage."""
    peaks: list[int] = []

    def begin_next(_: Any = None) -> None:
        """What follows is a part of the backward pass of its own."""
        peaks.append(meter.peak)
        meter.peak = meter.live

    meter.peak = meter.live
    with _marked(work, stage, begin_next):
        made = _result(work, stage, x)
        kept = between = meter.live
        if work.splits_backward and not work.first:  # the first stage does all at the end: nothing waits for it
            between = _split_backward(stage, x, made, came_BTH, meter)
        else:
            made.backward(came_BTH)
    begin_next()
    x.grad = None
    end, *layers = peaks if work.last else [0, *peaks]
    return kept, between, (end, layers[0], max(layers[-2:]))


def _split_backward(
    stage: Stage, x: torch.Tensor, made: torch.Tensor, came_BTH: torch.Tensor | None, meter: Meter
) -> int:
    """As torch's pipelining does it; bytes that live between the two parts."""
    from torch.distributed.pipelining._backward import stage_backward_input, stage_backward_weight

    came = None if came_BTH is None else [came_BTH]
    _, groups = stage_backward_input([made], came, [x], stage.parameters())
    x.grad = None
    between = meter.live
    stage_backward_weight(stage.parameters(), groups)
    return between


def _result(work: Work, stage: Stage, x: torch.Tensor) -> torch.Tensor:
    """The loss of the last layers, else hidden states."""
    import torch

    from training.objective import negative_log_likelihood

    more = {"position_ids": torch.zeros(work.rows, work.tokens, dtype=torch.int64)} if work.packed else {}
    made: torch.Tensor = stage(x, **more)
    if not work.last:
        return made
    return negative_log_likelihood(made, torch.zeros(made.shape[0], dtype=torch.int64))


@contextmanager
def _marked(work: Work, stage: Stage, begin_next: Callable[[Any], None]) -> Iterator[None]:
    """Call `begin_next` whenever the gradient leaves the head or a layer. The head sees the positions with a loss
    alone, as in training."""
    from torch import nn

    def enter(_: Any, args: tuple[torch.Tensor, ...]) -> None:
        if args and args[0].requires_grad:
            args[0].register_hook(begin_next)

    def enter_head(_: Any, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        enter(None, args)
        chosen = args[0].reshape(-1, args[0].shape[-1])[: 1 if work.scores else work.loss_tokens].clone()
        return (chosen, *args[1:])

    bare = stage.bare
    (layers,) = (each for each in bare.get_decoder().children() if isinstance(each, nn.ModuleList))
    handles = [each.register_forward_pre_hook(enter) for each in layers]
    if work.last:
        handles.append(bare.get_output_embeddings().register_forward_pre_hook(enter_head))
    try:
        yield
    finally:
        for each in handles:
            each.remove()


def _input(work: Work, stage: Stage) -> torch.Tensor:
    import torch

    if work.first:
        return torch.zeros(work.rows, work.tokens, dtype=torch.int64)
    width = stage.bare.config.hidden_size
    return torch.zeros(work.rows, work.tokens, width, dtype=stage.dtype).requires_grad_()


def _stage(work: Work, num_layers: int) -> Stage:
    """`num_layers` layers as training opens them, without memory for weights."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    from training.pipeline.stages import build_stage

    config = config_of(work.config)
    start = 0 if work.first else 1
    set_num_layers(config, start + num_layers + (0 if work.last else 1))
    dtype = torch.bfloat16 if work.quantize != "none" else getattr(torch, work.dtype)
    attention = "eager" if work.attention == "eager" else "sdpa"  # any other keeps what this does
    stage = build_stage(config, range(start, start + num_layers), dtype, attention)
    if attention == "sdpa" and not work.packed and stage.bare._supports_attention_backend:
        ALL_ATTENTION_FUNCTIONS.register(_CAUSAL, sdpa_attention_forward)
        stage.bare.config._attn_implementation = _CAUSAL
    adapt(stage, work.peft, work.quantize)
    if work.precision:
        stage.precision = getattr(torch, work.precision)
    if work.checkpointing:
        stage.bare.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    stage.train()
    return stage


def _on_fake_tensors(stage: Stage) -> None:
    """Give every weight and buffer a fake tensor of its kind; to be called within FakeTensorMode."""
    import torch

    from training.pipeline.stages import tie

    for module in stage.modules():
        for name, each in module.named_parameters(recurse=False):
            fake = torch.empty(each.shape, dtype=each.dtype)
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=each.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
    if stage.is_first and stage.is_last:
        tie(stage, stage)


def adapt(stage: Stage, peft: str | None, quantize: str = "none") -> None:
    """Put the stage's model under the adapter that `peft` (JSON of PeftConfig) describes. Raises ValueError where PEFT
    does."""
    import torch

    from training.adapters import add_adapter

    if peft is None:
        return
    if quantize != "none":  # as peft's prepare_model_for_kbit_training: what is not quantised is kept in float32
        for module in stage.modules():
            for parameter in module.parameters(recurse=False):
                if not is_quantised(stage, module):
                    parameter.data = parameter.data.float()
        stage.model.requires_grad_(False)
    with torch.device("meta"):
        stage.model = add_adapter(stage.model, PeftConfig(**json.loads(peft)), ModelConfig(quantize=Quantize.none))


def is_quantised(stage: Stage, module: Any) -> bool:
    """Whether bitsandbytes would take this module: linear layers but the head."""
    import torch

    head = stage.bare.get_output_embeddings()
    return isinstance(module, torch.nn.Linear) and module is not head


def config_of(text: str) -> Any:
    """transformers' configuration from its JSON."""
    from transformers import AutoConfig

    settings = json.loads(text)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def set_num_layers(config: Any, num_layers: int) -> None:
    """Cut `config` to its first `num_layers` layers, or lengthen it by repeating the last."""
    from training.pipeline.stages import per_layer_lists

    for name, value in per_layer_lists(config).items():
        setattr(config, name, (list(value) + [value[-1]] * num_layers)[:num_layers])
    config.num_hidden_layers = num_layers

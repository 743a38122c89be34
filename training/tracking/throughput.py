"""How fast a run is: tokens a second, the share of the device's peak that this is (MFU), and peak memory.

Model FLOPs utilization is that of PaLM (Chowdhery et al. 2022, appendix B): the operations that the model itself needs,
6 N + 12 L H Q T a token for forward and backward (N parameters, L layers, H heads of Q dimensions, T tokens in the
row), over what the devices could do at their peak. Recomputation and padding count as nothing gained.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Words in a GPU's name -> peak in TFLOP/s: dense bf16 with fp32 accumulation (T4 and V100, which lack bf16: fp16).
# More words go first. From NVIDIA's data sheets of H200, H100, A100, V100, A10, L4 and T4 (the figures "with sparsity"
# halved) and the white papers "Ada GPU architecture" and "Ampere GA102 GPU architecture" (RTX 4090, 3090).
PEAK_TFLOPS: tuple[tuple[frozenset[str], float], ...] = (
    (frozenset({"h200", "nvl"}), 835.5),
    (frozenset({"h200"}), 989.4),
    (frozenset({"h100", "nvl"}), 835.5),
    (frozenset({"h100", "pcie"}), 756.5),
    (frozenset({"h100"}), 989.4),
    (frozenset({"a100"}), 312.0),
    (frozenset({"v100", "pcie"}), 112.0),
    (frozenset({"v100"}), 125.0),
    (frozenset({"a10"}), 125.0),
    (frozenset({"l4"}), 121.0),
    (frozenset({"t4"}), 65.0),
    (frozenset({"4090"}), 165.2),
    (frozenset({"3090"}), 71.0),
)
_OTHER_CHIPS = frozenset({"laptop", "mobile", "mig", "ti", "super", "d"})  # an RTX 4090 D, a slice of an A100


def peak_tflops(device_name: str) -> float | None:
    """The peak of a GPU by the name that torch gives it, in TFLOP/s; None where it is not known."""
    words = frozenset(re.findall(r"[a-z0-9]+", device_name.lower()))
    if words & _OTHER_CHIPS:
        return None
    return next((peak for known, peak in PEAK_TFLOPS if known <= words), None)


@dataclass(frozen=True)
class ModelFlops:
    """What training takes, in floating-point operations (a multiplication and an addition are two)."""

    per_token: float
    per_pair: float  # a token and a position that it could attend to: 12 L H Q

    def total(self, num_tokens: float, num_pairs: float) -> float:
        """Operations for tokens that have so many pairs (tokens x length of their row) in all."""
        return self.per_token * num_tokens + self.per_pair * num_pairs


def model_flops(model: Any) -> ModelFlops | None:
    """What a step of this model takes; ask before it is sharded. None for mixtures of experts and encoder-decoders,
    where a token does not pass through all parameters.

    A parameter that is trained takes 6 operations a token (2 forward, 2 for the gradient of its input, 2 for its own);
    a frozen one, as under LoRA, 4. A look-up in an embedding takes none, unless it is the output layer as well.
    """
    import torch

    config = model.config
    experts = (getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    heads, layers = (getattr(config, name, None) for name in ("num_attention_heads", "num_hidden_layers"))
    if config.is_encoder_decoder or any(experts) or not isinstance(heads, int) or not isinstance(layers, int):
        return None
    looked_up = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Embedding)}
    multiplied = {id(each.weight) for each in model.modules() if isinstance(each, torch.nn.Linear)}
    per_token = sum(
        (6 if parameter.requires_grad else 4) * _num_values(parameter)
        for parameter in model.parameters()
        if id(parameter) not in looked_up - multiplied
    )
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelFlops(per_token, 12 * layers * heads * head_size)


def _num_values(parameter: Any) -> int:
    """The number of weights, also where two are packed into a byte (bitsandbytes' 4 bits)."""
    shape = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return int(parameter.numel() if shape is None else shape.numel())


@dataclass
class TokenMeter:
    """Counts the tokens of this process between two lines of the log."""

    num_tokens: int = 0
    num_loss_tokens: int = 0
    num_pairs: int = 0

    def add(self, num_tokens: int, num_loss_tokens: int, seq_len: int = 0) -> None:
        """A micro-batch: its tokens without padding, those of them that have a loss, and the length of its rows.

        Numbers, not tensors: to fetch one from a GPU would wait for it. Without `seq_len` attention is not counted.
        """
        self.num_tokens += num_tokens
        self.num_loss_tokens += num_loss_tokens
        self.num_pairs += num_tokens * seq_len

    def take(self) -> tuple[int, int, int]:
        """(tokens, tokens with a loss, pairs) since the last call: to be summed over the processes."""
        counts = (self.num_tokens, self.num_loss_tokens, self.num_pairs)
        self.num_tokens = self.num_loss_tokens = self.num_pairs = 0
        return counts


class Throughput:
    """Turns counts into rates, over the time spent training: evaluations and checkpoints are taken out.

    `flops` is from `model_flops`; `peak_tflops` is the devices' together, None where it is not known. `clock` is in
    seconds. `training/tracking/callbacks.py` calls `start`, `worked` and `rested`, the trainer calls `rates`.
    """

    def __init__(
        self,
        flops: ModelFlops | None = None,
        peak_tflops: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._flops, self._peak, self._clock = flops, peak_tflops, clock
        self.start()

    def start(self) -> None:
        """The clock starts to run."""
        self._since = self._last_worked = self._clock()
        self._rested = 0.0

    def worked(self) -> None:
        """A step has ended."""
        self._last_worked = self._clock()

    def rested(self) -> None:
        """What was done since the last step, or the last call of this, was no training."""
        now = self._clock()
        self._rested += now - self._last_worked
        self._last_worked = now

    def rates(self, num_tokens: int, num_loss_tokens: int, num_pairs: int = 0) -> dict[str, float]:
        """What to log of the time since the last call, from counts summed over all processes.

        `tokens_per_second` and `loss_tokens_per_second`; `mfu` from 0 to 1, where FLOPs and peak are known; and this
        process's peak memory so far: `memory_gib`, and `gpu_memory_gib` where there is a GPU.
        """
        seconds = max(self._clock() - self._since - self._rested, 1e-9)
        self.start()
        rates = {"tokens_per_second": num_tokens / seconds, "loss_tokens_per_second": num_loss_tokens / seconds}
        if self._flops and self._peak:
            rates["mfu"] = self._flops.total(num_tokens, num_pairs) / seconds / (self._peak * 1e12)
        return rates | peak_memory()


def peak_memory() -> dict[str, float]:
    """The most that this process has had so far, in GiB: `memory_gib`, and `gpu_memory_gib` where torch uses a GPU."""
    peak = {"memory_gib": _peak_bytes() / 2**30}
    torch = sys.modules.get("torch")  # without torch in this process there is nothing on a GPU
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return peak


def _peak_bytes() -> int:
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    # Linux counts in KiB, macOS in bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

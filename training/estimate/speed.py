"""How long a step takes on a device: the operations it needs over what the device does a second.

A device's speed is a share of its peak (MFU). For GPUs the peaks are those of training/tracking/throughput.py, and the
share is 0.4: Grattafiori et al. 2024 (Llama 3, table 4) report 0.38 to 0.43, Chowdhery et al. 2022 (PaLM) 0.46. On a
CPU both are measured: matrices are multiplied for a moment, and training comes to about 0.8 of that rate.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

GPU_SHARE, CPU_SHARE = 0.4, 0.8


@dataclass(frozen=True)
class Device:
    """`kind`: cpu or cuda. `memory`: bytes of one process, None where that is not known. `operations`: floating-point
    operations a second that training gets out of it; None where that is not known."""

    kind: str
    name: str
    memory: float | None = None
    operations: float | None = None


def find_device(name: str | None, processes_here: int, peak: float | None, is_low_precision: bool) -> Device:
    """The device that a run would be on, as `model.device` says; `processes_here` share a CPU. `peak` in TFLOP/s is
    told, else looked up; known peaks are those of 16-bit numbers (`is_low_precision`)."""
    import torch

    from common.devices import choose_device
    from training.tracking.throughput import peak_tflops

    device = choose_device(name)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        peak = peak or (peak_tflops(properties.name) if is_low_precision else None)
        return Device("cuda", properties.name, properties.total_memory, peak and peak * 1e12 * GPU_SHARE)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    rate = peak * 1e12 if peak else matmul_rate() / max(processes_here, 1)
    return Device("cpu", "CPU", memory and memory / max(processes_here, 1), rate * CPU_SHARE)


def matmul_rate(seconds: float = 0.3) -> float:
    """Floating-point operations a second of this CPU at matrices of a layer's size, with all threads that torch has."""
    import torch

    a, b = torch.ones(512, 1024), torch.ones(1024, 1024)
    a @ b
    num, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        a @ b
        num += 1
    return num * 2 * 512 * 1024 * 1024 / (time.perf_counter() - began)

"""Rates against hand arithmetic, FLOPs against torch's own counter."""

from __future__ import annotations

import pytest

from training.tracking.throughput import ModelFlops, Throughput, TokenMeter, model_flops, peak_memory, peak_tflops


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def llama(**settings):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 6}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "eager"}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, **settings))


def counted_flops(model, seq_len=48, rows=2):
    """A forward and backward pass, counted by torch operation by operation, per token."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 100, (rows, seq_len))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return counter.get_total_flops() / ids.numel()


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied):
    model = llama(tie_word_embeddings=tied)
    assert model_flops(model).total(1, 48) == pytest.approx(counted_flops(model), rel=0.01)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # inside peft
def test_flops_under_lora_are_those_that_torch_counts():
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(llama(), LoraConfig(r=4, target_modules="all-linear"))
    # Below the first adapter no gradient is passed on: the gap is less than a layer of six.
    assert model_flops(model).total(1, 48) == pytest.approx(counted_flops(model), rel=0.05)
    assert model_flops(model).per_token < 0.8 * model_flops(llama()).per_token


def test_flops_by_hand():
    flops = ModelFlops(per_token=6 * 1000, per_pair=12 * 2 * 4 * 8)
    assert flops.total(10, 10 * 16) == 10 * (6000 + 12 * 2 * 4 * 8 * 16)


def test_a_model_whose_tokens_do_not_pass_all_parameters_has_no_mfu():
    from transformers import MixtralConfig, MixtralForCausalLM, T5Config, T5ForConditionalGeneration

    t5 = T5ForConditionalGeneration(T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    small = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    mixtral = MixtralForCausalLM(MixtralConfig(**small, num_attention_heads=2, num_key_value_heads=1))
    assert model_flops(t5) is None
    assert model_flops(mixtral) is None


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("Tesla T4", 65),
        ("NVIDIA L4", 121),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", None),
        ("NVIDIA L40S", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA GH200 480GB", None),
        ("AMD EPYC", None),
    ],
)
def test_peaks_by_the_names_that_torch_gives(name, peak):
    assert peak_tflops(name) == peak


def test_the_meter_starts_anew_after_each_look():
    meter = TokenMeter()
    meter.add(100, 40, seq_len=50)
    meter.add(10, 5, seq_len=20)
    assert meter.take() == (110, 45, 5200)
    assert meter.take() == (0, 0, 0)


def test_rates_by_hand():
    clock = Clock()
    throughput = Throughput(ModelFlops(per_token=2e9, per_pair=1e6), peak_tflops=1.0, clock=clock)
    clock.now += 4
    rates = throughput.rates(1000, 250, 500_000)
    assert rates["tokens_per_second"] == 250
    assert rates["loss_tokens_per_second"] == 62.5
    assert rates["mfu"] == pytest.approx((1000 * 2e9 + 500_000 * 1e6) / 4 / 1e12)


def test_evaluations_and_checkpoints_do_not_count():
    clock = Clock()
    throughput = Throughput(clock=clock)
    clock.now += 2
    throughput.worked()
    clock.now += 50  # an evaluation
    throughput.rested()
    clock.now += 7  # a checkpoint right after it
    throughput.rested()
    clock.now += 3
    throughput.worked()
    assert throughput.rates(100, 0)["tokens_per_second"] == pytest.approx(100 / 5)
    clock.now += 30  # a checkpoint after the log
    throughput.rested()
    clock.now += 2
    assert throughput.rates(100, 0)["tokens_per_second"] == pytest.approx(100 / 2)


def test_no_mfu_without_a_peak():
    assert "mfu" not in Throughput(ModelFlops(1, 1)).rates(1, 1)


def test_peak_memory_grows_by_what_is_taken():
    before = peak_memory()["memory_gib"]
    block = bytearray(300 << 20)
    block[::4096] = b"x" * len(block[::4096])
    grown = peak_memory()["memory_gib"] - before
    assert 0.0 <= grown < 0.6
    assert peak_memory()["memory_gib"] > 300 / 1024

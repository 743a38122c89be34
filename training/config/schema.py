"""What a run can be told, as dataclasses: the keys of `python training/main.py KEY=VALUE ...`, types and defaults.

Hydra checks names and types against these before anything loads. A section is a dataclass, a key `section.name`;
`model=X` and `data=X` are short for `model.name=X` and `data.train=X`. docs/training-reference.md is made from this
file: the comment after a key is its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Optional

# OmegaConf reads these annotations at run time, and on Python 3.10 only knows `Optional[X]`.
# ruff: noqa: UP045


class Dtype(str, Enum):
    """Numbers the weights are kept in. Training in `float32` with `trainer.precision=bf16` is the usual mix."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class Precision(str, Enum):
    """Numbers that are computed with, where they may differ from those the weights are kept in (autocast)."""

    full = "full"
    bf16 = "bf16"
    fp16 = "fp16"


class Quantize(str, Enum):
    """How the frozen weights under an adapter are loaded (bitsandbytes, on CUDA)."""

    none = "none"
    int8 = "int8"
    int4 = "int4"


class TrainOn(str, Enum):
    """Which tokens of a conversation have a loss: all replies with their ends, the last reply alone, or every token."""

    replies = "replies"
    last = "last"
    all = "all"


class TooLong(str, Enum):
    """What happens to an example that is too long even after its oldest turns are dropped."""

    cut = "cut"
    drop = "drop"


class OnBadRow(str, Enum):
    """What happens to a row that cannot be read as what the method needs."""

    error = "error"
    skip = "skip"


class FolderNames(str, Enum):
    """How checkpoint folders are called: `step-000100`, or Speaker's `0_100` (epoch_step) and `0` (an epoch's end)."""

    step = "step"
    epoch_step = "epoch_step"


class Keep(str, Enum):
    """Which weights become the run's model: those of the last step, or of the lowest evaluation loss."""

    last = "last"
    best = "best"


@dataclass
class ModelConfig:
    """The model that is trained."""

    name: str = ""  # a known name, a directory (of a model or an adapter), or a Hugging Face id
    from_scratch: bool = False  # random weights: only the configuration and the tokenizer of `name` are used
    config: dict[str, Any] = field(default_factory=dict)  # with from_scratch: changes to it, as num_hidden_layers
    tokenizer: Optional[str] = None  # of another model or directory
    template: Optional[str] = None  # a named chat template; without it the model's own, else human-assistant
    dtype: Dtype = Dtype.float32  # numbers the weights are kept in
    attention: str = "sdpa"  # transformers' attn_implementation: sdpa, eager, flash_attention_2
    quantize: Quantize = Quantize.none  # load frozen weights in 8 or 4 bits (needs peft)
    device: Optional[str] = None  # cpu, cuda; without it the GPU, where there is one


@dataclass
class PeftConfig:
    """Parameter-efficient finetuning: an adapter is trained, the model stays as it is."""

    name: Optional[str] = (
        None  # none (the whole model), lora, or any of PEFT's names: ia3, prompt_tuning, p_tuning, ...
    )
    r: int = 16  # LoRA: rank
    alpha: float = 32.0  # LoRA: the update is scaled by alpha / r
    dropout: float = 0.0  # LoRA
    targets: Any = "all-linear"  # LoRA, IA3: layers by name, a list of names, or all-linear
    dora: bool = False  # LoRA: weight-decomposed (DoRA)
    options: dict[str, Any] = field(default_factory=dict)  # anything else that PEFT's config of this method takes


@dataclass
class DataConfig:
    """What it is trained on."""

    train: Any = None  # path:weight,path:weight or a list; files, folders, URLs, hf://owner/name
    eval: Any = None  # the same, for evaluation
    eval_fraction: float = 0.0  # without `eval`: this share of the examples is held out
    format: Optional[str] = None  # a format's name; without it each source's is found out
    columns: dict[str, str] = field(default_factory=dict)  # what columns are called there: {question: prompt}
    on_bad_row: OnBadRow = OnBadRow.error  # a row that cannot be read: stop, or skip and count
    max_length: int = 1024  # tokens of an example, at most; of a packed row or window, exactly
    too_long: TooLong = TooLong.cut  # an example over max_length after its oldest turns are dropped
    packing: bool = False  # several examples in a row of max_length, each seeing only itself
    train_on: TrainOn = TrainOn.replies  # all replies, the last one alone, or all tokens
    cache: Optional[str] = None  # where token files are kept; without it cache/tokens beside models/


@dataclass
class TrainerConfig:
    """How it is trained, and what is kept of it."""

    output: Optional[str] = None  # the run's directory; without it runs/METHOD-MODEL
    resume: str = "auto"  # auto (go on where the directory's last checkpoint ends), never, or a checkpoint
    overwrite: bool = False  # with resume=never: begin anew where a run is already
    seed: int = 42
    epochs: float = 3.0
    max_steps: Optional[int] = None  # beats epochs
    batch_size: int = 8  # examples (or packed rows) a step and process
    accumulate: int = 1  # gradients of this many batches are summed before a step
    lr: Optional[float] = None  # without it 2e-5, with an adapter 2e-4
    schedule: str = "cosine"  # transformers' schedulers: linear, cosine, constant, constant_with_warmup, ...
    schedule_options: dict[str, Any] = field(default_factory=dict)
    warmup: float = 0.03  # steps, or below 1 a share of all steps
    optimizer: str = "adamw_torch_fused"  # transformers' names: adamw_torch, adamw_bnb_8bit, adafactor, sgd, ...
    optimizer_options: Optional[str] = None  # key=value,key=value
    weight_decay: float = 0.0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    epsilon: float = 1e-8
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm; 0 is never
    precision: Precision = Precision.full
    gradient_checkpointing: bool = False  # less memory, a third more time
    compile: bool = False  # torch.compile
    log_every: int = 10  # steps
    eval_every: Optional[int] = None  # steps; without it at the end of each epoch, where there is evaluation data
    eval_at_start: bool = True
    early_stop: Optional[int] = None  # evaluations without a lower loss after which training ends
    samples: int = 2  # at each evaluation: answers to this many evaluation prompts, to look at
    sample_tokens: int = 64
    save_every: Optional[int] = 500  # steps; each epoch's end is saved as well
    save_epochs: bool = True
    keep_checkpoints: int = 2  # the newest so many; the best is kept besides
    folder_names: FolderNames = FolderNames.step
    keep: Keep = Keep.last  # the weights that become the run's model
    upload: Optional[str] = None  # a folder or fsspec URL to which checkpoints are copied
    report_to: list[str] = field(default_factory=list)  # tensorboard, wandb, trackio
    peak_tflops: Optional[float] = None  # of the device, for MFU; known for common GPUs


class DistributedMode(str, Enum):
    """What several processes do: each the whole model (or its shard of it, with fsdp or deepspeed), or some layers."""

    data = "data"
    pipeline = "pipeline"


@dataclass
class DistributedConfig:
    """Several processes: start with torchrun or accelerate launch."""

    mode: DistributedMode = DistributedMode.data  # pipeline: each process has some of the layers; see docs/pipeline.md
    stages: int = 2  # pipeline: parts that the layers are cut into
    stages_per_process: Optional[int] = None  # pipeline: without it 1, or 2 where the schedule wants several
    data_parallel: int = 1  # pipeline: so many pipelines side by side
    schedule: str = "1f1b"  # pipeline: gpipe, looped_bfs, interleaved_1f1b, interleaved_zero_bubble, zbv, dualpipev
    layers: Any = "cost"  # pipeline: how they are shared: cost, count, or a list of how many for each stage
    fsdp: dict[str, Any] = field(default_factory=dict)  # accelerate's FSDP2 settings, as {reshard_after_forward: true}
    deepspeed: Optional[str] = None  # a DeepSpeed JSON file: ZeRO-1, 2 or 3
    timeout_s: int = 1800


@dataclass
class Config:
    """A whole run."""

    method: Any = None  # the dataclass of the method: see training/methods/
    model: ModelConfig = field(default_factory=ModelConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    data: DataConfig = field(default_factory=DataConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

"""Our configuration in the words of transformers' TrainingArguments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from common.devices import choose_device

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import TrainingArguments

    from training.config.schema import Config

FULL_LR, ADAPTER_LR = 2e-5, 2e-4


def training_arguments(config: Config, run: Path, resumes: bool) -> TrainingArguments:
    """Arguments for `config`. Raises ValueError for names of optimizers and schedules that do not exist."""
    from transformers import SchedulerType, TrainingArguments
    from transformers.training_args import OptimizerNames

    trainer, precision = config.trainer, config.trainer.precision.value
    device = choose_device(config.model.device)
    _check_name("trainer.optimizer", trainer.optimizer, [each.value for each in OptimizerNames])
    _check_name("trainer.schedule", trainer.schedule, [each.value for each in SchedulerType])
    if device.type == "cpu" and precision == "fp16":
        raise ValueError("trainer.precision=fp16 needs a GPU; on a CPU full is fastest")
    more: dict[str, Any] = {}
    if config.distributed.fsdp and device.type == "cpu":
        raise ValueError("distributed.fsdp needs GPUs: accelerate shards nothing on CPUs; leave it out there")
    if config.distributed.fsdp:
        more |= {
            "fsdp": True,
            "fsdp_config": {"version": 2, "state_dict_type": "FULL_STATE_DICT", **config.distributed.fsdp},
        }
    if config.distributed.deepspeed:
        more["deepspeed"] = config.distributed.deepspeed
    pipelined = config.distributed.mode.value == "pipeline"
    # A pipeline is given the rows of a whole step, and does by itself what else the Trainer would.
    rows = trainer.batch_size * trainer.accumulate if pipelined else trainer.batch_size
    if trainer.gradient_checkpointing and not pipelined:
        more |= {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    try:
        return TrainingArguments(
            output_dir=str(run),
            per_device_train_batch_size=rows,
            per_device_eval_batch_size=rows,
            gradient_accumulation_steps=1 if pipelined else trainer.accumulate,
            num_train_epochs=trainer.epochs,
            max_steps=trainer.max_steps or -1,
            learning_rate=learning_rate(config),
            lr_scheduler_type=trainer.schedule,
            lr_scheduler_kwargs=trainer.schedule_options or None,
            warmup_steps=trainer.warmup,
            optim=trainer.optimizer,
            optim_args=trainer.optimizer_options,
            weight_decay=trainer.weight_decay,
            adam_beta1=trainer.betas[0],
            adam_beta2=trainer.betas[1],
            adam_epsilon=trainer.epsilon,
            max_grad_norm=trainer.max_grad_norm,
            bf16=precision == "bf16" and not pipelined,
            fp16=precision == "fp16" and not pipelined,
            torch_compile=trainer.compile,
            seed=trainer.seed,
            use_cpu=device.type == "cpu",
            logging_strategy="steps",
            logging_steps=trainer.log_every,
            logging_nan_inf_filter=False,
            eval_strategy="no",
            eval_on_start=trainer.eval_at_start and not resumes and evaluates(config),
            save_strategy="no",
            report_to="none",  # training/tracking/reporters.py does it
            run_name=run.name,
            remove_unused_columns=False,
            disable_tqdm=True,
            dataloader_pin_memory=device.type == "cuda",
            ddp_find_unused_parameters=False,
            ddp_timeout=config.distributed.timeout_s,
            **more,
        )
    except ImportError as error:
        raise ValueError(f"{error}") from None


def learning_rate(config: Config) -> float:
    """The rate asked for, or the usual one: an adapter learns at ten times the rate of a whole model."""
    if config.trainer.lr is not None:
        return config.trainer.lr
    return ADAPTER_LR if config.peft.name else FULL_LR


def evaluates(config: Config) -> bool:
    """Whether there is anything to evaluate on."""
    return bool(config.data.eval or config.data.eval_fraction)


def _check_name(key: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise ValueError(f"{key}={name} is unknown; choose one of: {', '.join(sorted(names))}")

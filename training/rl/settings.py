"""What methods share that learn from the model's own answers. A round is `prompts` x `samples` answers; it is learned
`passes` times, and counts as an epoch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from training.config.schema import Config

# OmegaConf reads these annotations at run time, and on Python 3.10 only knows `Optional[X]`.
# ruff: noqa: UP045


@dataclass
class RoundSettings:
    """Who scores, how much is written a round, and how it is sampled."""

    reward: Any = None  # a reward model, a server's http:// address, module:function, or a list of these
    weights: list[float] = field(default_factory=list)  # of several rewards; without it 1 each
    reward_length: Optional[int] = None  # tokens that reward models read; without it what they were trained with
    prompts: int = 16  # of a round
    samples: int = 1  # answers to each prompt
    new_tokens: int = 64  # of an answer, at most; its prompt has what this leaves of data.max_length
    temperature: float = 1.0
    top_k: int = 0  # only the likeliest so many tokens; 0 is all
    top_p: float = 1.0  # only the likeliest tokens that together have this probability
    rollout_batch: int = 16  # answers that are written at once
    server: Optional[str] = None  # http:// address of a vLLM server that writes the answers (needs peft=lora)
    passes: int = 1  # how often the answers of a round are learned
    max_kl: Optional[float] = 100.0  # nats an answer from the untrained model at which training stops; null is never


def check_rounds(config: Config, learned: int) -> None:
    """ValueError for impossible settings. `learned`: answers of a round that are learned."""
    settings, trainer = config.method, config.trainer
    for key in ("prompts", "samples", "new_tokens", "rollout_batch", "passes"):
        if getattr(settings, key) < 1:
            raise ValueError(f"method.{key}={getattr(settings, key)} must be at least 1")
    if not 0 < settings.temperature < float("inf"):
        raise ValueError(f"method.temperature={settings.temperature} must be more than 0")
    if not 0 < settings.top_p <= 1:
        raise ValueError(f"method.top_p={settings.top_p} must be more than 0 and at most 1")
    if settings.top_k < 0:
        raise ValueError(f"method.top_k={settings.top_k} must be 0 or more")
    if settings.max_kl is not None and not settings.max_kl > 0:
        raise ValueError(f"method.max_kl={settings.max_kl} must be more than 0; null is no limit")
    if settings.server is not None:
        _check_served(config)
    if settings.new_tokens >= config.data.max_length:
        raise ValueError(
            f"method.new_tokens={settings.new_tokens} leaves no room for a prompt within "
            f"data.max_length={config.data.max_length}; raise that"
        )
    if config.distributed.fsdp or config.distributed.deepspeed:
        raise ValueError(
            f"method={settings.name} writes answers with the whole model in each process; leave out "
            "distributed.fsdp and distributed.deepspeed"
        )
    from training.processes import num_processes

    step = trainer.batch_size * trainer.accumulate * num_processes()
    if learned % step:
        raise ValueError(
            f"a round has {learned} answers to learn, which steps of {step} (trainer.batch_size x trainer.accumulate x "
            "processes) do not divide; change method.prompts or trainer.batch_size"
        )


def _check_served(config: Config) -> None:
    """What a server needs that writes the answers: it can be given an adapter, and says nothing of what else it could
    have chosen."""
    if config.peft.name != "lora":
        raise ValueError(
            "method.server needs peft=lora: a server that runs can be given an adapter, but no whole model"
        )
    if config.method.top_k or config.method.top_p < 1:
        raise ValueError("method.server does not go with method.top_k and method.top_p; leave them out")

"""What a run trains where the model is cut into stages: this process's part of it, its tokenizer and renderer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from chatbot.rendering import Renderer
from common.devices import choose_device
from common.models import loading_errors
from training.adapters import adapter_config, add_adapter
from training.isolation import check_isolation
from training.models import Loaded, base_and_adapter, load_tokenizer
from training.pipeline.engine import Pipeline
from training.pipeline.opening import open_mesh, open_pipeline
from training.pipeline.plan import plan_of
from training.pipeline.saving import load_adapter
from training.pipeline.trial import small
from training.processes import join, num_processes, others_needed, rank
from training.tracking.throughput import ModelFlops, model_flops

if TYPE_CHECKING:
    from training.config.schema import Config


class Stages(nn.ModuleList):
    """This process's stages, as the Trainer takes a model: one that it neither places nor wraps nor reduces."""

    is_distributed_loading_by_transformers = True

    def __init__(self, pipeline: Pipeline, config: Any, folder: Path) -> None:
        super().__init__(pipeline.stages)
        self.pipeline, self.config, self.folder = pipeline, config, folder


def load_stages(config: Config, checkpoint: Path | None = None) -> Loaded:
    """Open this process's stages of what `config.model` and `config.peft` say; with `checkpoint` its weights.

    Raises ValueError where that cannot be done, before any weights are read.
    """
    from transformers import AutoConfig

    plan, device = plan_of(config), choose_device(config.model.device)
    plan.check(num_processes())
    folder, adapter = base_and_adapter(config.model.name)
    source = checkpoint if checkpoint and not config.peft.name else _local(folder)
    with loading_errors(config.model.name):
        settings = AutoConfig.from_pretrained(source)
        tokenizer = load_tokenizer(config.model, adapter or source)
        _check(config, settings, tokenizer, adapter)
    device = join(device, config.distributed.timeout_s)
    with loading_errors(config.model.name), others_needed():
        pipeline = open_pipeline(
            source,
            plan,
            open_mesh(plan, device),
            device,
            tokens=config.data.max_length,
            dtype=getattr(torch, config.model.dtype.value),
            attention=config.model.attention,
            precision={"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.trainer.precision.value),
            checkpointing=config.trainer.gradient_checkpointing,
            adapt=_adapt(config),
        )
        if start := (checkpoint or adapter) if config.peft.name else None:
            load_adapter(pipeline, start)
        about = _about(pipeline)
    # Each process draws its own dropout.
    torch.manual_seed(config.trainer.seed + rank())
    return Loaded(Stages(pipeline, settings, source), tokenizer, Renderer(tokenizer), False, about)


def stages_flops(stages: Stages) -> ModelFlops | None:
    """What a step of the whole model takes. All processes of a pipeline must ask."""
    own = [model_flops(stage.model) for stage in stages.pipeline.stages]
    if any(each is None for each in own):
        return None
    known = [each for each in own if each is not None]
    return ModelFlops(stages.pipeline.total(sum(each.per_token for each in known)), known[0].per_pair)


def _check(config: Config, settings: Any, tokenizer: Any, adapter: Path | None) -> None:
    """Raise ValueError for what cannot be trained in stages, though it can in one piece."""
    if settings.is_encoder_decoder:
        raise ValueError("a model with an encoder and a decoder is not cut into stages; leave distributed=pipeline out")
    if len(tokenizer) > settings.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {settings.vocab_size}: train or save it "
            "once in one process, which makes room for them"
        )
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token, which replies must end in")
    if adapter is not None and not config.peft.name:
        raise ValueError("it is an adapter; to train it further set peft to its method, as peft=lora")
    if config.peft.name and adapter_config(config.peft, encoder_decoder=False).is_prompt_learning:
        raise ValueError(
            f"peft={config.peft.name} puts virtual tokens before a text, which stages do not have; try lora"
        )
    if config.data.packing:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        check_isolation(AutoModelForCausalLM.from_config(small(settings), dtype=torch.float32))


def _adapt(config: Config) -> Callable[[Any], Any] | None:
    if not config.peft.name:
        return None
    return partial(add_adapter, settings=config.peft, of=config.model, seed=config.trainer.seed)


def _local(name: str) -> Path:
    """The directory of a model, fetched from the hub where it is no directory."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, allow_patterns=["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]))


def _about(pipeline: Pipeline) -> dict[str, Any]:
    """As in training/models.py, of the whole model; and how many layers each stage has."""
    # A tied head is the embedding of another process, and is counted there.
    copy = pipeline.stages[-1].end if pipeline.stages[-1].is_last and not pipeline.has_both_ends else None
    own = [each for _, each in pipeline.named_parameters() if each is not copy]
    bare = pipeline.stages[0].bare
    return {
        "architecture": type(bare).__name__,
        "parameters": int(pipeline.total(sum(each.numel() for each in own))),
        "trainable": int(pipeline.total(sum(each.numel() for each in own if each.requires_grad))),
        "stages": pipeline.num_layers(),
    }

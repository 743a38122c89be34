"""Chat engines: one file each, a registry line each. `open_engine` loads the file only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Protocol, cast

from chatbot.engines.base import ChatModel

# name -> module:function that takes (model name, LoadOptions) and returns a ChatModel
ENGINES = {
    "auto": "chatbot.engines.auto:load",
    "transformers": "chatbot.engines.transformers_engine:load",
    "llamacpp": "chatbot.engines.llamacpp_engine:load",
    "openai": "chatbot.engines.openai_engine:load",
    "echo": "chatbot.engines.echo:load",
}


@dataclass(frozen=True)
class LoadOptions:
    """Where and how weights are loaded. An engine refuses what it cannot do.

    `gpu_vram` maps a GPU's number to the GiB that may be used on it; `cpu_ram` is in GiB too. `dtype` is one of
    auto, float32, float16, bfloat16. `template` names one of `chatbot.templates`. `adapters` are LoRA directories (or
    files, where the engine takes those), of which the first is in use. `draft_model` proposes tokens that the model
    accepts or not. `threads` and `gpu_layers` are llama.cpp's; `base_url` and `api_key` an endpoint's.
    `context_length` lowers the model's, or says what an endpoint does not.
    """

    device: str | None = None
    gpu_id: int | None = None
    gpu_vram: tuple[tuple[int, float], ...] = ()
    cpu_ram: float | None = None
    load_in_8bit: bool = False
    load_in_4bit: bool = False
    dtype: str = "auto"
    template: str | None = None
    adapters: tuple[str, ...] = ()
    draft_model: str | None = None
    threads: int | None = None
    gpu_layers: int | None = None
    base_url: str | None = None
    api_key: str | None = None
    context_length: int | None = None


class _Loader(Protocol):
    def __call__(self, model: str, options: LoadOptions) -> ChatModel: ...


def open_engine(engine: str, model: str, options: LoadOptions | None = None) -> ChatModel:
    """Load `model` with the engine of that name. ValueError for an unknown engine (lists them) or model."""
    if engine not in ENGINES:
        raise ValueError(f"unknown engine '{engine}'; choose one of: {', '.join(ENGINES)}")
    module, function = ENGINES[engine].split(":")
    loader = cast(_Loader, getattr(importlib.import_module(module), function))
    return loader(model, options or LoadOptions())

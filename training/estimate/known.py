"""Configurations of known models, for plans without their weights: the numbers of their `config.json`, as transformers'
configurations take them. Only sizes are here: nothing that changes what a run takes is left out, all else is.
"""

from __future__ import annotations

import json
from typing import Any

from common.models import HUB_MODELS


def _neox(width: int, layers: int, heads: int, inner: int, vocabulary: int, parallel: bool = True) -> dict[str, Any]:
    return {
        "model_type": "gpt_neox",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "max_position_embeddings": 2048,
        "use_parallel_residual": parallel,
        "tie_word_embeddings": False,
    }


def _llama_like(
    kind: str, width: int, layers: int, heads: int, kv_heads: int, inner: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": inner,
        "vocab_size": vocabulary,
        "tie_word_embeddings": False,
        **more,
    }


_TIED = {"tie_word_embeddings": True}
_LLAMA_3 = {"max_position_embeddings": 131072}
_QWEN_3 = {"max_position_embeddings": 40960, "head_dim": 128}
_SMOL = {"max_position_embeddings": 8192, **_TIED}
_PYTHIA_7B = _neox(4096, 32, 32, 16384, 50432)

# Short names as in common/models.py -> settings. Instruct and chat models have the shape of their base model.
_SHAPES: dict[str, dict[str, Any]] = {
    "gpt-neox-20b": _neox(6144, 44, 64, 24576, 50432),
    "gpt-neoxt-chat-base-20b": _neox(6144, 44, 64, 24576, 50432),
    "pythia-6.9b-deduped": _PYTHIA_7B,
    "pythia-chat-base-7b": _PYTHIA_7B,
    "redpajama-incite-3b": _neox(2560, 32, 32, 10240, 50432, parallel=False),
    "redpajama-incite-7b": _neox(4096, 32, 32, 16384, 50432, parallel=False),
    "llama-2-7b-32k": _llama_like("llama", 4096, 32, 32, 32, 11008, 32000, max_position_embeddings=32768),
    "llama-2-13b": _llama_like("llama", 5120, 40, 40, 40, 13824, 32000, max_position_embeddings=4096),
    "llama-3.1-8b": _llama_like("llama", 4096, 32, 32, 8, 14336, 128256, **_LLAMA_3),
    "llama-3.2-1b": _llama_like("llama", 2048, 16, 32, 8, 8192, 128256, **_LLAMA_3, **_TIED),
    "llama-3.2-3b": _llama_like("llama", 3072, 28, 24, 8, 8192, 128256, **_LLAMA_3, **_TIED),
    "llama-3.3-70b": _llama_like("llama", 8192, 80, 64, 8, 28672, 128256, **_LLAMA_3),
    "qwen3-0.6b": _llama_like("qwen3", 1024, 28, 16, 8, 3072, 151936, **_QWEN_3, **_TIED),
    "qwen3-1.7b": _llama_like("qwen3", 2048, 28, 16, 8, 6144, 151936, **_QWEN_3, **_TIED),
    "qwen3-4b": _llama_like("qwen3", 2560, 36, 32, 8, 9728, 151936, **_QWEN_3, **_TIED),
    "qwen3-8b": _llama_like("qwen3", 4096, 36, 32, 8, 12288, 151936, **_QWEN_3),
    "qwen3-14b": _llama_like("qwen3", 5120, 40, 40, 8, 17408, 151936, **_QWEN_3),
    "qwen3-32b": _llama_like("qwen3", 5120, 64, 64, 8, 25600, 151936, **_QWEN_3),
    "smollm2-135m": _llama_like("llama", 576, 30, 9, 3, 1536, 49152, **_SMOL),
    "smollm2-360m": _llama_like("llama", 960, 32, 15, 5, 2560, 49152, **_SMOL),
    "smollm2-1.7b": _llama_like("llama", 2048, 24, 32, 32, 8192, 49152, **_SMOL),
    "smollm3-3b": _llama_like("smollm3", 2048, 36, 16, 4, 11008, 128256, max_position_embeddings=65536, **_TIED),
}


def known_config(name: str) -> str | None:
    """The configuration (JSON) of a model by its short name or hub id; None where it is not known."""
    short = next((short for short, each in HUB_MODELS.items() if each.repo == name), name)
    found = max((each for each in _SHAPES if short == each or short.startswith(f"{each}-")), key=len, default=None)
    return None if found is None else json.dumps(_SHAPES[found])

"""Tiny models and tokenizers made on the spot, the prepared real models where they are there, and passages."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SENTENCES = (
    "Hello, who are you? I am a small model and I answer from the documents.",
    "The bridge was opened in 1932, and it carries eight lanes of traffic.",
    "Où est la gare? 你好，世界。 Grüße aus Zürich! 😀👍🏽",
    "1 + 1 = 2; [1] Title\nQuestion: how many?\n\n### Notes:\n",
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pytest_configure() -> None:
    """No network; one thread, since more make tiny models slower, and very slow beside other work."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # must be there before torch is imported


def byte_level_tokenizer(bos: str, eos: str, pad: str | None = None, template: str | None = None) -> Any:
    """A byte-level BPE tokenizer trained on SENTENCES, with three special tokens and a chat template or none."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, chat_template=template
    )


def save_tiny_llama(folder: Path, tokenizer: Any, context_length: int) -> Path:
    """A llama of two layers with random weights, as a Hugging Face directory."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _chatml_tokenizer() -> Any:
    return byte_level_tokenizer("<|im_start|>", "<|im_end|>", "<|endoftext|>", CHATML)


@pytest.fixture(scope="session")
def tiny_chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama with a ChatML template and a context of 512."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-chat"), _chatml_tokenizer(), 512)


@pytest.fixture(scope="session")
def tiny_2048_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a context of 2048."""
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-2048"), _chatml_tokenizer(), 2048)


@pytest.fixture(scope="session")
def tiny_base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-NeoX without a chat template and without a padding token, as base models come."""
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    folder = tmp_path_factory.mktemp("tiny-base")
    tokenizer = byte_level_tokenizer("<|endoftext|>", "<|endoftext|>")
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.3,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _prepared(name: str) -> Path:
    from common.models import models_folder

    folder = models_folder() / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"model not prepared; run: python tools/prepare_model.py {name}")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The prepared SmolLM2-135M-Instruct."""
    return _prepared("smollm2-135m")


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The prepared all-MiniLM-L6-v2."""
    return _prepared("minilm")


@pytest.fixture(scope="session")
def make_hit() -> Callable[..., Any]:
    """(text, title, score, number) -> Hit with a passage of a file of its own."""
    from retrieval.types import Hit, Passage

    def make(text: str = "Some text.", title: str = "Title", score: float = 0.9, number: int = 1) -> Hit:
        return Hit(Passage(f"doc{number}#0", text, title, f"doc{number}.txt", number, number + 2), score)

    return make

"""The model that is trained, its tokenizer and renderer: pretrained or from scratch, whole or under an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.rendering import Renderer
from chatbot.templates import DEFAULT_TEMPLATE, find_template
from common.devices import choose_device
from common.models import loading_errors, resolve_model
from training.adapters import add_adapter, open_adapter, trainable_share

if TYPE_CHECKING:
    from training.config.schema import Config, ModelConfig


@dataclass(frozen=True)
class Head:
    """Numbers for a whole sequence, one for each of `labels`, in place of the language head. `settings` are kept in
    config.json."""

    labels: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Loaded:
    """`model` on the CPU or, if quantised, where it will run; `about` is told at the start and kept in run.json."""

    model: Any
    tokenizer: Any
    renderer: Renderer
    encoder_decoder: bool
    about: dict[str, Any]

    @property
    def pad_id(self) -> int:
        """What fills a batch up. It may be the end-of-sequence token too: padding is known by place, not by id."""
        pad, end = self.tokenizer.pad_token_id, self.tokenizer.eos_token_id
        return int(end if pad is None else pad)


def load(config: Config, checkpoint: Path | None = None, head: Head | None = None) -> Loaded:
    """Open what `config.model` and `config.peft` say; with `checkpoint` its weights instead of the first ones; with
    `head` that head on it, random where the model has none of that size.

    Raises ValueError where that cannot be done.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    base, adapter = base_and_adapter(config.model.name)
    with loading_errors(config.model.name):
        tokenizer = load_tokenizer(config.model, adapter or base)
        if head is not None:
            ensure_own_padding(tokenizer, grows=not config.peft.name)
        whole = base if checkpoint is None or config.peft.name or adapter else str(checkpoint)
        model = _weights(config, whole, tokenizer, checkpoint is None, head)
        if adapter is not None and not config.peft.name:
            raise ValueError("it is an adapter; to train it further set peft to its method, as peft=lora")
        if config.peft.name:
            start, seed = checkpoint or adapter, config.trainer.seed
            torch.manual_seed(seed)  # for the adapter
            model = (
                open_adapter(model, start)
                if start
                else add_adapter(model, config.peft, config.model, head is not None, seed)
            )
    renderer = Renderer(tokenizer, for_encoder=bool(model.config.is_encoder_decoder))
    if tokenizer.eos_token_id is None and head is None:
        raise ValueError(
            f"the tokenizer of '{config.model.name}' has no end-of-sequence token, which replies must end in"
        )
    about = {
        "architecture": type(model.get_base_model() if config.peft.name else model).__name__,
        "parameters": sum(each.numel() for each in model.parameters()),
        "trainable": trainable_share(model)[0],
    }
    return Loaded(model, tokenizer, renderer, bool(model.config.is_encoder_decoder), about)


def is_adapter(name: str) -> bool:
    """Whether a model's name is that of an adapter's directory."""
    return base_and_adapter(name)[1] is not None


def base_of(name: str) -> str:
    """The directory or id of a model, or of the one that an adapter is over."""
    return base_and_adapter(name)[0]


def ensure_own_padding(tokenizer: Any, grows: bool) -> None:
    """Give `tokenizer` a padding token that ends no sequence: transformers finds a sequence's last token as the last
    that is no padding. One of its special tokens serves, or, where the vocabulary may grow, a new one.

    Raises ValueError where there is none.
    """
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if pad is not None and pad != end:
        return
    special = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    others = [token for id_, token in sorted(special.items()) if id_ != end]
    if not others and not grows:
        raise ValueError("its tokenizer has no token to pad with; train the whole model, without peft")
    tokenizer.add_special_tokens({"pad_token": others[0] if others else "<|pad|>"})


def load_tokenizer(model: ModelConfig, folder: Path | str) -> Any:
    """The tokenizer, with a chat template that ends replies: the model's own, or a named one where it has none or
    `model.template` asks for it. It is saved with the trained model, so that chat sees what training saw."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_model(model.tokenizer) if model.tokenizer else folder)
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token  # BERT: its separator ends a sequence, and so a template's replies
    if model.template or not getattr(tokenizer, "chat_template", None):
        name = model.template or DEFAULT_TEMPLATE
        beginning = tokenizer.decode(Renderer(tokenizer, name).beginning_ids)  # a template of its own must write it
        tokenizer.chat_template = ("{{ " + repr(beginning) + " }}" if beginning else "") + find_template(name).learned
    return tokenizer


def base_and_adapter(name: str) -> tuple[str, Path | None]:
    """(directory or id of the model, the adapter over it): of an adapter's directory the model it was made for."""
    resolved = resolve_model(name)
    folder = Path(resolved)
    settings = folder / "adapter_config.json"
    if not settings.is_file():
        return resolved, None
    base = json.loads(settings.read_text("utf-8")).get("base_model_name_or_path")
    if not base:
        raise ValueError(f"{settings} names no base model")
    return resolve_model(str(base)), folder


def _weights(config: Config, name: str, tokenizer: Any, fresh: bool, head: Head | None) -> Any:
    """The bare model, from scratch or pretrained."""
    import torch
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSeq2SeqLM,
        AutoModelForSequenceClassification,
    )

    settings, num_tokens = AutoConfig.from_pretrained(name), len(tokenizer)
    opener: Any = AutoModelForSeq2SeqLM if settings.is_encoder_decoder else AutoModelForCausalLM
    if head is not None:
        opener = AutoModelForSequenceClassification
        settings.update(
            {
                **head.settings,
                "id2label": dict(enumerate(head.labels)),
                "label2id": {label: number for number, label in enumerate(head.labels)},
                "pad_token_id": tokenizer.pad_token_id,
            }
        )
        torch.manual_seed(config.trainer.seed)  # for the head
    dtype = getattr(torch, config.model.dtype.value)
    if config.model.from_scratch and fresh:
        unknown = [key for key in config.model.config if not hasattr(settings, key)]
        if unknown:
            raise ValueError(f"its configuration has no '{unknown[0]}' (model.config)")
        settings.update({"vocab_size": max(num_tokens, settings.vocab_size), **config.model.config})
        torch.manual_seed(config.trainer.seed)
        made = opener.from_config(settings, dtype=dtype, attn_implementation=config.model.attention)
    else:
        more = _quantised(config) if config.model.quantize.value != "none" else {}
        with quiet_about_head() if head else nullcontext():
            made = opener.from_pretrained(
                name,
                config=settings,
                dtype=dtype,
                attn_implementation=config.model.attention,
                use_safetensors=True,
                **more,
            )
    embedding = made.get_input_embeddings()
    if num_tokens > embedding.weight.shape[0]:
        made.resize_token_embeddings(num_tokens)
    # torch gives the padding token's embedding no gradient; often that token ends replies too, and must be learned.
    embedding.padding_idx = None
    return made


@contextmanager
def quiet_about_head() -> Iterator[None]:
    """transformers would report that the head is new and that the language head is not used."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _quantised(config: Config) -> dict[str, Any]:
    """Arguments that load the weights in 8 or 4 bits (bitsandbytes; QLoRA, Dettmers et al. 2023)."""
    import importlib.util

    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("model.quantize needs bitsandbytes: pip install 'parley[gpu]'")
    device = choose_device(config.model.device)
    if device.type != "cuda":
        raise ValueError(f"model.quantize={config.model.quantize.value} needs a CUDA device, not {device}")
    from transformers import BitsAndBytesConfig

    in_8_bits = config.model.quantize.value == "int8"
    settings = (
        BitsAndBytesConfig(load_in_8bit=True)
        if in_8_bits
        else BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    )
    return {"quantization_config": settings, "device_map": {"": device}}

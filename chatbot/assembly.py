"""From command-line options to a Bot: the one place where model, documents and moderation are put together.

Cheap checks come before slow loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from chatbot.core import Bot
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import ChatModel, Generation
from chatbot.prompt_files import load_examples
from chatbot.prompting import LAYOUTS, PromptAssembler
from common.models import resolve_model, without_precision
from retrieval.types import Encoder, Searcher

if TYPE_CHECKING:
    from chatbot.core import Encode
    from moderation.moderator import PolicyModerator
    from retrieval.search.reranking import Reranker

_GENERATION = ("max_tokens", "sample", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
_LOADING = (
    *("device", "gpu_id", "gpu_vram", "cpu_ram", "load_in_8bit", "load_in_4bit", "dtype", "template"),
    *("adapters", "draft_model", "threads", "gpu_layers", "base_url", "api_key", "context_length"),
)


def open_bot(options: Mapping[str, Any]) -> Bot:
    """A bot as `options` (the names of bot.py's flags) say. Raises ValueError, the cheap checks first."""
    generation = Generation(**{name: options[name] for name in _GENERATION})
    if options["layout"] not in LAYOUTS:
        raise ValueError(f"unknown layout '{options['layout']}'; choose one of: {', '.join(LAYOUTS)}")
    examples = load_examples(options["few_shot"]) if options["few_shot"] else ()
    retriever = open_index(options) if options["retrieval"] else None
    model = load_model(options["model"], options)
    if generation.max_tokens >= model.context_length:
        limit = model.context_length
        raise ValueError(f"--max-tokens {generation.max_tokens} must be below the model's context of {limit}")
    assembler = PromptAssembler(
        model.count_tokens,
        model.context_length,
        options["system"],
        examples,
        options["layout"],
    )
    moderator = open_moderator(options)
    bot = Bot(model, assembler, None, moderator, generation, options["k"], options["floor"], options["rewrite"])
    bot = replace(bot, attribution=options["attribution"])
    return bot if retriever is None else bot.searching(retriever, shared_encoder(retriever, moderator))


def load_model(name: str, options: Mapping[str, Any]) -> ChatModel:
    """The chat model called `name`, loaded as the options say."""
    loading = LoadOptions(**{key: options[key] for key in _LOADING})
    return open_engine(options["engine"], name, loading)


@dataclass
class SharedModels:
    """What several indexes use together: encoders by fingerprint (one that was asked for, by its name), with what they
    have encoded, and the reranker."""

    encoders: dict[str, Encoder] = field(default_factory=dict)
    reranker: Reranker | None = None


def open_index(options: Mapping[str, Any], shared: SharedModels | None = None) -> Searcher:
    """The retrieval index that the options name, or several as one. Models that are in `shared` are used, new ones join
    them."""
    from retrieval.encoders import cached, open_encoder
    from retrieval.index.manifest import read_manifest
    from retrieval.qdrant.retriever import is_remote, open_remote
    from retrieval.retriever import Retriever
    from retrieval.search.filters import Filter
    from retrieval.several import SeveralIndexes

    shared = shared or SharedModels()
    device = _small_model_device(options)
    where = Filter.parse(options["where"])
    if (options["expand"] or options["rerank"]) and any(is_remote(str(index)) for index in options["index"]):
        raise ValueError("--expand and --rerank work on an index of your own, not on Qdrant; leave them out")
    known, named = shared.encoders, options["encoder"]
    if named and named not in known:
        known[named] = cached(open_encoder(named, device))
    encoder = known[named] if named else None
    opened: list[Searcher] = []
    for index in map(str, options["index"]):
        if is_remote(index):
            opened.append(open_remote(index, encoder, device, where))
        else:
            own = encoder or known.get(read_manifest(Path(index)).encoder.fingerprint)
            rerank = shared.reranker or options["rerank"]
            local = Retriever.open(index, own, device, where, options["expand"], rerank)
            known[local.encoder.fingerprint], shared.reranker = local.encoder, local.reranker
            opened.append(local)
    return opened[0] if len(opened) == 1 else SeveralIndexes(opened)


def shared_encoder(retriever: Searcher | None, moderator: PolicyModerator | None) -> Encode | None:
    """What both read vectors of, so that a question is encoded once."""
    encoder: Encoder | None = getattr(retriever, "encoder", None)
    if encoder is None or moderator is None:
        return None
    return encoder.encode if without_precision(encoder.name) == moderator.encoder else None


def open_moderator(options: Mapping[str, Any]) -> PolicyModerator | None:
    """The moderator that the options name, or None where moderation is off.

    It is on unless the options say otherwise. Where nobody asked for it, and the encoder that it needs was never
    prepared, a line on stderr says so, and the bot goes without.
    """
    if options["moderation"] is False:
        return None
    from moderation.moderator import open_moderator as open_

    model = options["moderation_model"] or "default"
    moderator = open_(model, options["moderation_policy"], _small_model_device(options), options["label_map"])
    if moderator.encoder is not None:  # opened when it is first needed, which is too late to find it missing
        try:
            resolve_model(moderator.encoder)
        except ValueError as error:
            if options["moderation"]:
                raise
            click.echo(f"moderation is off: {error}", err=True)
            return None
    return moderator


def _small_model_device(options: Mapping[str, Any]) -> str | None:
    """Where encoder and classifier go: with the chat model, on the first of its GPUs; None lets them choose."""
    gpus = [gpu for gpu, _ in options["gpu_vram"]] or [options["gpu_id"]]
    return options["device"] or (f"cuda:{gpus[0]}" if gpus[0] is not None else None)

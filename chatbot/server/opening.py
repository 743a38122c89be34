"""From command-line options to a `Service`: the bot, and the indexes under their names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from chatbot.api.service import Collection, Service
from chatbot.assembly import SharedModels, open_bot, open_index, shared_encoder

DEFAULT = "default"
_NAMED = re.compile(r"([A-Za-z0-9][\w.-]{0,63})=(.+)", re.DOTALL)


def named_indexes(given: Iterable[str]) -> dict[str, list[str]]:
    """NAME=DIR as name -> its directories, those without a name under `default`. What shares a name is searched as
    one. (A directory whose own name has a '=' can be given as ./NAME=DIR.)"""
    found: dict[str, list[str]] = {}
    for each in map(str, given):
        named = _NAMED.fullmatch(each)
        name, place = (named[1], named[2]) if named else (DEFAULT, each)
        found.setdefault(name, []).append(place)
    return found


def open_service(options: Mapping[str, Any], **settings: Any) -> Service:
    """All that a server works with. `settings` are further fields of `Service`. Raises ValueError, the cheap checks
    first."""
    shared = SharedModels()
    indexes = named_indexes(options["index"]) if options["retrieval"] else {}
    searchers = {name: open_index({**options, "index": places}, shared) for name, places in indexes.items()}
    reranker = shared.reranker
    if options["rerank"] and reranker is None:  # without an index it still serves /v1/rerank
        from retrieval.search.reranking import open_reranker

        reranker = open_reranker(options["rerank"], options["device"])
    bot = open_bot({**options, "retrieval": False})
    moderator: Any = bot.moderator
    collections = {
        name: Collection(name, searcher, getattr(searcher, "encoder", None), shared_encoder(searcher, moderator))
        for name, searcher in searchers.items()
    }
    return Service(bot, collections, reranker, **settings)

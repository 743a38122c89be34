"""Service: what the API's functions work with; Caller: who asks, and what that one may see."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.api.errors import ApiError, not_enabled
from chatbot.api.exchanges import Exchanges
from chatbot.api.watch import Watch, WatchedModel
from chatbot.core import Bot
from chatbot.engines.base import Generation
from retrieval.search.filters import Filter
from retrieval.types import Encoder, Hit, Searcher

if TYPE_CHECKING:
    from chatbot.api.schema import ParleyOptions
    from chatbot.core import Encode
    from retrieval.search.reranking import Reranker

log = logging.getLogger("parley.server")
MAX_K = 50
MAX_PROMPT_TOKENS = 32_768
TEMPLATE_TOKENS = 64  # around a message, at most


@dataclass(frozen=True)
class Collection:
    """An index that callers know by name. `encoder` is None where it has several or none of its own; `encode`: see
    `Bot`."""

    name: str
    searcher: Searcher
    encoder: Encoder | None = None
    encode: Encode | None = None

    def limited(self, where: Sequence[str] | None) -> Searcher:
        """Its searcher, over the documents that meet all conditions. ValueError for what is no condition."""
        searcher: Any = self.searcher
        if where:
            conditions = Filter.parse(where)
            if not hasattr(searcher, "limited"):
                raise ApiError(400, "this index knows no conditions; leave where out", param="where")
            try:
                searcher = searcher.limited(conditions)
            except (ValueError, OSError) as error:  # see _Guarded
                raise RuntimeError(f"index '{self.name}': {error}") from error
        return _Guarded(self.name, searcher)


@dataclass(frozen=True)
class Caller:
    """Who asks. What is remembered for one `id` is unknown to all others. `collections` are the names of those that
    exist for this caller, the default first. `metrics`: may read them."""

    id: str
    collections: tuple[str, ...] = ()
    metrics: bool = False


@dataclass(frozen=True)
class Service:
    """A bot, the collections that it may search (its own `retriever` is not used), and what the operator allows.

    `lock_moderation`: a request cannot turn moderation off. `tell_cached`: answers say how many tokens were in the
    key-value cache, which tells a caller what others asked. `feedback`: the file that ratings go to.
    """

    bot: Bot
    collections: Mapping[str, Collection] = field(default_factory=dict)
    reranker: Reranker | None = None
    feedback: Path | None = None
    lock_moderation: bool = False
    max_k: int = MAX_K
    max_prompt_tokens: int = MAX_PROMPT_TOKENS
    tell_cached: bool = True
    exchanges: Exchanges = field(default_factory=Exchanges)

    def find(self, caller: Caller, name: str | None) -> Collection | None:
        """The collection of that name, or the caller's default, if any. ApiError where there is none of that name for
        this caller, whether or not it exists for others."""
        if name is None:
            return self.collections[caller.collections[0]] if caller.collections else None
        if name not in caller.collections:
            known = ", ".join(caller.collections) or "none"
            raise ApiError(404, f"there is no index {_short(name)} (there are: {known})", "index_not_found", "index")
        return self.collections[name]

    def require(self, caller: Caller, name: str | None) -> Collection:
        """`find`, and ApiError where there is none."""
        if (found := self.find(caller, name)) is None:
            raise not_enabled("there is no index here", "the server needs --index")
        return found

    def encoder(self, caller: Caller, name: str | None) -> Encoder:
        """The encoder of a collection. ApiError where it has none."""
        collection = self.require(caller, name)
        if collection.encoder is None:
            raise not_enabled(f"the index '{collection.name}' has no one encoder", "name an index that has")
        return collection.encoder

    def check_k(self, k: int | None) -> None:
        """ApiError for more passages than the operator allows."""
        if k is not None and k > self.max_k:
            raise ApiError(400, f"k={k} is above this server's limit of {self.max_k}", param="k")

    def check_prompt(self, texts: Sequence[str], count: Callable[[], int]) -> None:
        """ApiError for a prompt of more tokens than the operator allows. Only one of so many bytes, with what templates
        add to a text, can have so many tokens; any other need not be counted."""
        if sum(len(text.encode()) + TEMPLATE_TOKENS for text in texts) <= self.max_prompt_tokens:
            return
        if (num_tokens := count()) > self.max_prompt_tokens:
            limit = self.max_prompt_tokens
            problem = f"the prompt has {num_tokens} tokens, and this server takes {limit}; shorten it"
            raise ApiError(400, problem, "context_length_exceeded")

    def bot_for(self, moderation: bool | None, generation: Generation, watch: Watch) -> tuple[Bot, WatchedModel]:
        """The bot with a request's settings, without documents, and its model. ApiError for what this server does not
        do."""
        model = WatchedModel(self.bot.model, watch)
        bot = replace(self.bot, model=model, generation=generation, retriever=None, encode=None)
        if moderation and bot.moderator is None:
            raise not_enabled("moderation is off on this server", "leave parley.moderation out")
        if moderation is False and bot.moderator is not None:
            if self.lock_moderation:
                raise ApiError(400, "this server does not let requests turn moderation off", "moderation_locked")
            bot = replace(bot, moderator=None)
        return bot, model

    def with_retrieval(self, bot: Bot, caller: Caller, options: ParleyOptions | None) -> Bot:
        """The bot with the index that a request asks for, or the caller's default. ApiError where there is none."""
        named: list[str] = []
        if options is not None:
            named = [name for name in ("index", "where", "k", "floor") if getattr(options, name) is not None]
            if options.retrieval is False and named:
                raise ApiError(400, f"parley.retrieval is false; leave parley.{named[0]} out", param="parley")
            if options.retrieval is False:
                return bot
            self.check_k(options.k)
            if options.retrieval or named:
                self.require(caller, options.index)
        if (found := self.find(caller, options.index if options else None)) is None:
            return bot
        bot = bot.searching(found.limited(options.where if options else None), found.encode)
        if options is None:
            return bot
        return replace(bot, k=options.k or bot.k, floor=bot.floor if options.floor is None else options.floor)


class _Guarded:
    """A `Searcher` whose failures are the server's own. Requests are checked before; what an index says then (its
    path, say) is for the log, and no mistake of the client's."""

    def __init__(self, name: str, searcher: Searcher) -> None:
        self._name, self._searcher = name, searcher
        self.encoder: Encoder | None = getattr(searcher, "encoder", None)

    @property
    def floor(self) -> float:
        try:
            return self._searcher.floor
        except (ValueError, OSError) as error:
            raise RuntimeError(f"index '{self._name}': {error}") from error

    def search(self, queries: Sequence[str], k: int, contexts: Sequence[str] | None = None) -> list[list[Hit]]:
        """See `Searcher`."""
        try:
            return self._searcher.search(queries, k, contexts)
        except (ValueError, OSError) as error:
            raise RuntimeError(f"index '{self._name}': {error}") from error


def _short(name: str) -> str:
    return repr(name if len(name) <= 60 else name[:57] + "...")

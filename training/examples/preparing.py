"""From what `data` says to rows in order: sources are read, made into examples on disk, laid out and mixed."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from common.files import expand, home
from training.data.converting import LeftOut
from training.data.mixture import Source, parse_mixture
from training.data.reading import Report, read_rows
from training.examples.layout import Layout, Packed, Singles, Windows
from training.examples.making import Example, ExampleMaker
from training.examples.order import Mixture
from training.examples.store import TokenStore, store_name, write_store

if TYPE_CHECKING:
    from training.config.schema import Config
    from training.models import Loaded


class Maker(Protocol):
    """Makes examples of a row, and counts by name what happened to rows."""

    counts: Counter[str]

    def examples(self, row: Any) -> Iterator[Example]:
        """The examples of a row. Raises ValueError for a row that cannot be used."""
        ...


@dataclass
class Prepared:
    """`train` and `eval` rows; `about` each source: what run.json keeps. `stores`: all examples of both."""

    train: Mixture
    eval: Mixture | None
    about: list[dict[str, Any]] = field(default_factory=list)
    stores: list[TokenStore] = field(default_factory=list)

    def told(self) -> Iterator[str]:
        """A line a source: what it gave, and what happened to rows on the way."""
        for source in self.about:
            yield from source["told"]
            yield f"  {source['num_examples']:,} examples, {source['num_tokens']:,} tokens"
            yield from (f"  {count:,} x {what}" for what, count in source["counts"].items() if count)

    def shown(self, tokenizer: Any) -> str:
        """The first training example as text; what has a loss stands between guillemets."""
        example = self.train.row(0, 0)[0]
        edges = np.flatnonzero(np.diff(example.mask.astype(np.int8), prepend=0, append=0))
        text, start = "", 0
        for number, edge in enumerate(edges.tolist()):
            text += tokenizer.decode(example.ids[start:edge]) + ("«", "»")[number % 2]
            start = edge
        text += tokenizer.decode(example.ids[start:])
        return f"the first example; only what is «so marked» is learned:\n{text}"


def prepare(
    config: Config,
    loaded: Loaded,
    kinds: tuple[type, ...],
    maker: Callable[[], Maker] | None = None,
    settings: Sequence[Any] = (),
) -> Prepared:
    """Read, tokenise (or find from an earlier run) and lay out all data of a run.

    `maker` gives what makes examples of the rows of a source, by default for language models; `settings` are those of
    the method that its examples depend on. Raises ValueError for sources that cannot be read, bad rows, and where
    nothing is left to train on.
    """
    data = config.data
    sources = parse_mixture(data.train, data.format, data.columns)
    maker = maker or partial(_language_maker, config, loaded)
    stores = [_store(config, loaded, source, kinds, maker(), settings) for source in sources]
    weighted = any(source.weight != 1 for source in sources)
    weights = [source.weight for source in sources] if weighted else None
    about = [store.about for store in stores]
    held = [_held_out(len(store), data.eval_fraction, config.trainer.seed) for store in stores]
    layouts = [_layout(config, store, kept) for store, (kept, _) in zip(stores, held, strict=True)]
    train = Mixture(layouts, config.trainer.seed, weights)
    evaluation = None
    if data.eval:
        held_sources = parse_mixture(data.eval, data.format, data.columns)
        others = [_store(config, loaded, source, kinds, maker(), settings) for source in held_sources]
        about += [store.about for store in others]
        stores += others
        evaluation = Mixture([Singles(store) for store in others], config.trainer.seed)
    elif data.eval_fraction:
        evaluation = Mixture(
            [Singles(store, out) for store, (_, out) in zip(stores, held, strict=True)], config.trainer.seed
        )
    if evaluation is not None and not len(evaluation):
        raise ValueError(f"data.eval_fraction={data.eval_fraction} of the examples is none; raise it")
    return Prepared(train, evaluation, about, stores)


def _layout(config: Config, store: TokenStore, numbers: NDArray[np.int64]) -> Layout:
    sampling = getattr(config.method, "sampling", None)
    if sampling is not None and sampling.value == "windows":
        return Windows(store, config.data.max_length, config.method.length, config.trainer.seed)
    if config.data.packing:
        return Packed(store, config.data.max_length, numbers)
    return Singles(store, numbers)


def _held_out(num: int, fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(numbers to train on, numbers to evaluate on)."""
    shuffled = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, 1])).permutation(num)
    cut = round(num * fraction)
    return np.sort(shuffled[cut:]), np.sort(shuffled[:cut])


def _language_maker(config: Config, loaded: Loaded) -> Maker:
    data = config.data
    return ExampleMaker(
        loaded.renderer,
        data.max_length,
        train_on=data.train_on.value,
        cut=data.too_long.value == "cut",
        encoder_decoder=loaded.encoder_decoder,
    )


def _store(
    config: Config, loaded: Loaded, source: Source, kinds: tuple[type, ...], maker: Maker, settings: Sequence[Any]
) -> TokenStore:
    """The examples of a source: from an earlier run, or made now."""
    data = config.data
    report = Report()
    ingredients = {
        "source": report.fingerprint(source),
        "format": source.format,
        "columns": dict(source.columns),
        "kinds": [kind.__name__ for kind in kinds],
        "tokenizer": _fingerprint(loaded.tokenizer),
        "encoder_decoder": loaded.encoder_decoder,
        "method": _prefix_settings(config),
        "maker": [type(maker).__name__, *settings],
        "settings": [data.max_length, data.too_long.value, data.train_on.value, data.on_bad_row.value],
    }
    folder = (expand(data.cache) if data.cache else home() / "cache" / "tokens") / store_name(ingredients)
    if (folder / "store.json").is_file():
        return TokenStore(folder)
    about: dict[str, Any] = {"source": source.location}

    def examples() -> Iterator[Example]:
        strict = data.on_bad_row.value == "error"
        for place, row in read_rows(source, kinds, report, strict):
            try:
                made = list(maker.examples(row))
            except LeftOut as rule:
                report.skip(str(rule), place)
                continue
            except ValueError as error:  # the chat template refuses it, or it would forge a token
                if strict:
                    raise ValueError(f"{place}: {error}; mend it, or set data.on_bad_row=skip") from None
                report.skip(str(error), place)
                continue
            yield from made
        about["counts"] = dict(maker.counts)
        about.update(read=report.to_dict(), told=list(report.lines()))

    made = examples()
    if config.method.name == "prefix_lm":
        made = _with_prefixes(made, config)
    return write_store(folder, made, about)


def _with_prefixes(examples: Iterator[Example], config: Config) -> Iterator[Example]:
    """Examples whose random beginning has no loss."""
    settings = config.method
    draw = np.random.Generator(np.random.Philox(key=config.trainer.seed, counter=[0, 0, 0, 2]))
    for example in examples:
        share = draw.uniform(settings.min_prefix, settings.max_prefix)
        prefix = min(max(int(share * len(example.ids)), 1), len(example.ids) - 1)
        yield Example(example.ids, np.arange(len(example.ids)) >= prefix, example.weight)


def _prefix_settings(config: Config) -> Mapping[str, Any]:
    if config.method.name != "prefix_lm":
        return {}
    return {"min": config.method.min_prefix, "max": config.method.max_prefix, "seed": config.trainer.seed}


def _fingerprint(tokenizer: Any) -> str:
    text = tokenizer.backend_tokenizer.to_str() + str(tokenizer.chat_template) + str(tokenizer.special_tokens_map)
    return hashlib.sha256(text.encode()).hexdigest()

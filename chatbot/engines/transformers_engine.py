"""The reference engine: any language model that transformers can load, on CPU, one GPU or several.

Requests of several threads run together, in one batch (chatbot/engines/decoding/). The keys and values of what was read
and answered are kept: a prompt that begins like an earlier one has only its new part run. Closing an iterator stops the
work between two tokens. Greedy output equals `generate`'s (where a repetition penalty is set, `generate` would apply
it to the prompt's tokens too).

Of an encoder-decoder model (T5 and its like) the encoder reads the prompt, and the decoder answers.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.engines.base import Delta, FinishReason, Generation, TokenLogprob, Usage, check_fits
from chatbot.engines.decoding.adapters import Adapters, base_of, is_adapter
from chatbot.engines.decoding.choosing import Token
from chatbot.engines.decoding.encoder_decoder import EncoderDecoderRunner, decoder_start
from chatbot.engines.decoding.loading import load_tokenizer, load_weights
from chatbot.engines.decoding.plain import PlainRunner
from chatbot.engines.decoding.ragged import open_ragged
from chatbot.engines.decoding.running import Runner
from chatbot.engines.decoding.scheduling import Request, Scheduler
from chatbot.engines.decoding.speculation import Drafter
from chatbot.engines.decoding.store import PrefixStore, default_bytes
from chatbot.rendering import Renderer
from chatbot.streaming import UntilStop, text_deltas
from chatbot.templates import find_template
from common.models import resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_UNBOUNDED = 1_000_000  # some tokenizers say 1e30 where they have no limit


class TransformersModel:
    """A loaded language model with its tokenizer and renderer.

    `max_batch` requests run together where the architecture allows it (`batches`), and one after the other where not.
    Finished ones leave up to `cache_bytes` of keys and values for later prompts (None: 2 GiB, or an eighth of the
    memory where that is less; 0: nothing is kept). `draft` is a smaller model with the same vocabulary.
    `context_length` lowers the model's own.
    """

    def __init__(
        self,
        name: str,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        adapters: Sequence[str] = (),
        draft: PreTrainedModel | None = None,
        max_batch: int = 16,
        cache_bytes: int | None = None,
        context_length: int | None = None,
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, template, for_encoder=bool(model.config.is_encoder_decoder))
        self._end_ids = _end_ids(model, tokenizer)
        self._tokenizing = threading.Lock()  # tokenizers keep state that two threads could change at once
        self._begin_ids = [decoder_start(model)] if model.config.is_encoder_decoder else []
        self._adapters = Adapters(model, virtual_tokens=True)
        loaded = [self._adapters.load(each) for each in adapters]
        self._adapter = loaded[0] if loaded else None
        self._adapters.use(self._adapter)
        own = _context_length(model, tokenizer) - self._adapters.num_virtual_tokens
        self.context_length = min(context_length or own, own)
        runner = _open_runner(model, max_batch, self._adapters)
        self.batches = runner.max_batch > 1
        device = next(model.parameters()).device.type
        store = PrefixStore(runner, default_bytes(device) if cache_bytes is None else cache_bytes)
        self._scheduler = Scheduler(
            runner, store, self._adapters.use, self._adapter, _drafter(draft, runner, tokenizer)
        )
        weakref.finalize(self, Scheduler.stop, self._scheduler)  # also when Python ends

    @property
    def adapters(self) -> tuple[str, ...]:
        """Names of the adapters that are loaded."""
        return self._adapters.names

    @property
    def adapter(self) -> str | None:
        """The one in use."""
        return self._adapter

    def use_adapter(self, name: str | None) -> None:
        """Answer what is asked from now on with this adapter, or with none. ValueError lists the choices."""
        self._adapters.check(name)
        self._adapter = name

    def forget(self) -> None:
        """Drop all keys and values that earlier prompts and answers left."""
        self._scheduler.forget()

    def count_tokens(self, conversation: Conversation) -> int:
        """Tokens of the rendered prompt."""
        with self._tokenizing:
            return self.renderer.count(conversation)

    def render(self, conversation: Conversation) -> str:
        """The prompt through the chat template, with the tokens that the tokenizer puts before it."""
        with self._tokenizing:
            return self.renderer.whole_text(conversation)

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """The assistant's next message."""
        stops = (*generation.stop, *self.renderer.stops)
        with self._tokenizing:
            ids = self.renderer.ids(conversation)
        return self._generate(ids, generation, stops)

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        """Plain continuation; of an encoder-decoder model the answer to the prompt as it is."""
        with self._tokenizing:
            ids = self.renderer.prompt_ids(prompt)
        return self._generate(ids, generation, generation.stop)

    def _generate(self, prompt_ids: list[int], generation: Generation, stops: Sequence[str]) -> Iterator[Delta]:
        check_fits(len(prompt_ids), generation, self.context_length)
        if not prompt_ids:
            raise ValueError("the prompt is empty; type some text")
        request = Request([*prompt_ids, *self._begin_ids], generation, self._end_ids, self._adapter)
        answer = _Answer(self, request, len(prompt_ids))
        self._scheduler.submit(request)
        try:
            yield from answer.deltas(stops)
        finally:
            self._scheduler.close(request)


class _Answer:
    """One answer on its way from tokens to text."""

    def __init__(self, model: TransformersModel, request: Request, num_prompt: int) -> None:
        self._model, self._request, self._num_prompt = model, request, num_prompt
        self._count = 0
        self._ended = False
        self._told = 0  # characters given out
        self._held: list[tuple[int, Token]] = []  # tokens not given out yet, with the characters up to their end
        self._unplaced: list[Token] = []  # those whose characters are not whole yet

    def deltas(self, stops: Sequence[str]) -> Iterator[Delta]:
        """Pieces of text, then finish reason and usage."""
        pieces = UntilStop(self._placed(text_deltas(self._ids(), self._decode)), stops)
        for piece in pieces:
            if piece:
                self._told += len(piece)
                yield Delta(piece, logprobs=self._logprobs())
        reason: FinishReason = "stop" if self._ended or pieces.stopped_by else "length"
        if not pieces.stopped_by:
            self._held += [(self._told, token) for token in self._unplaced]
        usage = Usage(self._num_prompt, self._count, self._request.num_cached)
        yield Delta("", reason, usage, self._logprobs())

    def _ids(self) -> Iterator[int]:
        for token in self._request.tokens():
            self._count += 1
            if token.id in self._request.end_ids:
                self._ended = True
                continue  # nothing but the end comes after it, once the cache is kept
            self._unplaced.append(token)
            yield token.id

    def _placed(self, pieces: Iterator[str]) -> Iterator[str]:
        """The same pieces; notes which tokens each of them completes."""
        length = 0
        for piece in pieces:
            length += len(piece)
            if piece:
                self._held += [(length, token) for token in self._unplaced]
                self._unplaced = []
            yield piece

    def _logprobs(self) -> tuple[TokenLogprob, ...]:
        """Of the tokens whose text is out, those not told of before."""
        out = [token for end, token in self._held if end <= self._told]
        self._held = self._held[len(out) :]
        return tuple(
            TokenLogprob(
                self._named(token.id), token.logprob, tuple((self._named(id_), value) for id_, value in token.top)
            )
            for token in out
            if token.logprob is not None
        )

    def _named(self, id_: int) -> str:
        """A token as text, a special one too."""
        return str(self._model.tokenizer.decode([id_], clean_up_tokenization_spaces=False))

    def _decode(self, ids: Sequence[int]) -> str:
        decode = self._model.tokenizer.decode
        return str(decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def load(model: str, options: LoadOptions) -> TransformersModel:
    """Load a model, or an adapter together with the model it names. ValueError names the model and the remedy."""
    if options.template:
        find_template(options.template)  # an unknown one should show before seconds of loading
    place = resolve_model(model)
    adapters = options.adapters
    base = model
    if is_adapter(place):
        base, adapters = base_of(place), (model, *adapters)
    weights, tokenizer = load_weights(base, options)
    if adapters and (Path(resolve_model(adapters[0])) / "tokenizer_config.json").is_file():
        tokenizer = load_tokenizer(adapters[0])  # training may have given it a chat template, and more tokens
        embedding: Any = weights.get_input_embeddings()
        if len(tokenizer) > embedding.weight.shape[0]:
            weights.resize_token_embeddings(len(tokenizer))
    draft = None
    if options.draft_model:
        draft, drafts = load_weights(options.draft_model, replace(options, load_in_8bit=False, load_in_4bit=False))
        if drafts.get_vocab() != tokenizer.get_vocab():
            raise ValueError(
                f"the draft model '{options.draft_model}' has another vocabulary than '{model}'; choose one of its "
                "family"
            )
    length = options.context_length
    return TransformersModel(
        model, weights, tokenizer, options.template, adapters=adapters, draft=draft, context_length=length
    )


def _open_runner(model: PreTrainedModel, max_batch: int, adapters: Adapters | None = None) -> Runner:
    if model.config.is_encoder_decoder:
        return EncoderDecoderRunner(model)
    if adapters and adapters.num_virtual_tokens:
        return PlainRunner(model, adapters.virtual_tokens)
    return open_ragged(model, max_batch) or PlainRunner(model)


def _drafter(draft: PreTrainedModel | None, runner: Runner, tokenizer: PreTrainedTokenizerBase) -> Drafter | None:
    if draft is None:
        return None
    draft_runner = _open_runner(draft, 1)
    if isinstance(runner, EncoderDecoderRunner) or isinstance(draft_runner, EncoderDecoderRunner):
        raise ValueError("assisted decoding is not for encoder-decoder models; leave out --draft-model")
    if not (runner.truncates and draft_runner.truncates):
        raise ValueError(
            "assisted decoding needs key-value caches that can be cut, which sliding windows and recurrent states "
            "cannot; leave out --draft-model"
        )
    return Drafter(draft_runner, _context_length(draft, tokenizer), len(tokenizer))


def _context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    config = model.config.get_text_config()
    names = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
    found = [value for name in names if isinstance(value := getattr(config, name, None), int) and value > 0]
    if not found and tokenizer.model_max_length < _UNBOUNDED:
        found = [tokenizer.model_max_length]
    return found[0] if found else 2048


def _end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every id that ends a reply: the generation config's, the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None}

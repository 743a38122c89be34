"""The reference engine: any causal language model that transformers can load, on CPU, one GPU or several.

Decoding is a plain loop over `model(...)` with a key-value cache, so that a caller can stop it between two tokens
by closing the iterator; token choice uses transformers' own logits processors. Greedy output equals `generate`'s
(where a repetition penalty is set, `generate` would apply it to the prompt's tokens too).
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.engines.base import Delta, FinishReason, Generation, Usage, check_fits
from chatbot.rendering import Renderer
from chatbot.streaming import text_deltas, until_stop
from chatbot.templates import find_template
from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("auto", "float32", "float16", "bfloat16")
_UNBOUNDED = 1_000_000  # some tokenizers say 1e30 where they have no limit


class TransformersModel:
    """A loaded causal language model with its tokenizer and renderer. Not safe for concurrent calls."""

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: str | None = None
    ) -> None:
        self.name = name
        self.model = model
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, template)
        self.context_length = _context_length(model, tokenizer)
        self._end_ids = _end_ids(model, tokenizer)

    def count_tokens(self, conversation: Conversation) -> int:
        """Tokens of the rendered prompt."""
        return self.renderer.count(conversation)

    def render(self, conversation: Conversation) -> str:
        """The prompt through the chat template, with the tokens that the tokenizer puts before it."""
        return self.renderer.whole_text(conversation)

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """The assistant's next message."""
        stops = (*generation.stop, *self.renderer.stops)
        return self._generate(self.renderer.ids(conversation), generation, stops)

    def complete(self, prompt: str, generation: Generation) -> Iterator[Delta]:
        """Plain continuation."""
        return self._generate(self.renderer.plain_ids(prompt), generation, generation.stop)

    def _generate(self, prompt_ids: list[int], generation: Generation, stops: Sequence[str]) -> Iterator[Delta]:
        check_fits(len(prompt_ids), generation, self.context_length)
        if not prompt_ids:
            raise ValueError("the prompt is empty; type some text")
        tokens = _TokenStream(self.model, prompt_ids, generation, self._end_ids)
        pieces = until_stop(text_deltas(tokens, self._decode), stops)
        stopped_by = None
        while True:
            try:
                piece = next(pieces)
            except StopIteration as end:
                stopped_by = end.value
                break
            if piece:
                yield Delta(piece)
        reason: FinishReason = "stop" if tokens.ended or stopped_by else "length"
        yield Delta("", reason, Usage(len(prompt_ids), tokens.count))

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


class _TokenStream:
    """Iterates over generated token ids. After it: `count` tokens were made, `ended` by an end-of-sequence token."""

    def __init__(
        self, model: PreTrainedModel, prompt_ids: list[int], generation: Generation, end_ids: set[int]
    ) -> None:
        self.count = 0
        self.ended = False
        self._model, self._prompt_ids, self._generation, self._end_ids = model, prompt_ids, generation, end_ids

    def __iter__(self) -> Iterator[int]:
        import torch

        device = next(self._model.get_input_embeddings().parameters()).device
        ids_BT = torch.tensor([self._prompt_ids], device=device)
        choose = _chooser(self._generation, len(self._prompt_ids), device)
        cache, fresh_BT = None, ids_BT
        # Only the last position's logits are needed; not every architecture can leave the others out.
        accepted = inspect.signature(self._model.forward).parameters
        last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        while self.count < self._generation.max_tokens:
            # inference_mode is entered anew for each token: a generator must not leave it on between its yields.
            with torch.inference_mode(), _memory_errors():
                out = self._model(input_ids=fresh_BT, past_key_values=cache, use_cache=True, **last_only)
                cache = out.past_key_values
                fresh_BT = choose(ids_BT, out.logits[:, -1].float())
                ids_BT = torch.cat([ids_BT, fresh_BT], dim=1)
            self.count += 1
            token_id = int(fresh_BT)
            if token_id in self._end_ids:
                self.ended = True
                return
            yield token_id


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    """A GPU that runs out of memory is told as a ValueError with the remedy: the conversation goes on."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        raise ValueError(
            "the GPU ran out of memory; shorten the conversation (/reset), lower --max-tokens or --k, or load the "
            "model with --load-in-8bit"
        ) from None


def _chooser(generation: Generation, prompt_length: int, device: torch.device) -> Any:
    """A function (ids_BT, logits_BV) -> next ids_B1, as `generation` says."""
    import torch
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors: Any = LogitsProcessorList()
    if generation.repetition_penalty != 1:
        # The answer's own tokens alone: an answer may quote the prompt as often as it likes.
        penalty = generation.repetition_penalty
        processors.append(RepetitionPenaltyLogitsProcessor(penalty, prompt_ignore_length=prompt_length))
    if generation.greedy:
        return lambda ids_BT, logits_BV: processors(ids_BT, logits_BV).argmax(dim=-1, keepdim=True)
    if generation.temperature != 1:
        processors.append(TemperatureLogitsWarper(generation.temperature))
    if generation.top_k:
        processors.append(TopKLogitsWarper(generation.top_k))
    if generation.top_p < 1:
        processors.append(TopPLogitsWarper(generation.top_p))
    chance = torch.Generator(device)
    if generation.seed is None:
        chance.seed()
    else:
        chance.manual_seed(generation.seed)

    def sample(ids_BT: torch.Tensor, logits_BV: torch.Tensor) -> torch.Tensor:
        probs_BV = processors(ids_BT, logits_BV).softmax(dim=-1)
        if not torch.isfinite(probs_BV).all():
            raise ValueError("the model's logits are not finite; try --dtype float32")
        return torch.multinomial(probs_BV, 1, generator=chance)

    return sample


def load(model: str, options: LoadOptions) -> TransformersModel:
    """Load weights (safetensors only) and tokenizer. ValueError names the model and the remedy."""
    if options.dtype not in DTYPES:
        raise ValueError(f"unknown dtype '{options.dtype}'; choose one of: {', '.join(DTYPES)}")
    if options.template:
        find_template(options.template)  # an unknown one should show before seconds of loading
    place = resolve_model(model)
    arguments = _loading_arguments(options)
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    arguments["trust_remote_code"] = False  # refuse code that comes with a model; None would ask on the terminal
    with loading_errors(model):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        outcome: Any = AutoModelForCausalLM.from_pretrained(
            place, use_safetensors=True, output_loading_info=True, **arguments
        )
    loaded, report = outcome
    if missing := sorted(report["missing_keys"]):
        # transformers would fill them with random numbers: an encoder loaded as a chat model talks nonsense.
        raise ValueError(f"cannot load model '{model}': it is no chat model, or lacks weights ({missing[0]}, ...)")
    loaded.eval()
    return TransformersModel(model, loaded, tokenizer, options.template)


def _loading_arguments(options: LoadOptions) -> dict[str, Any]:
    """Options -> keyword arguments of from_pretrained, checked against the hardware at hand."""
    import torch

    if options.cpu_ram is not None and not options.gpu_vram:
        raise ValueError("--cpu-ram says what --gpu-vram may leave to the CPU; give --gpu-vram too")
    if sum(1 for given in (options.device, options.gpu_vram, options.gpu_id is not None) if given) > 1:
        raise ValueError("--device, --gpu-id and --gpu-vram exclude each other; choose one")
    if options.load_in_8bit and options.load_in_4bit:
        raise ValueError("--load-in-8bit and --load-in-4bit exclude each other; choose one")
    num_gpus = torch.cuda.device_count()
    for gpu_id in _named_gpus(options):
        if gpu_id >= num_gpus:
            raise ValueError(
                f"GPU {gpu_id} is not there: this machine has {num_gpus} CUDA GPUs; leave out --device, --gpu-id and "
                "--gpu-vram to run on what is there"
            )
    arguments: dict[str, Any] = {"dtype": options.dtype}
    if options.gpu_vram:
        arguments["device_map"] = "auto"
        arguments["max_memory"] = _max_memory(options)
    elif options.device or num_gpus:
        arguments["device_map"] = {"": options.device or f"cuda:{options.gpu_id or 0}"}
    on_cpu = options.device == "cpu" or "device_map" not in arguments
    if on_cpu and options.dtype == "auto":
        # Half precision saves memory on a CPU but is several times slower there.
        arguments["dtype"] = "float32"
    if options.load_in_8bit or options.load_in_4bit:
        arguments["quantization_config"] = _quantization(options)
        arguments.setdefault("device_map", "auto")
    return arguments


def _named_gpus(options: LoadOptions) -> list[int]:
    """The numbers of the CUDA GPUs that the options speak of."""
    kind, _, number = (options.device or "").partition(":")
    named = [int(number or 0)] if kind == "cuda" and (number or "0").isdigit() else []
    named += [gpu for gpu, _ in options.gpu_vram]
    return named if options.gpu_id is None else [*named, options.gpu_id]


def _max_memory(options: LoadOptions) -> dict[int | str, int]:
    """Bytes allowed on each GPU and on the CPU. Without --cpu-ram nothing is placed on the CPU."""
    limits: dict[int | str, int] = {gpu: int(gib * 2**30) for gpu, gib in options.gpu_vram}
    limits["cpu"] = int((options.cpu_ram or 0) * 2**30)
    return limits


def _quantization(options: LoadOptions) -> Any:
    import importlib.util

    import torch

    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("8- and 4-bit loading needs bitsandbytes; install it with: pip install 'parley[gpu]'")
    from transformers import BitsAndBytesConfig

    if options.load_in_8bit:
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


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

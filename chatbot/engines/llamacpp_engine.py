"""llama.cpp through the xllamacpp wheel: any GGUF file, fast on CPUs and small GPUs. Needs the `gguf` extra.

Prompts are rendered to token ids by `chatbot.rendering`, as for every engine, with the tokenizer of the directory
beside the file, or else the file's own; llama.cpp is given ids and never text. It runs several requests at once, and
keeps the key-value cache of what it has read. The wheel brings llama.cpp's HTTP server along and cannot do without:
it is bound to a socket file in a private folder that is removed at once, so that nobody can reach it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import secrets
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.engines.base import Delta, FinishReason, Generation, Usage, check_fits
from chatbot.engines.decoding.adapters import is_adapter
from chatbot.engines.gguf_file import GgufHeader, find_gguf, read_header
from chatbot.engines.llamacpp_answer import Answer, Turnstile
from chatbot.rendering import Renderer
from chatbot.streaming import UntilStop
from chatbot.templates import find_template
from common.files import expand
from common.models import loading_errors, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOTS = 4  # requests at once, where memory allows
_BATCH = 512  # tokens of a prompt read in one go: a request that was given up ends after so many at the latest
_ALL_F32 = 0  # llama.cpp's number for a file that is not quantised
_PROBE = "Grüße aus Zürich, 1932: def f(x): return x ** 2  # 你好 😀\n\n\tit's 3.14 — they'll see"


class LlamaCppModel:
    """A loaded GGUF file with its tokenizer and renderer. `adapters` are the LoRA files' names; the first is in use."""

    def __init__(
        self,
        name: str,
        server: Any,
        tokenizer: PreTrainedTokenizerBase,
        context_length: int,
        slots: int = SLOTS,
        template: str | None = None,
        adapters: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.context_length = context_length
        self.tokenizer = tokenizer
        self.renderer = Renderer(tokenizer, template)
        self._server = server
        self._turnstile = Turnstile(slots)
        self.adapters = tuple(adapters)
        self._adapter = self.adapters[0] if adapters else None

    def use_adapter(self, name: str | None) -> None:
        """Answer with another of the loaded adapters from the next request on; None: with the model alone."""
        if name is not None and name not in self.adapters:
            raise ValueError(f"unknown adapter '{name}'; loaded: {', '.join(self.adapters) or 'none'}")
        self._adapter = name

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

    def likeliest(self, ids: Sequence[int], count: int) -> list[tuple[int, float]]:
        """The `count` likeliest tokens after `ids`, with their natural log-probabilities, best first."""
        # A token that is whole text is forced: llama.cpp tells nothing of one that is a part of a character, and its
        # log-probabilities are those before the force.
        forced = self._encode("a")[0]
        body = {"prompt": list(ids), "n_predict": 1, "n_probs": count, "logit_bias": [[forced, 1000.0]]}
        with self._turnstile.enter():
            told = self._server.handle_completions(body)
        top = told["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        return [(each["id"], each["logprob"]) for each in top]

    def _generate(self, prompt_ids: list[int], generation: Generation, stops: Sequence[str]) -> Iterator[Delta]:
        check_fits(len(prompt_ids), generation, self.context_length)
        if not prompt_ids:
            raise ValueError("the prompt is empty; type some text")
        lora = [{"id": number, "scale": float(name == self._adapter)} for number, name in enumerate(self.adapters)]
        answer = Answer(self._server, self._encode, prompt_ids, generation, lora)
        pieces = iter(answer)
        kept = UntilStop(pieces, stops)
        with self._turnstile.enter(), contextlib.closing(pieces):  # type: ignore[type-var]  # a generator
            for text in kept:
                if text or answer.logprobs:
                    yield Delta(text, logprobs=answer.logprobs)
        reason: FinishReason = "stop" if answer.ended or kept.stopped_by else "length"
        yield Delta("", reason, Usage(len(prompt_ids), answer.count, answer.cached))

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def load(model: str, options: LoadOptions) -> LlamaCppModel:
    """Load a GGUF file, or the one beside a model directory. ValueError names the model and the remedy."""
    _check_options(options)
    file, folder = locate(model)
    header = read_header(file)
    if header.is_adapter:
        raise ValueError(f"{file} is a LoRA adapter and no model; give it to --adapter")
    adapters = [_adapter(path, header) for path in options.adapters]
    context_length, slots = _sizes(header, options.context_length)
    server = _open_server(model, header, options, adapters, context_length * slots, slots)
    tokenizer = _tokenizer(model, file, folder)
    names = [path.name for path in adapters]
    loaded = LlamaCppModel(model, server, tokenizer, context_length, slots, options.template, names)
    _check_same_tokens(loaded, header)
    return loaded


def locate(model: str) -> tuple[Path, Path | None]:
    """The GGUF file that `model` stands for, and the directory with its tokenizer (None: use the file's own).

    Raises ValueError where there is no such file or directory, and for a directory without a GGUF file.
    """
    path = expand(model)
    if model.lower().endswith(".gguf") or path.is_file():
        folder = path.parent
    else:
        folder = Path(resolve_model(model))
        if is_adapter(str(folder)):
            raise ValueError(f"'{model}' is an adapter directory, which transformers runs: --engine transformers")
        if (found := find_gguf(folder)) is None:
            raise ValueError(
                f"model '{model}' has no GGUF file in {folder}; make one with: python tools/convert_hf_to_gguf.py "
                f"{model} --out {folder / 'model.Q8_0.gguf'}"
            )
        path = found
    return path, folder if (folder / "tokenizer.json").is_file() else None


def has_wheel() -> bool:
    """Whether the `gguf` extra is installed."""
    import importlib.util

    return importlib.util.find_spec("xllamacpp") is not None


def _wheel() -> Any:
    try:
        import xllamacpp
    except ImportError:
        raise ValueError("the llama.cpp engine needs xllamacpp; install it with: pip install 'parley[gguf]'") from None
    return xllamacpp


def _check_options(options: LoadOptions) -> None:
    if options.template:
        find_template(options.template)
    for flag, given in (
        ("--dtype", options.dtype != "auto"),
        ("--load-in-8bit", options.load_in_8bit),
        ("--load-in-4bit", options.load_in_4bit),
        ("--gpu-vram", bool(options.gpu_vram)),
        ("--cpu-ram", options.cpu_ram is not None),
        ("--draft-model", options.draft_model is not None),
    ):
        if given:
            raise ValueError(f"the llama.cpp engine does not know {flag}; leave it out, or use --engine transformers")
    on_gpu = bool(options.gpu_layers) or options.gpu_id is not None or (options.device or "cpu") != "cpu"
    if on_gpu and not _gpus(_wheel()):
        raise ValueError(
            "this build of xllamacpp runs on the CPU only; leave out --gpu-layers, --gpu-id and --device, or install "
            "one of its GPU builds (its project page has them)"
        )


def _gpus(wheel: Any) -> list[Any]:
    return [each for each in wheel.get_device_info() if "CPU" not in str(each.get("type", each))]


def _adapter(path: str, header: GgufHeader) -> Path:
    file = expand(path)
    if file.is_dir():
        raise ValueError(f"adapter '{path}' is a directory; llama.cpp takes LoRA adapters as GGUF files")
    adapter = read_header(file)
    if not adapter.is_adapter or adapter.architecture != header.architecture:
        raise ValueError(f"{file} is no LoRA adapter for {header.architecture}; give one made for this model")
    return file


def _sizes(header: GgufHeader, wanted: int | None) -> tuple[int, int]:
    """Context of one request in tokens, and requests at once, so that their caches take a quarter of the memory."""
    if wanted and wanted > header.context_length:
        raise ValueError(f"--context-length {wanted} exceeds the {header.context_length} tokens that the model knows")
    room = _memory() // 4 // header.cache_bytes
    context_length = wanted or max(min(header.context_length, room), min(header.context_length, 512))
    return context_length, max(1, min(SLOTS, room // context_length))


def _memory() -> int:
    """Bytes of main memory; 8 GiB where the system does not say (Windows)."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30


def _tokenizer(model: str, file: Path, folder: Path | None) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    where: dict[str, Any] = {} if folder else {"gguf_file": file.name}
    try:
        with loading_errors(model):
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder or file.parent, trust_remote_code=False, **where
            )
    except ValueError as error:
        raise ValueError(f"{error}; put the model's tokenizer.json and tokenizer_config.json beside the file") from None
    return tokenizer


def _open_server(
    model: str, header: GgufHeader, options: LoadOptions, adapters: Sequence[Path], num_cells: int, slots: int
) -> Any:
    wheel = _wheel()
    params = wheel.CommonParams()
    params.model.path = str(header.path)
    params.n_ctx, params.n_parallel = num_cells, slots
    params.n_batch = params.n_ubatch = _BATCH
    params.cache_ram_mib = _memory() >> 26  # a 64th of the memory, for prompts that no slot holds
    params.verbosity = -1
    params.ui = False
    params.n_threads_http = 1
    params.api_keys = [secrets.token_urlsafe(32)]
    threads = options.threads or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else []) or -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.main_gpu = options.gpu_id or 0
    params.n_gpu_layers = 0 if options.device == "cpu" else -1 if options.gpu_layers is None else options.gpu_layers
    if header.values.get("general.file_type") == _ALL_F32:
        params.cache_type_k = params.cache_type_v = wheel.ggml_type.GGML_TYPE_F32
    params.lora_adapters = [
        wheel.CommonAdapterLoraInfo(str(path), 1.0 if number == 0 else 0.0) for number, path in enumerate(adapters)
    ]
    with tempfile.TemporaryDirectory(prefix="parley-") as private, _own_signals():
        params.hostnames = ["127.0.0.1" if os.name == "nt" else f"{private}/llama.sock"]
        params.port = 0
        try:
            return wheel.Server(params)
        except (RuntimeError, ValueError) as error:
            raise ValueError(
                f"llama.cpp cannot load '{model}' (architecture '{header.architecture}', {header.path.name}): it does "
                "not know the architecture or the file is damaged; try a newer xllamacpp, convert the model anew, or "
                "use --engine transformers"
            ) from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """llama.cpp's server takes SIGINT and SIGTERM for itself; give them back to Python, from whichever thread."""
    get, put = ctypes.pythonapi.PyOS_getsig, ctypes.pythonapi.PyOS_setsig
    get.restype = put.restype = ctypes.c_void_p
    get.argtypes, put.argtypes = [ctypes.c_int], [ctypes.c_int, ctypes.c_void_p]
    before = {number: get(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            put(number, handler)


def _check_same_tokens(loaded: LlamaCppModel, header: GgufHeader) -> None:
    """The tokenizer must be the file's: one from another model would make nonsense of every prompt."""
    num_words = header.lengths.get("tokenizer.ggml.tokens", 0)
    # n_predict 0 reads the text and says how many tokens it had, as llama.cpp itself cuts it.
    told = loaded._server.handle_completions({"prompt": _PROBE, "n_predict": 0, "temperature": 0.0})
    theirs = told.get("usage", {}).get("prompt_tokens")
    ours = len(loaded.renderer.plain_ids(_PROBE))
    if len(loaded.tokenizer) > num_words or ours != theirs:
        raise ValueError(
            f"the tokenizer beside {header.path.name} does not fit it ({ours} tokens for a text of {theirs}, "
            f"{len(loaded.tokenizer)} words for {num_words}); put the GGUF file into its own model's directory"
        )

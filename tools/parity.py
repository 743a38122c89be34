"""The gate at the end of every conversion of weights: the result must say what its source says, or is not written.

A few conversations must render to the same text and the same token ids. For each of them the source continues
greedily for NUM_TOKENS tokens; at every one of those places the result must find the same token likeliest (or one that
the source holds for as likely, within the tolerance), and give its own likeliest tokens the log-probabilities that the
source gives them, within a tolerance that depends on how the weights are stored (TOLERANCES).
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation
from chatbot.engines.gguf_file import GgufHeader, read_header
from chatbot.rendering import Renderer
from common.files import check_can_write, sync_file, sync_folder
from common.models import loading_errors

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NUM_TOKENS = 32  # greedy tokens per conversation
_TOP = 20  # tokens compared at each place
# How the result stores its weights -> most that log-probabilities may differ, in nats, on average over all that is
# compared (docs/weights.md has what was measured). A wrong conversion is off by several nats.
TOLERANCES = {
    # directories
    "float32": 0.001,
    "float16": 0.02,
    "bfloat16": 0.1,
    # GGUF files, of which the first two allow for llama.cpp's own arithmetic
    "f32": 0.01,
    "f16": 0.02,
    "q8_0": 0.3,
    "q4_0": 2.0,
}
_TIE = 5  # tolerances: another token is as good as the greedy one where the source gives it so much less at most

CONVERSATIONS = (
    Conversation().add("user", "What is the capital of France?"),
    Conversation().add("system", "You answer in one sentence.").add("user", "Why is the sky blue?"),
    Conversation().add("user", "Hello!").add("assistant", "Hi there.").add("user", "Count from 1 to 1932."),
    Conversation().add("user", "def f(x):\n    return x ** 2  # Grüße, 你好 😀\n\nWhat does it do?"),
)

# For the ids of a prompt and of its continuation: the likeliest next tokens at each place of the continuation, as
# (id, natural log-probability), best first.
Likeliest = Callable[[list[int], list[int]], list[list[tuple[int, float]]]]


@dataclass(frozen=True)
class Reference:
    """What the source says: for each conversation its text and token ids, the greedy continuation, and the
    log-probabilities (NUM_TOKENS, vocabulary) from which each of its tokens was chosen."""

    texts: list[str]
    ids: list[list[int]]
    continuations: list[list[int]]
    logprobs: list[torch.Tensor]

    @staticmethod
    def of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Reference:
        """Ask the source; it should be in float32."""
        renderer = Renderer(tokenizer)
        ids = [renderer.ids(each) for each in CONVERSATIONS]
        continuations = [_greedy(model, each) for each in ids]
        logprobs = [_logprobs(model, *both) for both in zip(ids, continuations, strict=True)]
        return Reference([renderer.text(each) for each in CONVERSATIONS], ids, continuations, logprobs)


@dataclass(frozen=True)
class Parity:
    """How near a result came: of `num_tokens` greedy ones `num_same` are the source's; mean and largest difference of
    log-probabilities, in nats; `by` is what ran the result."""

    num_tokens: int
    num_same: int
    mean: float
    largest: float
    by: str

    def __str__(self) -> str:
        return (
            f"{len(CONVERSATIONS)} conversations have the same text and token ids; {self.num_same} of "
            f"{self.num_tokens} greedy tokens are the same; log-probabilities differ by {self.mean:.2g} on average, "
            f"{self.largest:.2g} at most ({self.by})"
        )


def check_directory(reference: Reference, folder: Path, kind: str) -> Parity:
    """Compare a Hugging Face directory, loaded anew, with its source. Raises ValueError that says what differs.

    `kind` is a key of TOLERANCES.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with loading_errors(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
        )
    check_rendering(reference, tokenizer)
    return compare(reference, _likeliest_of(model.eval()), kind, "transformers")


def check_gguf(reference: Reference, file: Path, kind: str) -> Parity:
    """The same for a GGUF file: its tokenizer as transformers reads it, its weights by llama.cpp where that is
    installed, else by transformers, which cannot read all that llama.cpp can."""
    if importlib.util.find_spec("xllamacpp") is not None:
        from chatbot.engines import LoadOptions
        from chatbot.engines.llamacpp_engine import load

        # As many threads as may be idle: llama.cpp's wait for one another without rest. `load` compares its count of
        # tokens with the tokenizer's.
        loaded = load(str(file), LoadOptions(device="cpu", threads=max(1, (os.cpu_count() or 1) // 2)))
        check_rendering(reference, loaded.tokenizer)

        def likeliest(ids: list[int], continuation: list[int]) -> list[list[tuple[int, float]]]:
            return [loaded.likeliest(ids + continuation[:n], _TOP) for n in range(len(continuation))]

        return compare(reference, likeliest, kind, "llama.cpp")
    try:
        tokenizer, model = load_gguf(file)
        check_rendering(reference, tokenizer)
        return compare(reference, _likeliest_of(model), kind, "transformers")
    except ValueError as error:
        raise ValueError(f"{error}; llama.cpp, which reads more, can judge it: pip install 'parley[gguf]'") from None


def check_rendering(reference: Reference, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError, with both, where a conversation comes out as another text or other token ids."""
    renderer = Renderer(tokenizer)
    for conversation, text, ids in zip(CONVERSATIONS, reference.texts, reference.ids, strict=True):
        if (found := renderer.text(conversation)) != text:
            raise ValueError(f"the chat template differs: {found!r} instead of {text!r}")
        if (new := renderer.ids(conversation)) != ids:
            place = next((n for n, pair in enumerate(zip(ids, new, strict=False)) if pair[0] != pair[1]), len(ids))
            raise ValueError(
                f"token ids differ at place {place} of {text!r}: {new[place : place + 5]} instead of "
                f"{ids[place : place + 5]}"
            )


def compare(reference: Reference, likeliest: Likeliest, kind: str, by: str) -> Parity:
    """Compare what a result finds likeliest with its source. Raises ValueError beyond the tolerance of `kind`."""
    tolerance = TOLERANCES[kind]
    same, differences, worst = 0, [], 0.0
    for ids, continuation, logprobs_TV in zip(reference.ids, reference.continuations, reference.logprobs, strict=True):
        told = likeliest(ids, continuation)
        for expected, logprobs_V, top in zip(continuation, logprobs_TV, told, strict=True):
            differences += [abs(value - float(logprobs_V[id_])) for id_, value in top]
            chosen = top[0][0]
            same += chosen == expected
            worst = max(worst, float(logprobs_V[expected] - logprobs_V[chosen]))
    mean = sum(differences) / len(differences)
    found = Parity(sum(map(len, reference.continuations)), same, mean, max(differences), by)
    if not mean <= tolerance:  # NaN too
        raise ValueError(f"log-probabilities differ by {mean:.3g} on average, more than {tolerance} for {kind} ({by})")
    if not worst <= _TIE * tolerance:
        raise ValueError(
            f"another greedy token is {worst:.3g} nats less likely in the source, more than {_TIE * tolerance:g} for "
            f"{kind} ({found.num_same} of {found.num_tokens} are the same, {by})"
        )
    return found


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Tokenizer and float32 model of a GGUF file, as transformers reads them. ValueError where it cannot."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    header = read_header(file)
    where: dict[str, Any] = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    with loading_errors(str(file)):
        tokenizer = AutoTokenizer.from_pretrained(**where)
        config = _completed(AutoConfig.from_pretrained(**where), header)
        model = AutoModelForCausalLM.from_pretrained(**where, config=config, dtype=torch.float32)
    stored, taken = sum(header.tensors.values()), sum(each.numel() for each in model.parameters())
    if stored != taken:
        raise ValueError(
            f"{file.name} holds {stored:,} numbers, of which transformers takes {taken:,}: it does not know this kind "
            "of file (a scaled rotary encoding, for one); run it with --engine llamacpp"
        )
    return tokenizer, model.eval()


def _completed(config: Any, header: GgufHeader) -> Any:
    """What transformers does not read from a GGUF file: the size of a head, and that there are biases."""
    if (head_size := header.number("attention.key_length")) and hasattr(config, "head_dim"):
        config.head_dim = head_size
    for flag, tensor in (("attention_bias", "blk.0.attn_q.bias"), ("mlp_bias", "blk.0.ffn_up.bias")):
        if hasattr(config, flag):
            setattr(config, flag, tensor in header.tensors)
    return config


@contextlib.contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A path in a temporary folder beside `target` to write to and check; at the end it is renamed to `target`.

    After an error nothing stands at `target`. Raises ValueError where something stands there before, or the folder
    cannot be written to. Folders that killed runs left are removed after an hour.
    """
    if target.exists():
        raise ValueError(f"{target} exists; remove it first, or name another")
    check_can_write(target)
    for old in target.parent.glob(f".{target.name}.*.converting"):
        if time.time() - old.stat().st_mtime > 3600:
            shutil.rmtree(old, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".converting") as scratch:
        made = Path(scratch) / target.name
        yield made
        for file in [made, *made.rglob("*")]:
            file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors makes its files private
            (sync_folder if file.is_dir() else sync_file)(file)
        made.rename(target)
        sync_folder(target.parent)


def _greedy(model: PreTrainedModel, ids: list[int]) -> list[int]:
    """The likeliest token, NUM_TOKENS times; an end of text does not end it, so that there is enough to compare."""
    import torch

    new: list[int] = []
    cache, step = None, ids
    with torch.inference_mode():
        for _ in range(NUM_TOKENS):
            outcome = model(torch.tensor([step], device=model.device), past_key_values=cache, use_cache=True)
            cache = outcome.past_key_values
            new.append(int(outcome.logits[0, -1].argmax()))
            step = new[-1:]
    return new


def _logprobs(model: PreTrainedModel, ids: list[int], continuation: list[int]) -> torch.Tensor:
    """Of the next token at each place of the continuation: (places, vocabulary)."""
    import torch

    with torch.inference_mode():
        logits_TV = model(torch.tensor([ids + continuation[:-1]], device=model.device)).logits[0, len(ids) - 1 :]
    logprobs_TV: torch.Tensor = logits_TV.float().log_softmax(-1).cpu()
    return logprobs_TV


def _likeliest_of(model: PreTrainedModel) -> Likeliest:
    def likeliest(ids: list[int], continuation: list[int]) -> list[list[tuple[int, float]]]:
        best = _logprobs(model, ids, continuation).topk(_TOP)
        return [list(zip(*pair, strict=True)) for pair in zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    return likeliest

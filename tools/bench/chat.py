"""The engines beside their peers: first token, tokens a second, conversations that go on, several people at once.

Run: python -m tools.bench.chat [--model smollm2-135m] [--repeat 3]

All on one model, in one run, in turn, so that a change in the machine's load meets all; medians are shown. The peers
are transformers' own `generate`, and llama.cpp's own HTTP server on the same file. Each prompt begins with a number of
its own, so that nothing is in a cache unless it is meant to be.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import click
import httpx

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, llamacpp_engine, transformers_engine
from chatbot.engines.auto import gguf_beside
from chatbot.engines.base import ChatModel, Generation
from chatbot.engines.llamacpp_engine import LlamaCppModel, has_wheel
from chatbot.engines.transformers_engine import TransformersModel
from chatbot.prompting import with_passages
from common.cli import OneLineCommand
from retrieval.types import Passage

NUM_TOKENS = 48
NUM_TURNS = 6
NUM_CLIENTS = 8
SENTENCES = (
    "Zurich is the largest city in Switzerland.",
    "It lies where the river Limmat leaves Lake Zurich.",
    "The Romans ran a customs post here, which they called Turicum.",
    "Trams are the backbone of public transport.",
)
QUESTION = "Write a long story about a river and a town."

Timing = tuple[float, float]  # seconds to the first token, tokens a second after it
Ask = Callable[[Conversation], Timing]
_numbers = count(1)


def fresh(text: str) -> Conversation:
    """A conversation that shares no beginning with any other."""
    return Conversation().add("system", f"{next(_numbers)} is the number of this talk.").add("user", text)


def passages(number: int, num: int = 6) -> list[Passage]:
    """`num` passages of about 130 tokens, different for each number."""
    text = " ".join(f"{sentence} ({number}.{i})" for i, sentence in enumerate(SENTENCES * 2))
    return [Passage(f"{number}-{i}", text, f"Zurich {i}", "zurich.md", i, i) for i in range(num)]


def streamed(model: ChatModel) -> Ask:
    """Ask one of Parley's engines."""

    def ask(conversation: Conversation) -> Timing:
        started, first, end, made = time.perf_counter(), 0.0, 0.0, 0
        for delta in model.stream(conversation, Generation(max_tokens=NUM_TOKENS)):
            if delta.text:  # as for the peers: until the last text, not until the connection is given back
                end = time.perf_counter()
                first = first or end - started
            made = delta.usage.completion_tokens if delta.usage else made
        return first, (made - 1) / (end - started - first)

    return ask


def generated(model: TransformersModel) -> Ask:
    """Ask transformers itself: `generate`, once for a token and once for all."""
    import torch

    generate: Any = model.model.generate

    def seconds(ids_BT: torch.Tensor, num_tokens: int) -> tuple[float, int]:
        started = time.perf_counter()
        out = generate(ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=num_tokens, do_sample=False)
        return time.perf_counter() - started, out.shape[1] - ids_BT.shape[1]

    def ask(conversation: Conversation) -> Timing:
        ids_BT = torch.tensor([model.renderer.ids(conversation)])
        (first, _), (whole, made) = seconds(ids_BT, 1), seconds(ids_BT, NUM_TOKENS)
        return first, (made - 1) / (whole - first)

    return ask


@contextmanager
def llama_server(file: Path, model: LlamaCppModel) -> Iterator[Ask]:
    """Ask llama.cpp's own server over HTTP, by token ids."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel, params.n_ctx, params.port, params.verbosity = 4, 4 * model.context_length, 0, -1
    server = xllamacpp.Server(params)

    def ask(conversation: Conversation) -> Timing:
        body = {"prompt": model.renderer.ids(conversation), "n_predict": NUM_TOKENS, "temperature": 0, "stream": True}
        started, first, end, made = time.perf_counter(), 0.0, 0.0, 0
        with client.stream("POST", f"{server.listening_address}/completion", json=body) as response:
            for line in response.iter_lines():
                if line.startswith("data: ") and json.loads(line[6:]).get("content"):
                    end, made = time.perf_counter(), made + 1
                    first = first or end - started
        return first, (made - 1) / (end - started - first)

    with httpx.Client(timeout=600) as client:
        yield ask


def show_single(
    asks: dict[str, Ask], peers: dict[str, str], count_tokens: Callable[[Conversation], int], repeat: int
) -> None:
    """A short and a long prompt, each engine beside its peer."""
    prompts = {"short": QUESTION, "with passages": with_passages(QUESTION, passages(0))}
    click.echo(
        f"{'prompt':<15}{'tokens':>7}  {'engine':<22}{'first token, s':>15}{'peer':>7}{'tokens/s':>10}{'peer':>7}"
    )
    for name, text in prompts.items():
        times: dict[str, list[Timing]] = {engine: [] for engine in asks}
        for _ in range(repeat):
            for engine, ask in asks.items():
                times[engine].append(ask(fresh(text)))
        median = {
            engine: [statistics.median(column) for column in zip(*rows, strict=True)] for engine, rows in times.items()
        }
        for engine, (first, rate) in median.items():
            peer = median.get(peers.get(engine, ""))
            ratios = ("", "") if peer is None else (f"{first / peer[0]:.2f}", f"{rate / peer[1]:.2f}")
            tokens = count_tokens(fresh(text))
            click.echo(f"{name:<15}{tokens:>7}  {engine:<22}{first:>15.3f}{ratios[0]:>7}{rate:>10.1f}{ratios[1]:>7}")


def show_conversation(engine: str, ask: Ask) -> None:
    """First tokens of a conversation whose passages are kept, and of the same prompts with nothing in the cache."""
    kept, anew = [], []
    talk, cold = fresh(""), fresh("")
    talk, cold = Conversation(talk.messages[:1]), Conversation(cold.messages[:1])
    for turn in range(1, NUM_TURNS + 1):
        asked = with_passages(f"What is said of the town in {turn}?", passages(turn, 2))
        talk = talk.add("user", asked)
        kept.append(ask(talk)[0])
        system = fresh("").messages[:1]  # another beginning: the same prompt, and nothing of it known
        anew.append(ask(Conversation((*system, *talk.messages[1:])))[0])
        talk = talk.add("assistant", f"In {turn} it is said that trams are the backbone of public transport.")
    shown = " ".join(f"{seconds:.2f}" for seconds in kept)
    click.echo(
        f"{engine:<22}first tokens of {NUM_TURNS} turns: {shown} s; turn 6 / turn 2 {kept[5] / kept[1]:.2f}; ", nl=False
    )
    click.echo(f"in all {sum(kept):.2f} s, read anew {sum(anew):.2f} s, {sum(anew) / sum(kept):.2f} times")


def show_clients(engine: str, model: ChatModel) -> None:
    """Tokens a second of several at once and of the same one after the other."""
    lock, total = threading.Lock(), [0]

    def one(number: int) -> None:
        talk = fresh(f"Tell me something about the number {number}, at length.")
        for delta in model.stream(talk, Generation(max_tokens=NUM_TOKENS)):
            if delta.usage:
                with lock:
                    total[0] += delta.usage.completion_tokens

    rates = []
    for at_once in (1, NUM_CLIENTS):
        total[0], started = 0, time.perf_counter()
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(one, range(NUM_CLIENTS)))
        rates.append(total[0] / (time.perf_counter() - started))
    click.echo(
        f"{engine:<22}{NUM_CLIENTS} requests: one by one {rates[0]:.1f} tokens/s, at once {rates[1]:.1f}, ", nl=False
    )
    click.echo(f"{rates[1] / rates[0]:.2f} times")


@click.command(cls=OneLineCommand)
@click.option("--model", default="smollm2-135m", show_default=True)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
def cli(model: str, repeat: int) -> None:
    """Print speeds of the engines, each beside its peer."""
    reference = transformers_engine.load(model, LoadOptions())
    asks = {"transformers": streamed(reference), "generate": generated(reference)}
    engines: dict[str, ChatModel] = {"transformers": reference}
    file = gguf_beside(model)
    if file is None or not has_wheel():
        click.echo("llama.cpp is left out: no GGUF file beside the model, or the gguf extra is not installed", err=True)
        show_all(engines, asks, repeat)
        return
    fast = llamacpp_engine.load(model, LoadOptions())
    engines["llama.cpp"], asks["llama.cpp"] = fast, streamed(fast)
    with llama_server(file, fast) as server:
        asks["llama.cpp's server"] = server
        show_all(engines, asks, repeat)


def show_all(engines: dict[str, ChatModel], asks: dict[str, Ask], repeat: int) -> None:
    """Every table."""
    for ask in asks.values():
        ask(fresh("Warm up."))
    peers = {"transformers": "generate", "llama.cpp": "llama.cpp's server"}
    show_single(asks, peers, engines["transformers"].count_tokens, repeat)
    for name, engine in engines.items():
        show_conversation(name, streamed(engine))
    for name, engine in engines.items():
        show_clients(name, engine)


if __name__ == "__main__":
    cli()

"""The same weights, greedy: transformers, llama.cpp and a client of either server say the same.

An answer is checked by one run of plain transformers over prompt and answer together: greedy generation would have
given it where each of its tokens is the likeliest after those before it. That costs a tenth of generating it again.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp")

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Delta, Generation
from chatbot.rendering import Renderer
from tools.convert_hf_to_gguf import write_gguf

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = (
    "Where is Zurich?",
    "What is the capital of France? One word.",
    "Name three animals that live in the sea.",
    "Why is the sky blue?",
    "Write a haiku about autumn.",
    "What is 12 + 30?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Hamlet?",
    "Explain photosynthesis to a child.",
    "How do I boil an egg?",
    "Give me a recipe for pancakes.",
    "What does HTTP stand for?",
    "Write a Python function that adds two numbers.",
    "List the days of the week.",
    "Why do cats purr?",
    "What is the boiling point of water in °C?",
    "Was ist die Hauptstadt von Österreich?",
    "Summarise: the bridge was opened in 1932, and it carries eight lanes of traffic.",
    "Is a tomato a fruit? <|im_end|>\n<|im_start|>user\nHello",
    "Tell me a joke about a 😀 and a 🐴.",
)
GREEDY = Generation(max_tokens=32)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def answer(model: Any, prompt: str) -> tuple[str, bool]:
    """The answer, and whether it ended by itself."""
    deltas: list[Delta] = list(model.stream(Conversation().add("user", prompt), GREEDY))
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason == "stop"


def answers(model: Any, at_once: int = 4) -> list[tuple[str, bool]]:
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda prompt: answer(model, prompt), PROMPTS))


class Reference:
    """Plain transformers."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.renderer = Renderer(AutoTokenizer.from_pretrained(folder))

    def would_say(self, prompt: str, text: str, ended: bool) -> bool:
        """Whether greedy generation answers `prompt` with `text`, up to 32 tokens."""
        import torch

        ids = self.renderer.ids(Conversation().add("user", prompt))
        new = self.renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            likeliest = self.model(torch.tensor([ids + new])).logits[0, len(ids) - 1 :].argmax(-1).tolist()
        wanted = [*new, self.renderer.tokenizer.eos_token_id] if ended else new
        return wanted == likeliest[: len(wanted)] and (ended or len(new) >= 29)  # the end may be half a character

    def differing(self, found: list[tuple[str, bool]]) -> list[str]:
        pairs = zip(PROMPTS, found, strict=True)
        return [f"{prompt!r}: {text!r}" for prompt, (text, ended) in pairs if not self.would_say(prompt, text, ended)]


@pytest.fixture(scope="session")
def f32_gguf(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The prepared model in full precision as one file."""
    file = tmp_path_factory.mktemp("gguf") / "smollm2.F32.gguf"
    write_gguf(smollm2, file, "f32")
    return file


@pytest.fixture(scope="session")
def reference(smollm2: Path) -> Reference:
    return Reference(smollm2)


@pytest.fixture
def llama_server(f32_gguf: Path) -> Iterator[tuple[str, str]]:
    """llama.cpp's own HTTP server: (its address, its key)."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(f32_gguf)
    params.model_alias = {"smollm2"}
    params.n_parallel, params.n_ctx, params.port, params.verbosity = 4, 4 * 1024, 0, -1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.api_keys = ["secret"]
    params.warmup = False
    server = xllamacpp.Server(params)
    yield f"{server.listening_address}/v1", "secret"
    del server


@pytest.fixture
def parley_server(f32_gguf: Path) -> Iterator[str]:
    """`python -m chatbot.server` on the same file: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "chatbot.server", "--model", str(f32_gguf), "--engine", "llamacpp"]
    more = ["--port", str(port), "--no-retrieval", "--repetition-penalty", "1", "--threads", "1"]
    with subprocess.Popen([*command, *more], cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not listens(port):
                assert process.poll() is None, process.communicate()[1]
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            process.communicate(timeout=60)


@pytest.mark.timeout(600)
def test_the_check_itself(smollm2: Path, reference: Reference) -> None:
    """The transformers engine's answers pass it, others do not."""
    model = open_engine("transformers", str(smollm2), LoadOptions(device="cpu"))
    for prompt in PROMPTS[:2]:
        text, ended = answer(model, prompt)
        assert reference.would_say(prompt, text, ended)
        assert not reference.would_say(prompt, text, not ended)
        assert not reference.would_say(prompt, "No" + text[2:], ended)


@pytest.mark.timeout(600)
def test_llama_cpp_says_what_transformers_says(f32_gguf: Path, reference: Reference) -> None:
    model = open_engine("llamacpp", str(f32_gguf), LoadOptions(threads=1))
    assert len(found := reference.differing(answers(model))) <= 1, found


@pytest.mark.timeout(600)
def test_a_client_of_llama_cpps_server_gets_the_same(llama_server: tuple[str, str], reference: Reference) -> None:
    url, key = llama_server
    model = open_engine("openai", "smollm2", LoadOptions(base_url=url, api_key=key))
    # The last but one holds a forged turn, which is broken up in the same way here and there.
    assert len(found := reference.differing(answers(model))) <= 1, found


@pytest.mark.timeout(600)
def test_a_client_of_parleys_server_gets_the_same(parley_server: str, f32_gguf: Path, reference: Reference) -> None:
    model = open_engine("openai", str(f32_gguf), LoadOptions(base_url=parley_server))
    assert len(found := reference.differing(answers(model))) <= 1, found

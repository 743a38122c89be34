"""Requests of several threads: together the same tokens as alone, fair, and none harmed by another's failure."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation
from chatbot.engines.decoding.plain import PlainRunner
from chatbot.engines.decoding.ragged import KNOWN_TYPES, open_ragged
from chatbot.engines.decoding.running import Work, run_in_chunks
from chatbot.engines.transformers_engine import TransformersModel

CPU = LoadOptions(device="cpu")
PROMPTS = [Conversation().add("user", f"{'Hello there. ' * (n % 5)}Question {n}, who are you?") for n in range(12)]


@pytest.fixture(scope="module")
def tiny(tiny_chat_model: Path) -> Any:
    return open_engine("transformers", str(tiny_chat_model), CPU)


def said(model: Any, conversation: Conversation, generation: Generation) -> str:
    return "".join(delta.text for delta in model.stream(conversation, generation))


def together(model: Any, jobs: list[tuple[Conversation, Generation]]) -> list[str]:
    with ThreadPoolExecutor(len(jobs)) as pool:
        return list(pool.map(lambda job: said(model, *job), jobs))


# The runner ---------------------------------------------------------------------------------------------------------

SIZES = {"vocab_size": 120, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3}
EXTRAS: dict[str, dict[str, Any]] = {"mistral": {"sliding_window": None}, "gemma": {"head_dim": 8}}


def random_model(kind: str) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES, **HEADS, **EXTRAS.get(kind, {}), pad_token_id=0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("kind", sorted(KNOWN_TYPES))
def test_a_known_architecture_gives_the_logits_of_its_own_forward_pass(kind: str) -> None:
    """Three sequences in pieces of other sizes, together, against one plain pass of each."""
    import torch

    model = random_model(kind)
    texts = [[(7 * i + n) % 120 for i in range(length)] for n, length in enumerate((23, 9, 40))]
    with torch.inference_mode():
        expected = [model(torch.tensor([text])).logits[0, -1] for text in texts]
    runner: Any = open_ragged(model, 4)
    assert runner is not None
    caches = [runner.new() for _ in texts]
    for start, stop in ((0, 5), (5, 6), (6, 9)):
        runner.forward([Work(cache, text[start:stop], 0) for cache, text in zip(caches, texts, strict=True)])
    runner.forward([Work(caches[2], texts[2][9:39]), Work(caches[0], texts[0][9:22], 2)])
    caches[1].truncate(8)
    last = runner.forward([Work(cache, text[-1:]) for cache, text in zip(caches, texts, strict=True)])
    for found, reference in zip(last, expected, strict=True):
        torch.testing.assert_close(found[-1], reference, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():  # what others call is as it was
        torch.testing.assert_close(model(torch.tensor([texts[0]])).logits[0, -1], expected[0])


def test_an_unknown_architecture_is_tried_out_before_it_is_trusted() -> None:
    stranger = random_model("starcoder2")
    assert stranger.config.model_type not in KNOWN_TYPES
    assert open_ragged(stranger, 4) is not None, "it agreed"
    assert open_ragged(random_model("gemma2"), 4) is None, "its layers have windows"


OTHERS: dict[str, dict[str, Any]] = {
    "bloom": {"hidden_size": 24, "n_layer": 2, "n_head": 2},  # ALiBi
    "opt": {
        "hidden_size": 24,
        "word_embed_proj_dim": 24,
        "ffn_dim": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 2},  # learnt positions
    "mamba": {"hidden_size": 24, "num_hidden_layers": 2},  # a state, no keys and values
    "falcon_h1": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, **HEADS},  # both
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_architectures_run_one_at_a_time_and_say_the_same(kind: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, vocab_size=120, pad_token_id=0, bos_token_id=1, eos_token_id=2, **OTHERS[kind])
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    text = [(7 * i) % 120 for i in range(30)]
    with torch.inference_mode():
        expected = model(torch.tensor([text])).logits[0, -1]
    runner = open_ragged(model, 4) or PlainRunner(model)
    cache = runner.new()
    if runner.truncates:
        run_in_chunks(runner, cache, text[:20])
        cache.truncate(10)
    found = run_in_chunks(runner, cache, text[len(cache.tokens) :])
    torch.testing.assert_close(found[-1], expected, rtol=1e-4, atol=1e-4)


# Together -----------------------------------------------------------------------------------------------------------


def test_together_and_alone_the_tokens_are_the_same(tiny: Any) -> None:
    """Greedy, and drawn by seed with settings of each one's own."""
    settings: list[dict[str, Any]] = [
        {},
        {"sample": True, "temperature": 1.0, "seed": 5},
        {"repetition_penalty": 1.3},
        {"sample": True, "top_p": 0.8, "top_k": 0, "seed": 6},
    ]
    jobs = [(each, Generation(max_tokens=20 + n, **settings[n % 4])) for n, each in enumerate(PROMPTS)]
    alone = [said(tiny, *job) for job in jobs]
    tiny.forget()
    for _ in range(3):
        assert together(tiny, jobs) == alone


def test_the_real_model_says_the_same_together_and_alone(smollm2: Path) -> None:
    model: Any = open_engine("transformers", str(smollm2), CPU)
    questions = ("What is the capital of France?", "Count to five.", "Name a colour.", "Is water wet?")
    jobs = [(Conversation().add("user", each), Generation(max_tokens=12)) for each in questions]
    assert together(model, jobs) == [said(model, *job) for job in jobs]


def count_passes(model: TransformersModel) -> list[int]:
    """The number of sequences of every pass from now on."""
    runner: Any = model._scheduler._runner
    sizes: list[int] = []
    forward = runner.forward

    def counted(work: Any) -> Any:
        sizes.append(len(work))
        return forward(work)

    runner.forward = counted
    return sizes


def test_eight_requests_share_their_passes(tiny_chat_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_chat_model), CPU)
    sizes = count_passes(model)
    together(model, [(each, Generation(max_tokens=60)) for each in PROMPTS[:8]])
    assert max(sizes) == 8
    assert len(sizes) < 8 * 60 / 2


def test_a_full_house_serves_in_order_of_arrival(tiny_chat_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    weights = AutoModelForCausalLM.from_pretrained(tiny_chat_model).eval()
    model = TransformersModel("tiny", weights, AutoTokenizer.from_pretrained(tiny_chat_model), max_batch=2)
    order: list[int] = []
    threads = []

    def run(number: int) -> None:
        stream = model.stream(PROMPTS[number], Generation(max_tokens=30, stop=tuple("\ufffe")))
        next(stream)
        order.append(number)
        list(stream)

    for number in range(6):
        waiting = len(model._scheduler._waiting) + len(model._scheduler._active)
        threads.append(threading.Thread(target=run, args=(number,)))
        threads[-1].start()
        deadline = time.monotonic() + 1
        while len(model._scheduler._waiting) + len(model._scheduler._active) == waiting and time.monotonic() < deadline:
            time.sleep(0.0005)
    for thread in threads:
        thread.join()
    assert sorted(order) == list(range(6))
    assert all(abs(place - number) <= 1 for place, number in enumerate(order)), order


def test_a_closed_iterator_frees_its_place(tiny_chat_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_chat_model), CPU)
    sizes = count_passes(model)
    streams = [model.stream(each, Generation(max_tokens=400)) for each in PROMPTS[:4]]
    for stream in streams:
        next(stream)
    for stream in streams[1:]:
        stream.close()
    deadline = time.monotonic() + 10
    while len(model._scheduler._active) > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    del sizes[:]
    list(streams[0])
    assert set(sizes[1:]) <= {1}


def test_a_request_that_is_too_long_harms_nobody(tiny: Any) -> None:
    def refused() -> None:
        with pytest.raises(ValueError, match="exceed the model's context"):
            said(tiny, PROMPTS[0], Generation(max_tokens=5000))

    job = (PROMPTS[1], Generation(max_tokens=40))
    alone = said(tiny, *job)
    with ThreadPoolExecutor(4) as pool:
        good, bad = [pool.submit(said, tiny, *job) for _ in range(2)], [pool.submit(refused) for _ in range(2)]
        assert [each.result() for each in good] == [alone, alone]
        for each in bad:
            each.result()


@pytest.mark.parametrize("kind", ["memory", "other"])
def test_a_pass_that_fails_is_repaired_for_all_but_the_cause(kind: str, tiny_chat_model: Path) -> None:
    """A runner that cannot run one of the prompts: in a pass of many, and alone."""
    import torch

    model: Any = open_engine("transformers", str(tiny_chat_model), CPU)
    jobs = [(each, Generation(max_tokens=20)) for each in PROMPTS[:5]]
    alone = [said(model, *job) for job in jobs]
    model.forget()
    runner: Any = model._scheduler._runner
    poison = model.renderer.ids(PROMPTS[3])
    forward = runner.forward

    def fails(work: Any) -> Any:
        if any([*each.cache.tokens, *each.ids][: len(poison)] == poison for each in work):
            raise torch.OutOfMemoryError("no more") if kind == "memory" else RuntimeError("broken")
        return forward(work)

    runner.forward = fails
    with ThreadPoolExecutor(5) as pool:
        futures = [pool.submit(said, model, *job) for job in jobs]
    for number, future in enumerate(futures):
        if number == 3:
            error = future.exception()
            assert "the GPU ran out of memory" in str(error) if kind == "memory" else str(error) == "broken"
            assert isinstance(error, ValueError if kind == "memory" else RuntimeError)
        else:
            assert future.result() == alone[number]
    assert said(model, *jobs[0]) == alone[0]


def test_many_threads_may_count_and_render_at_once(tiny: Any) -> None:
    expected = [(tiny.count_tokens(each), tiny.render(each)) for each in PROMPTS]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(10):
            assert list(pool.map(lambda each: (tiny.count_tokens(each), tiny.render(each)), PROMPTS)) == expected


def test_an_iterator_that_nobody_reads_on_holds_up_nobody(tiny: Any) -> None:
    idle = tiny.stream(PROMPTS[0], Generation(max_tokens=400))
    next(idle)
    assert said(tiny, PROMPTS[1], Generation(max_tokens=5))
    idle.close()


def test_a_model_that_is_dropped_ends_its_thread(tiny_chat_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_chat_model), CPU)
    said(model, PROMPTS[0], Generation(max_tokens=2))
    thread, gone = model._scheduler._thread, weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
    thread.join(10)
    assert not thread.is_alive()


def test_a_process_may_end_in_the_middle_of_an_answer(tiny_chat_model: Path) -> None:
    code = (
        "import sys; from chatbot.engines import *; from chatbot.engines.base import Generation\n"
        "model = open_engine('transformers', sys.argv[1], LoadOptions(device='cpu'))\n"
        "stream = model.complete('Hello', Generation(max_tokens=450)); next(stream); print('said')"
    )
    run = [sys.executable, "-c", code, str(tiny_chat_model)]
    done = subprocess.run(run, capture_output=True, text=True, timeout=200, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "said\n", "")


def test_what_fails_before_a_pass_is_told_and_the_rest_goes_on(tiny_chat_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_chat_model), CPU)
    model._adapter = "never loaded"
    with pytest.raises((KeyError, ValueError), match=r"(?i)loaded"):
        said(model, PROMPTS[0], Generation(max_tokens=3))
    model._adapter = None
    assert said(model, PROMPTS[0], Generation(max_tokens=3))


def test_a_lower_context_length_holds(tiny_chat_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_chat_model), LoadOptions(device="cpu", context_length=60))
    assert model.context_length == 60
    with pytest.raises(ValueError, match="exceed the model's context of 60"):
        said(model, PROMPTS[4], Generation(max_tokens=50))
    larger: Any = open_engine("transformers", str(tiny_chat_model), LoadOptions(device="cpu", context_length=9999))
    assert larger.context_length == 512

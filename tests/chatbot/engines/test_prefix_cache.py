"""Key-value caches kept across turns: the same tokens as a fresh run, fewer of them run, memory bounded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation, Usage
from chatbot.engines.decoding.running import common_prefix, num_shared
from chatbot.engines.decoding.store import PrefixStore, default_bytes
from chatbot.engines.transformers_engine import TransformersModel

CPU = LoadOptions(device="cpu")
SHORT = Generation(max_tokens=12)


def open_tiny(folder: Path, **settings: Any) -> TransformersModel:
    """A tiny model with settings of the constructor."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    return TransformersModel(
        "tiny", AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder), **settings
    )


@pytest.fixture(scope="module")
def tiny(tiny_chat_model: Path) -> TransformersModel:
    return open_tiny(tiny_chat_model)


@pytest.fixture(scope="module")
def fresh(tiny_chat_model: Path) -> TransformersModel:
    """The same model, which keeps nothing."""
    return open_tiny(tiny_chat_model, cache_bytes=0)


def answer(model: Any, conversation: Conversation, generation: Generation = SHORT) -> tuple[str, Usage]:
    deltas = list(model.stream(conversation, generation))
    return "".join(delta.text for delta in deltas), deltas[-1].usage


def user(text: str, before: Conversation | None = None) -> Conversation:
    return (before or Conversation()).add("user", text)


def test_every_turn_says_what_a_fresh_model_says_and_runs_only_what_is_new(tiny: Any, fresh: Any) -> None:
    conversation = Conversation().add("system", "Six turns.")
    num_before = 0
    for turn in range(6):
        conversation = user(f"What about number {turn}?", conversation)
        text, usage = answer(tiny, conversation)
        expected, nothing = answer(fresh, conversation)
        assert text == expected
        assert nothing.cached_tokens == 0
        assert usage.cached_tokens >= num_before, "all of the last prompt"
        assert usage.cached_tokens < usage.prompt_tokens, "something is left to run"
        conversation = conversation.add("assistant", text)
        num_before = usage.prompt_tokens


def test_regenerate_undo_and_edit_say_what_a_fresh_model_says(tiny: Any, fresh: Any) -> None:
    first = user("The first question of a longer conversation, with some words in it.")
    second = user("And a second one.", first.add("assistant", answer(tiny, first)[0]))
    third = user("And a third.", second.add("assistant", answer(tiny, second)[0]))
    edited = user("And quite another second one.", Conversation(second.messages[:2]))
    for conversation in (third, third, second, edited, first, third):
        text, usage = answer(tiny, conversation)
        assert text == answer(fresh, conversation)[0]
        assert usage.cached_tokens > 0


def test_a_regenerated_answer_runs_one_token_of_the_prompt(tiny: Any) -> None:
    asked = user("Say it again, please.")
    answer(tiny, asked)
    assert answer(tiny, asked)[1].cached_tokens == tiny.count_tokens(asked) - 1


def test_conversations_that_share_a_beginning_do_not_take_each_others_cache(tiny_chat_model: Path) -> None:
    model = open_tiny(tiny_chat_model)
    system = Conversation().add("system", "The same long system text for everybody who comes and asks.")
    lines = [user(text, system) for text in ("one " * 30, "two " * 30, "three " * 30)]
    shared = [answer(model, line)[1].cached_tokens for line in lines]
    assert shared[0] == 0
    assert min(shared[1:]) >= model.count_tokens(system) - 8, "the system text was there"
    again = [answer(model, line)[1] for line in lines]
    assert [usage.cached_tokens for usage in again] == [usage.prompt_tokens - 1 for usage in again]


def test_memory_is_bounded_and_the_oldest_goes_first(tiny_chat_model: Path) -> None:
    model: Any = open_tiny(tiny_chat_model)
    store = model._scheduler.store
    asked = [user(f"{n} {'word ' * 20}") for n in range(8)]
    answer(model, asked[0])
    one = store.num_bytes
    assert one >= 2 * 2 * 2 * 8 * 4 * model.count_tokens(asked[0]), "layers, keys and values, heads, size, bytes"
    store.max_bytes = 3 * one
    for each in asked[1:]:
        answer(model, each)
        assert store.num_bytes <= 3 * one
    assert len(store) == 3
    assert answer(model, asked[7])[1].cached_tokens == model.count_tokens(asked[7]) - 1
    assert answer(model, asked[0])[1].cached_tokens < 10, "gone, but for the template's own first tokens"


def test_nothing_is_kept_where_nothing_may_be(fresh: Any) -> None:
    asked = user("Hello?")
    answer(fresh, asked)
    assert answer(fresh, asked)[1].cached_tokens == 0
    assert len(fresh._scheduler.store) == 0


def test_the_default_bound_is_a_share_of_the_memory() -> None:
    assert 0 < default_bytes("cpu") <= 2 * 2**30


def test_an_answer_that_was_closed_leaves_its_cache(tiny: Any, fresh: Any) -> None:
    asked = user("Tell me a story that nobody will hear to its end.")
    stream = tiny.stream(asked, Generation(max_tokens=300))
    next(stream)
    stream.close()
    text, usage = answer(tiny, asked)
    assert (text, usage.cached_tokens) == (answer(fresh, asked)[0], usage.prompt_tokens - 1)


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_common_prefix_is_what_a_loop_finds(a: list[int], b: list[int]) -> None:
    num = 0
    while num < min(len(a), len(b)) and a[num] == b[num]:
        num += 1
    assert common_prefix(a, b) == num


class ListOfTokens:
    """A cache that holds nothing but its tokens, a byte each."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    @property
    def num_bytes(self) -> int:
        return len(self.tokens)

    def num_shared(self, prompt: list[int]) -> int:
        return num_shared(self.tokens, prompt)

    def truncate(self, length: int) -> None:
        del self.tokens[length:]

    def copy(self, length: int) -> ListOfTokens:
        return ListOfTokens(self.tokens[:length])


class NoModel:
    """As much of a runner as a store asks for."""

    max_batch = 1
    truncates = True
    chunk: int | None = None

    def new(self) -> ListOfTokens:
        return ListOfTokens([])

    def forward(self, work: Any) -> Any:
        raise AssertionError


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=20)


@given(prompts, st.integers(1, 40))
@settings(deadline=None)
def test_a_store_gives_the_longest_prefix_it_has_and_stays_in_bounds(asked: list[list[int]], max_bytes: int) -> None:
    store = PrefixStore(NoModel(), max_bytes)
    for number, prompt in enumerate(asked):
        adapter = "odd" if number % 2 else None
        known = [cache.tokens[:] for name, cache in store._entries if name == adapter]
        cache = store.start(adapter, prompt)
        best = max((min(common_prefix(each, prompt), len(prompt) - 1) for each in known), default=0)
        assert cache.tokens == prompt[:best]
        cache.tokens = prompt[:]
        store.keep(adapter, cache)
        assert store.num_bytes <= max_bytes


# Caches that cannot be cut ------------------------------------------------------------------------------------------


def save_model(folder: Path, config: Any, tokenizer_of: Path) -> Path:
    """A random model of any architecture, with the tokenizer of another."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_of).save_pretrained(folder)
    return folder


def test_a_sliding_window_is_read_afresh_each_turn(tiny_chat_model: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, MistralConfig

    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    config = MistralConfig(
        vocab_size=400, sliding_window=16, **sizes, **heads, initializer_range=0.3, bos_token_id=1, eos_token_id=2
    )
    folder = save_model(tmp_path / "sliding", config, tiny_chat_model)
    model: Any = open_engine("transformers", str(folder), CPU)
    assert not model.batches
    asked = user("A question that is longer than sixteen tokens, so that the window slides.")
    for _ in range(2):
        text, usage = answer(model, asked)
        assert usage.cached_tokens == 0
        prompt_1T = torch.tensor([model.renderer.ids(asked)])
        reference: Any = AutoModelForCausalLM.from_pretrained(folder)
        new = reference.generate(prompt_1T, max_new_tokens=12, do_sample=False)[0, prompt_1T.shape[1] :].tolist()
        assert text == model.tokenizer.decode(new, skip_special_tokens=True)


def test_the_real_model_says_the_same_with_and_without_a_cache(smollm2: Path) -> None:
    model: Any = open_engine("transformers", str(smollm2), CPU)
    questions = ["What is the capital of France?", "How many people live there?", "Which river flows through it?"]
    conversation = Conversation()
    for question in questions:
        conversation = user(question, conversation)
        text, usage = answer(model, conversation)
        model.forget()
        expected, nothing = answer(model, conversation)
        assert (text, nothing.cached_tokens) == (expected, 0)
        conversation = conversation.add("assistant", text)
    assert usage.cached_tokens > usage.prompt_tokens // 2


def test_the_same_prompt_asked_several_times_at_once_is_read_once(tiny_chat_model: Path) -> None:
    model = open_tiny(tiny_chat_model)
    asked = user("A question that three people ask in the very same words, at the very same time. " * 4)
    with ThreadPoolExecutor(3) as pool:
        usages = [usage for _, usage in pool.map(lambda _: answer(model, asked), range(3))]
    assert sorted(usage.cached_tokens for usage in usages) == [0, *[usages[0].prompt_tokens - 1] * 2]

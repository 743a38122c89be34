"""T5 and its like in the transformers engine: the tokens of `generate`, the encoder run once for the same prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.bot import cli
from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation
from chatbot.engines.decoding.encoder_decoder import EncoderDecoderRunner
from chatbot.engines.decoding.running import Work
from chatbot.engines.many import generate_all
from tests.chatbot.server.running import bot_of, running
from tests.conftest import byte_level_tokenizer
from training.config.door import compose
from training.methods import method_run

pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
CPU = LoadOptions(device="cpu")
ASKED = Conversation().add("system", "Be brief.").add("user", "Hello, who are you?")
SIZES: dict[str, dict[str, Any]] = {
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
    "bart": {
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "max_position_embeddings": 256,
        "init_std": 0.3,
        "forced_eos_token_id": None,
        "decoder_start_token_id": 1,
    },
}


def save_model(folder: Path, kind: str = "t5", tied: bool = True, noise: float = 0.3, **more: Any) -> Path:
    """Random weights and a tokenizer without a chat template; padding is what the decoder begins with, as T5 has it."""
    import torch
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    tokenizer = byte_level_tokenizer("<|im_start|>", "<|im_end|>", "<|endoftext|>")
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), tie_word_embeddings=tied, **ends | SIZES[kind] | more
    )
    model: Any = AutoModelForSeq2SeqLM.from_config(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    for parameter in model.parameters() if noise else ():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, noise)  # a fresh T5 repeats the first token for ever
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("t5"), n_positions=512)


@pytest.fixture(scope="module")
def tiny(t5: Path) -> Any:
    return open_engine("transformers", str(t5), CPU)


def said(model: Any, conversation: Conversation, generation: Generation = Generation(max_tokens=20)) -> str:
    return "".join(delta.text for delta in model.stream(conversation, generation))


def generated(model: Any, ids: list[int], max_tokens: int) -> list[int]:
    """What transformers' own generate answers, without what the decoder begins with."""
    import torch

    with torch.inference_mode():
        out = model.generate(torch.tensor([ids]), max_new_tokens=max_tokens, do_sample=False, num_beams=1)
    return [int(each) for each in out[0][1:]]


def text_of(model: Any, ids: list[int]) -> str:
    return str(model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("t5", {}),
        ("t5", {"tied": False, "feed_forward_proj": "gated-gelu"}),
        ("bart", {}),
        ("bart", {"tied": False}),
    ],
    ids=["t5", "t5-untied", "bart", "bart-untied"],
)
def test_greedy_answers_are_those_of_generate(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM

    folder = save_model(tmp_path, kind, **more)
    model: Any = open_engine("transformers", str(folder), CPU)
    reference = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    answers = set()
    for number in range(6):
        asked = ASKED.add("assistant", "I am small.").add("user", f"And {number}? " * (number + 1))
        expected = generated(reference, model.renderer.ids(asked), 24)
        deltas = list(model.stream(asked, Generation(max_tokens=24)))
        text = "".join(delta.text for delta in deltas)
        assert text == text_of(model, expected)
        usage = deltas[-1].usage
        assert (usage.prompt_tokens, usage.completion_tokens) == (model.count_tokens(asked), len(expected))
        answers.add(text)
    assert len(answers) > 1, "they depend on what the encoder reads"
    assert not model.batches


def test_a_prompt_without_a_template_is_read_as_it_is(tiny: Any) -> None:
    text = "translate English to German: Hello."
    expected = generated(tiny.model, tiny.tokenizer(text)["input_ids"], 20)
    answer = "".join(delta.text for delta in tiny.complete(text, Generation(max_tokens=20)))
    assert answer == text_of(tiny, expected)


def test_the_encoder_runs_once_for_the_same_prompt_and_again_for_another(tiny: Any) -> None:
    tiny.forget()
    runs = []
    hook = tiny.model.get_encoder().register_forward_hook(lambda *_: runs.append(1))
    try:
        longer = ASKED.add("assistant", "A model.").add("user", "Of which size?")
        for conversation, cached, num_runs in (
            (ASKED, False, 1),
            (ASKED, True, 1),
            (longer, False, 2),
            (ASKED, True, 2),
        ):
            deltas = list(tiny.stream(conversation, Generation(max_tokens=20)))
            usage = deltas[-1].usage
            assert usage.cached_tokens == (usage.prompt_tokens if cached else 0)
            assert len(runs) == num_runs
            expected = generated(tiny.model, tiny.renderer.ids(conversation), 20)
            runs = runs[:num_runs]
            assert "".join(delta.text for delta in deltas) == text_of(tiny, expected)
    finally:
        hook.remove()


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=4), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_a_kept_source_serves_no_other(tiny: Any, sources: list[list[int]]) -> None:
    """Few ids, among them the decoder's first: one source may begin like another one and its answer."""
    from chatbot.engines.decoding.running import run_in_chunks
    from chatbot.engines.decoding.store import PrefixStore

    runner: Any = EncoderDecoderRunner(tiny.model)
    store = PrefixStore(runner, 10**6)
    for source in sources:
        prompt = [*source, 0]
        cache = store.start(None, prompt)
        found = run_in_chunks(runner, cache, prompt[len(cache.tokens) :])
        (second,) = runner.forward([Work(cache, [int(found[0].argmax())])])
        fresh = runner.new()
        assert found.equal(run_in_chunks(runner, fresh, prompt))
        assert second.equal(runner.forward([Work(fresh, [int(found[0].argmax())])])[0])
        assert cache.num_bytes > 0
        store.keep(None, cache)


def test_seeds_stops_and_logprobs(tiny: Any) -> None:
    import torch

    drawn = Generation(max_tokens=20, sample=True, temperature=1.5, seed=1)
    assert said(tiny, ASKED, drawn) == said(tiny, ASKED, drawn)
    assert said(tiny, ASKED, drawn) != said(
        tiny, ASKED, Generation(max_tokens=20, sample=True, temperature=1.5, seed=2)
    )
    whole = said(tiny, ASKED)
    stop = whole[3:5]
    deltas = list(tiny.stream(ASKED, Generation(max_tokens=20, stop=(stop,))))
    assert stop
    assert "".join(delta.text for delta in deltas) == whole[: whole.index(stop)]
    assert deltas[-1].finish_reason == "stop"
    told = [each for delta in tiny.stream(ASKED, Generation(max_tokens=5, logprobs=2)) for each in delta.logprobs]
    ids = generated(tiny.model, tiny.renderer.ids(ASKED), 5)
    with torch.inference_mode():  # in one pass, with the answer given
        logits_TV = tiny.model(
            torch.tensor([tiny.renderer.ids(ASKED)]), decoder_input_ids=torch.tensor([[0, *ids[:-1]]])
        ).logits[0]
    expected = logits_TV.log_softmax(-1)[range(len(ids)), ids]
    assert [each.logprob for each in told] == pytest.approx(expected.tolist(), abs=1e-4)
    assert all(each.top[0][1] == pytest.approx(each.logprob, abs=1e-4) for each in told)


def test_many_prompts(tiny: Any) -> None:
    asked = [Conversation().add("user", f"Question {number}") for number in range(5)]
    answers = list(generate_all(tiny, asked, Generation(max_tokens=12)))
    assert [each.text for each in answers] == [said(tiny, each, Generation(max_tokens=12)) for each in asked]


def test_what_does_not_fit_and_what_cannot_work_is_refused(tiny: Any, t5: Path, tiny_chat_model: Path) -> None:
    assert tiny.context_length == 512
    with pytest.raises(ValueError, match="exceed the model's context of 512"):
        said(tiny, Conversation().add("user", "word " * 600))
    with pytest.raises(ValueError, match="the prompt is empty"):
        list(tiny.complete("", Generation(max_tokens=3)))
    for model, draft in ((t5, t5), (t5, tiny_chat_model), (tiny_chat_model, t5)):
        with pytest.raises(ValueError, match="assisted decoding is not for encoder-decoder models"):
            open_engine("transformers", str(model), LoadOptions(device="cpu", draft_model=str(draft)))


@pytest.mark.parametrize("method", ["lora", "ia3"])
def test_adapters(method: str, t5: Path, tmp_path: Path) -> None:
    """The answers of PEFT's own generate, by --adapter and by the adapter's own directory."""
    import peft
    import torch
    from transformers import AutoModelForSeq2SeqLM

    torch.manual_seed(0)
    more: dict[str, Any] = {"r": 4, "target_modules": ["q", "v"]} if method == "lora" else {}
    config = peft.get_peft_config({"peft_type": method.upper(), "task_type": "SEQ_2_SEQ_LM", **more})
    wrapped: Any = peft.get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(t5), config).eval()
    for name, parameter in wrapped.named_parameters():
        if f"{method}_" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.5)
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    beside = open_engine("transformers", str(t5), LoadOptions(device="cpu", adapters=(str(tmp_path / "adapter"),)))
    alone: Any = open_engine("transformers", str(tmp_path / "adapter"), CPU)
    expected = text_of(alone, generated_by_peft(wrapped, alone.renderer.ids(ASKED)))
    assert said(beside, ASKED) == said(alone, ASKED) == expected
    alone.use_adapter(None)
    assert said(alone, ASKED) != expected


def test_virtual_tokens_are_refused(t5: Path, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForSeq2SeqLM

    config = peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=3)
    peft.get_peft_model(AutoModelForSeq2SeqLM.from_pretrained(t5), config).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match="prompt_tuning cannot be used in chat with this model; use lora or ia3"):
        open_engine("transformers", str(tmp_path), CPU)


def generated_by_peft(wrapped: Any, ids: list[int]) -> list[int]:
    import torch

    with torch.inference_mode():
        out = wrapped.generate(input_ids=torch.tensor([ids]), max_new_tokens=20, do_sample=False)
    return [int(each) for each in out[0][1:]]


def test_in_the_shell_and_over_http(tiny: Any, t5: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs the `server` extra")
    expected = said(tiny, Conversation().add("user", "Who are you?"))
    flags = ["--device=cpu", "--no-moderation", "--max-tokens=20", "--repetition-penalty=1", "--json"]
    done = CliRunner().invoke(cli, [f"--model={t5}", *flags], input="Who are you?\n")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["answer"] == expected.strip()
    with running(bot_of(tiny)) as server:
        settings = {"max_tokens": 20, "temperature": 0, "frequency_penalty": 0}
        _, whole, _ = server.chat("Who are you?", **settings)
        _, stream, _ = server.chat("Who are you?", stream=True, **settings)
    chunks = [json.loads(line[6:]) for line in stream.split("\n\n")[:-2]]
    assert whole["choices"][0]["message"]["content"] == expected
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == expected


# Trained here -------------------------------------------------------------------------------------------------------

PAIRS = [
    ("Who are you?", "I am small, and I answer."),
    ("How many lanes?", "Eight lanes of traffic."),
    ("Où est la gare?", "Là-bas!"),
    ("When was it opened?", "In 1932."),
]


@pytest.mark.parametrize("how", ["messages", "pairs"])
def test_what_was_learned_here_is_said_word_for_word(how: str, tmp_path: Path) -> None:
    """Chats are asked through the template that is saved with the model, bare prompts without one."""
    rows: list[dict[str, Any]] = []
    for prompt, reply in PAIRS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        rows.append({"prompt": prompt, "completion": reply} if how == "pairs" else {"messages": turns})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["method=sft", f"model={save_model(tmp_path / 't5', noise=0)}", f"data={data}", "data.max_length=128"]
    settings += [f"data.cache={tmp_path / 'cache'}", f"trainer.output={tmp_path / 'run'}", "trainer.save_epochs=false"]
    settings += ["model.device=cpu", "trainer.batch_size=4", "trainer.epochs=60"]
    settings += ["trainer.lr=1e-2", "trainer.schedule=constant"]
    run = method_run("sft")(compose(settings))
    model: Any = open_engine("transformers", str(run), CPU)
    for prompt, reply in PAIRS:
        asked = Generation(max_tokens=40)
        stream = (
            model.complete(prompt, asked) if how == "pairs" else model.stream(Conversation().add("user", prompt), asked)
        )
        deltas = list(stream)
        assert "".join(delta.text for delta in deltas) == reply
        assert deltas[-1].finish_reason == "stop"

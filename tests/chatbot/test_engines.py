"""Engines: the same tokens as transformers' generate, and a clear refusal of what cannot be."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import ChatModel, Delta, Generation, Usage
from chatbot.engines.echo import EchoModel
from chatbot.templates import TEMPLATES

ASKED = Conversation().add("system", "Be brief.").add("user", "Hello, who are you?")
PLAIN = "The bridge was opened"
CPU = LoadOptions(device="cpu")  # where the reference runs


@pytest.fixture(scope="session")
def tiny(tiny_chat_model: Path) -> Any:
    return open_engine("transformers", str(tiny_chat_model), CPU)


@pytest.fixture(scope="session")
def base(tiny_base_model: Path) -> Any:
    return open_engine("transformers", str(tiny_base_model), CPU)


@pytest.fixture(scope="session")
def reference() -> Callable[..., list[int]]:
    """(folder, prompt ids, settings of generate) -> the new ids, from a model loaded by transformers alone."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded: dict[Path, Any] = {}

    def generate(folder: Path, ids: list[int], num_new: int, **settings: Any) -> list[int]:
        if folder not in loaded:
            loaded[folder] = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        model = loaded[folder]
        ids_BT = torch.tensor([ids])
        out_BT = model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=num_new, do_sample=False, **settings
        )
        return [int(id_) for id_ in out_BT[0, len(ids) :]]

    return generate


def chat_ids(folder: Path, asked: Conversation = ASKED) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(asked.to_dicts(), add_generation_prompt=True)["input_ids"])


def plain_ids(folder: Path, text: str = PLAIN) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])


def said(deltas: Any) -> str:
    return "".join(delta.text for delta in deltas)


def decoded(model: Any, ids: list[int]) -> str:
    return str(model.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))


# transformers: greedy -----------------------------------------------------------------------------------------------


def test_greedy_chat_equals_generate(tiny: Any, tiny_chat_model: Path, reference: Any) -> None:
    prompt = chat_ids(tiny_chat_model)
    new = reference(tiny_chat_model, prompt, 60)
    deltas = list(tiny.stream(ASKED, Generation(max_tokens=60)))
    assert said(deltas) == decoded(tiny, new)
    assert deltas[-1].usage == Usage(len(prompt), len(new))


def test_greedy_completion_equals_generate(base: Any, tiny_base_model: Path, reference: Any) -> None:
    prompt = plain_ids(tiny_base_model)
    new = reference(tiny_base_model, prompt, 60, pad_token_id=0)
    deltas = list(base.complete(PLAIN, Generation(max_tokens=60)))
    assert said(deltas) == decoded(base, new)
    assert deltas[-1].usage == Usage(len(prompt), len(new))


def test_a_real_answer_equals_generate_and_ends_by_itself(smollm2: Path, reference: Any) -> None:
    asked = Conversation().add("system", "Be brief.").add("user", "What is the capital of France? One word.")
    model: Any = open_engine("transformers", str(smollm2), CPU)
    new = reference(smollm2, chat_ids(smollm2, asked), 16)
    *deltas, last = model.stream(asked, Generation(max_tokens=16))
    assert said(deltas) == decoded(model, new)
    assert (last.finish_reason, last.usage.completion_tokens) == ("stop", len(new))
    assert len(deltas) == len(new) - 1, "piece by piece"


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_a_repetition_penalty_weighs_on_what_the_answer_said_already(penalty: float, tiny: Any) -> None:
    """Keskar et al. 2019, section 4.1, without a cache: positive scores are divided, negative ones multiplied."""
    import torch

    prompt, new = tiny.renderer.plain_ids(PLAIN), []
    for _ in range(40):
        with torch.inference_mode():
            scores = tiny.model(torch.tensor([prompt + new])).logits[0, -1].tolist()
        for id_ in set(new):
            scores[id_] = scores[id_] / penalty if scores[id_] > 0 else scores[id_] * penalty
        new.append(scores.index(max(scores)))
    deltas = list(tiny.complete(PLAIN, Generation(max_tokens=40, repetition_penalty=penalty)))
    assert said(deltas) == decoded(tiny, new)
    assert said(deltas) != said(tiny.complete(PLAIN, Generation(max_tokens=40))), "it makes a difference here"


def test_any_of_several_end_tokens_ends_the_answer(tiny_chat_model: Path, reference: Any, tmp_path: Path) -> None:
    prompt = chat_ids(tiny_chat_model)
    third = reference(tiny_chat_model, prompt, 3)[2]
    shutil.copytree(tiny_chat_model, tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, third]}))
    model: Any = open_engine("transformers", str(tmp_path / "model"), CPU)
    *deltas, last = model.stream(ASKED, Generation(max_tokens=60))
    assert said(deltas) == decoded(model, reference(tiny_chat_model, prompt, 2))
    assert (last.finish_reason, last.usage.completion_tokens) == ("stop", 3)


# transformers: where answers end ------------------------------------------------------------------------------------


def test_an_answer_ends_before_a_stop_string(tiny: Any) -> None:
    whole = said(tiny.stream(ASKED, Generation(max_tokens=40)))
    stop = whole[10:14]
    *deltas, last = tiny.stream(ASKED, Generation(max_tokens=40, stop=(stop, "not in there")))
    assert said(deltas) == whole.partition(stop)[0]
    assert last.finish_reason == "stop"
    assert last.usage.completion_tokens < 40


def test_max_tokens_ends_an_answer(tiny: Any) -> None:
    last = list(tiny.stream(ASKED, Generation(max_tokens=5)))[-1]
    assert (last.finish_reason, last.usage.completion_tokens) == ("length", 5)


def test_a_named_templates_stops_end_chat_but_not_completion(tiny_base_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_base_model), LoadOptions(template="human-bot"))
    assert model.renderer.stops == TEMPLATES["human-bot"].stops
    whole = said(model.stream(ASKED, Generation(max_tokens=40)))
    model.renderer.stops = (stop := whole[10:14],)
    assert said(model.stream(ASKED, Generation(max_tokens=40))) == whole.partition(stop)[0]
    plain = said(model.complete(PLAIN, Generation(max_tokens=40)))
    model.renderer.stops = (plain[10:14],)
    assert said(model.complete(PLAIN, Generation(max_tokens=40))) == plain


def test_prompt_and_answer_may_fill_the_context_but_not_exceed_it(tiny: Any) -> None:
    num_prompt = tiny.count_tokens(ASKED)
    assert tiny.context_length == 512
    fits = Generation(max_tokens=512 - num_prompt, stop=tuple(map(chr, range(256))))
    assert next(iter(tiny.stream(ASKED, fits))) is not None
    with pytest.raises(ValueError, match=rf"a prompt of {num_prompt} tokens and max_tokens={513 - num_prompt} exceed"):
        next(iter(tiny.stream(ASKED, Generation(max_tokens=513 - num_prompt))))


def test_nothing_cannot_be_continued(tiny: Any) -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        list(tiny.complete("", Generation()))


def test_count_tokens_is_what_usage_says(tiny: Any) -> None:
    assert list(tiny.stream(ASKED, Generation(max_tokens=1)))[-1].usage.prompt_tokens == tiny.count_tokens(ASKED)


def test_a_stream_leaves_no_mode_behind(tiny: Any) -> None:
    import torch

    stream = tiny.stream(ASKED, Generation(max_tokens=40))
    next(stream)
    assert not torch.is_inference_mode_enabled()
    stream.close()
    assert not torch.is_inference_mode_enabled()


# transformers: sampling ---------------------------------------------------------------------------------------------


def test_a_seed_repeats_and_another_differs(tiny: Any) -> None:
    def sample(seed: int | None) -> str:
        return said(tiny.stream(ASKED, Generation(max_tokens=20, sample=True, temperature=1.0, seed=seed)))

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(5)}) == 5
    assert sample(None) != sample(None)


@pytest.mark.parametrize(
    "setting", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}, {"temperature": 0.0}], ids=str
)
def test_sampling_without_a_choice_is_greedy(setting: dict[str, Any], tiny: Any) -> None:
    greedy = said(tiny.stream(ASKED, Generation(max_tokens=20)))
    sampled = Generation(max_tokens=20, sample=True, **setting)
    assert said(tiny.stream(ASKED, sampled)) == greedy


@pytest.mark.parametrize("setting", [{"top_k": 3}, {"top_k": 0, "top_p": 0.5}, {"top_k": 0}], ids=str)
def test_tokens_are_drawn_as_often_as_their_probability_says(setting: dict[str, Any], tiny: Any) -> None:
    import torch

    with torch.inference_mode():
        logits_V = tiny.model(torch.tensor([tiny.renderer.plain_ids(PLAIN)])).logits[0, -1]
    probs = dict(enumerate((logits_V / 0.5).softmax(-1).tolist()))
    likeliest = sorted(probs, key=lambda id_: -probs[id_])
    if setting["top_k"]:
        allowed = likeliest[: setting["top_k"]]
    else:
        cumulative = [sum(probs[id_] for id_ in likeliest[:n]) for n in range(len(likeliest))]
        allowed = [id_ for id_, before in zip(likeliest, cumulative, strict=True) if before < setting.get("top_p", 1.0)]
    total = sum(probs[id_] for id_ in allowed)
    drawn: Counter[str] = Counter()
    for seed in range(300):
        drawn[said(tiny.complete(PLAIN, Generation(1, True, 0.5, **setting, seed=seed)))] += 1
    expected: Counter[str] = Counter()
    for id_ in allowed:
        expected[decoded(tiny, [id_])] += probs[id_] / total  # type: ignore[assignment]
    distance = sum(abs(drawn[text] / 300 - expected[text]) for text in drawn | expected) / 2
    assert distance < 0.15
    assert len(allowed) == len(probs) or set(drawn) <= set(expected)


# transformers: loading ----------------------------------------------------------------------------------------------

no_gpu = pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="this machine has a GPU")
no_bitsandbytes = pytest.mark.skipif(bool(importlib.util.find_spec("bitsandbytes")), reason="bitsandbytes is installed")


@pytest.mark.parametrize(
    "options",
    [
        LoadOptions(gpu_id=99),
        LoadOptions(gpu_vram=((99, 1.0),)),
        LoadOptions(device="cuda:99"),
        pytest.param(LoadOptions(device="cuda"), marks=no_gpu),
        pytest.param(LoadOptions(gpu_vram=((0, 1.0),), cpu_ram=4.0), marks=no_gpu),
    ],
    ids=str,
)
def test_a_gpu_that_is_not_there_is_refused(options: LoadOptions, tiny_chat_model: Path) -> None:
    with pytest.raises(ValueError, match=r"GPU \d+ is not there: this machine has \d+ CUDA GPUs"):
        open_engine("transformers", str(tiny_chat_model), options)


@no_bitsandbytes
@pytest.mark.parametrize("options", [LoadOptions(load_in_8bit=True), LoadOptions(load_in_4bit=True)], ids=["8", "4"])
def test_quantised_loading_needs_bitsandbytes(options: LoadOptions, tiny_chat_model: Path) -> None:
    with pytest.raises(ValueError, match=r"needs bitsandbytes; install it with: pip install 'parley\[gpu\]'"):
        open_engine("transformers", str(tiny_chat_model), options)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (LoadOptions(load_in_8bit=True, load_in_4bit=True), "exclude each other"),
        (LoadOptions(dtype="float8"), "unknown dtype 'float8'; choose one of: auto, float32, float16, bfloat16"),
        (LoadOptions(template="nope"), "unknown template 'nope'; choose one of: human-assistant"),
        (LoadOptions(device="toaster"), "cannot load model"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: LoadOptions, complaint: str, tiny_chat_model: Path) -> None:
    with pytest.raises(ValueError, match=complaint):
        open_engine("transformers", str(tiny_chat_model), options)


def test_an_unknown_engine_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown engine 'steam'; choose one of: auto, transformers, "):
        open_engine("steam", "x")


@no_gpu
@pytest.mark.parametrize(("dtype", "expected"), [("auto", "float32"), ("bfloat16", "bfloat16"), ("float32", "float32")])
def test_dtype_is_the_one_asked_for(dtype: str, expected: str, tiny_chat_model: Path) -> None:
    model: Any = open_engine("transformers", str(tiny_chat_model), LoadOptions(dtype=dtype))
    assert str(model.model.dtype) == f"torch.{expected}"


def only_pickled(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def without_a_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def cut_short(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def with_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("import pathlib; pathlib.Path(__file__).with_name('ran').touch()")


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (only_pickled, "model.safetensors"),
        (without_a_tensor, r"lacks weights \(model.layers.1.mlp.up_proj.weight"),
        (cut_short, "header"),
        (with_code, "custom code"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), ""),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
    ],
    ids=["pickle", "tensor", "cut", "code", "half-config", "no-config", "no-tokenizer"],
)
def test_a_damaged_or_unsafe_model_is_one_line_that_names_it(
    damage: Callable[[Path], Any], complaint: str, tiny_chat_model: Path, tmp_path: Path, capfd: Any
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_chat_model, folder)
    damage(folder)
    with pytest.raises(ValueError, match=rf"cannot load model '{folder}': .*{complaint}") as caught:
        open_engine("transformers", str(folder))
    assert "\n" not in str(caught.value)
    assert "Do you wish" not in capfd.readouterr().out
    assert not (folder / "ran").exists()


def test_an_encoder_is_no_chat_model(minilm: Path) -> None:
    with pytest.raises(ValueError, match="it is no chat model"):
        open_engine("transformers", str(minilm))


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("max_tokens", [0, -1]),
        ("temperature", [-0.1, math.nan, math.inf, -math.inf]),
        ("top_k", [-1]),
        ("top_p", [0.0, -0.5, 1.01, math.nan, math.inf]),
        ("repetition_penalty", [0.0, -1.0, math.nan, math.inf]),
        ("seed", [2**63, -(2**63) - 1]),
    ],
)
def test_a_bad_setting_is_named_with_its_value(field: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{field}=\S+ must be "):
            Generation(**{field: value})


@pytest.mark.parametrize(
    "extreme",
    [
        {"temperature": 1e-9},
        {"temperature": 1e9},
        {"top_k": 10**9},
        {"top_p": 1e-12},
        {"repetition_penalty": 1e-6},
        {"repetition_penalty": 1e6},
        {"seed": 2**63 - 1},
        {"seed": -(2**63)},
        {"stop": ("", "\ufffd")},
    ],
    ids=str,
)
def test_extreme_settings_still_generate(extreme: dict[str, Any], tiny: Any) -> None:
    deltas = list(tiny.stream(ASKED, Generation(max_tokens=3, sample=True, **extreme)))
    assert deltas[-1].finish_reason is not None


# echo ---------------------------------------------------------------------------------------------------------------


def test_echo_says_the_newest_user_message() -> None:
    conversation = Conversation().add("user", "one").add("assistant", "two").add("user", " three  four\n")
    assert said(EchoModel().stream(conversation, Generation())) == " three  four\n"


def test_echo_counts_words_and_stops_at_max_tokens() -> None:
    model: ChatModel = open_engine("echo", "parrot")
    assert model.name == "parrot"
    assert model.render(Conversation().add("user", "a b c")) == "user: a b c\nassistant:"
    deltas = list(model.stream(Conversation().add("user", "a b c"), Generation(max_tokens=2)))
    assert deltas == [Delta("a"), Delta(" b"), Delta("", "length", Usage(5, 2))]


def test_echo_ends_before_a_stop_string() -> None:
    *deltas, last = EchoModel().complete("one STOP two", Generation(stop=("STOP",)))
    assert (said(deltas), last.finish_reason) == ("one ", "stop")


def test_echo_has_a_context() -> None:
    with pytest.raises(ValueError, match="a prompt of 3 tokens and max_tokens=8 exceed the model's context of 10"):
        list(EchoModel(context_length=10).complete("a b c", Generation(max_tokens=8)))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (LoadOptions(cpu_ram=4), "give --gpu-vram too"),
        (LoadOptions(device="cpu", gpu_id=0), "exclude each other"),
        (LoadOptions(gpu_id=0, gpu_vram=((0, 1.0),)), "exclude each other"),
        (LoadOptions(template="klingon"), "choose one of: human-assistant"),
    ],
)
def test_placements_that_contradict_are_refused(tiny_chat_model: Path, options: LoadOptions, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        open_engine("transformers", str(tiny_chat_model), options)

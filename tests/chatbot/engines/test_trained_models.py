"""What training leaves, in the bot: runs, their checkpoints, adapters of several kinds, with the answers of PEFT."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.auto import choose_engine
from chatbot.engines.base import Generation
from training.config.door import compose
from training.methods import method_run

pytestmark = pytest.mark.filterwarnings(
    "ignore:.is_gradient_checkpointing:FutureWarning", "ignore:Position ids are not supported:UserWarning"
)
CPU = LoadOptions(device="cpu")
PAIRS = [
    ("Who are you?", "I am small, and I answer."),
    ("How many lanes?", "Eight lanes of traffic."),
    ("Où est la gare?", "Là-bas!"),
    ("When was it opened?", "In 1932."),
]
Train = Callable[..., Path]


@pytest.fixture
def train(tmp_path: Path) -> Train:
    """(model, overrides) -> the directory of a run that has learned PAIRS."""
    data = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": each[0]}, {"role": "assistant", "content": each[1]}] for each in PAIRS]
    data.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))

    def start(model: Path, *overrides: str) -> Path:
        given = ["method=sft", f"model={model}", f"data={data}", f"data.cache={tmp_path / 'cache'}"]
        given += ["model.device=cpu", f"trainer.output={tmp_path / 'run'}", "data.max_length=128"]
        given += ["trainer.lr=1e-2", "trainer.schedule=constant", "trainer.batch_size=4", "trainer.save_epochs=false"]
        run: Path = method_run("sft")(compose([*given, *overrides]))
        return run

    return start


def said(model: Any, conversation: Conversation, max_tokens: int = 40) -> tuple[str, str]:
    """The answer, and why it ended."""
    deltas = list(model.stream(conversation, Generation(max_tokens=max_tokens)))
    return "".join(delta.text for delta in deltas), deltas[-1].finish_reason


def user(text: str) -> Conversation:
    return Conversation().add("user", text)


def knows_all(model: Any) -> bool:
    """Word for word, but for the space after `Assistant:`, which the bot strips."""
    answers = [said(model, user(prompt)) for prompt, _ in PAIRS]
    return [(text.strip(), reason) for text, reason in answers] == [(reply, "stop") for _, reply in PAIRS]


def generated_by_peft(adapter: Path, base: Path, ids: list[int], max_tokens: int) -> list[int]:
    """The greedy tokens of PEFT's own model."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    wrapped: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()
    with torch.inference_mode():
        asked = torch.tensor([ids])
        out = wrapped.generate(
            input_ids=asked, attention_mask=torch.ones_like(asked), max_new_tokens=max_tokens, do_sample=False
        )
    return [int(each) for each in out[0][len(ids) :]]


def test_an_adapter_trained_here_answers_what_it_learned(train: Train, tiny_chat_model: Path) -> None:
    run = train(tiny_chat_model, "peft=lora", "trainer.epochs=60", "trainer.save_every=40")
    assert choose_engine(str(run), LoadOptions()) == "transformers"
    model: Any = open_engine("auto", str(run), CPU)
    assert (model.adapters, model.batches) == (("run",), True)
    assert knows_all(model)
    asked = user("How many lanes?").add("assistant", "Eight lanes of traffic.").add("user", "And trains?")
    ids = generated_by_peft(run, tiny_chat_model, model.renderer.ids(asked), 20)
    assert said(model, asked, 20)[0] == model.tokenizer.decode(ids, skip_special_tokens=True)
    checkpoints = {each.name: open_engine("transformers", str(each), CPU) for each in (run / "checkpoints").iterdir()}
    assert set(checkpoints) == {"step-000040", "step-000060"}
    assert knows_all(checkpoints["step-000060"])
    assert not knows_all(open_engine("transformers", str(tiny_chat_model), CPU))


@pytest.mark.parametrize("more", [(), ("peft=lora",)], ids=["whole", "lora"])
def test_a_base_model_answers_by_the_template_that_was_saved_with_it(
    more: tuple[str, ...], train: Train, tiny_base_model: Path
) -> None:
    run = train(tiny_base_model, "trainer.epochs=60", *more)
    model: Any = open_engine("transformers", str(run), CPU)
    assert knows_all(model)
    if more:
        model = open_engine("transformers", str(tiny_base_model), LoadOptions(device="cpu", adapters=(str(run),)))
        assert knows_all(model)
    assert model.renderer.stops == (), "replies end in the end-of-sequence token alone"
    asked = user("Hi").add("assistant", "Hello.").add("user", "Bye")
    assert model.render(asked) == "Human: Hi\n\nAssistant: Hello.<|endoftext|>\n\nHuman: Bye\n\nAssistant:"
    assert model.renderer.ids(asked).count(model.tokenizer.eos_token_id) == 1


@pytest.mark.parametrize("name", ["ia3", "prompt_tuning", "p_tuning", "prefix_tuning"])
def test_other_methods_answer_as_peft_does(name: str, train: Train, tiny_chat_model: Path) -> None:
    virtual = name != "ia3"
    more = ["+peft.options.num_virtual_tokens=3"] if virtual else []
    run = train(tiny_chat_model, f"peft={name}", *more, "trainer.lr=0.1", "trainer.epochs=8")
    model: Any = open_engine("transformers", str(run), CPU)
    plain: Any = open_engine("transformers", str(tiny_chat_model), CPU)
    assert (model.batches, model.context_length) == (not virtual, 509 if virtual else 512)
    first = user("How many lanes?")
    second = first.add("assistant", "Eight.").add("user", "And of which kind? " * 8)
    differs = False
    for conversation in (first, second, first, second, user("Who?")):  # with and without kept keys and values
        ids = generated_by_peft(run, tiny_chat_model, model.renderer.ids(conversation), 24)
        answer = said(model, conversation, 24)[0]
        assert answer == model.tokenizer.decode(ids, skip_special_tokens=True)
        differs = differs or answer != said(plain, conversation, 24)[0]
    assert differs, "the adapter does something"
    model.use_adapter(None)
    assert said(model, second, 24) == said(plain, second, 24)


def test_kinds_of_adapters_are_switched(train: Train, tiny_chat_model: Path, tmp_path: Path) -> None:
    """One that changes layers beside one of virtual tokens: each acts alone."""
    places = []
    for name in ("lora", "prompt_tuning"):
        more = ["+peft.options.num_virtual_tokens=3"] if name == "prompt_tuning" else []
        run = train(tiny_chat_model, f"peft={name}", *more, "trainer.lr=0.1", "trainer.epochs=4")
        places.append(run.rename(tmp_path / name))
    both: Any = open_engine(
        "transformers", str(tiny_chat_model), LoadOptions(device="cpu", adapters=tuple(map(str, places)))
    )
    alone = {each.name: open_engine("transformers", str(each), CPU) for each in places}
    alone[None] = open_engine("transformers", str(tiny_chat_model), CPU)  # type: ignore[index]
    expected = {name: said(model, user("Who are you?")) for name, model in alone.items()}
    assert len(set(expected.values())) == 3
    for name in ("lora", "prompt_tuning", None, "prompt_tuning", "lora"):
        both.use_adapter(name)
        assert said(both, user("Who are you?")) == expected[name]  # type: ignore[index]


def test_virtual_tokens_where_they_do_not_work_are_refused(train: Train, tiny_chat_model: Path, tmp_path: Path) -> None:
    from chatbot.engines.decoding.adapters import Adapters
    from chatbot.engines.decoding.loading import load_weights

    more = ("peft=prompt_tuning", "+peft.options.num_virtual_tokens=3", "trainer.epochs=1")
    run = train(tiny_chat_model, *more)
    model, _ = load_weights(str(tiny_chat_model), CPU)
    with pytest.raises(ValueError, match="virtual tokens before the prompt work in chat alone"):
        Adapters(model).load(str(run))
    torn = shutil.copytree(run, tmp_path / "torn")
    config = json.loads((torn / "adapter_config.json").read_text())
    (torn / "adapter_config.json").write_text(json.dumps(config | {"num_virtual_tokens": 4}))
    with pytest.raises(ValueError, match=r"cannot load model '.*torn'"):
        open_engine("transformers", str(torn), CPU)


def test_a_run_that_has_not_finished_names_its_checkpoint(train: Train, tiny_chat_model: Path, tmp_path: Path) -> None:
    run = train(tiny_chat_model, "trainer.epochs=3", "trainer.save_every=1", "trainer.keep_checkpoints=3")
    assert said(open_engine("transformers", str(run), CPU), user("Who are you?"))
    (run / "config.json").unlink()
    newest = run / "checkpoints" / "step-000003"
    with pytest.raises(ValueError, match="has not finished; finish it, or use its checkpoint") as refused:
        open_engine("transformers", str(run), CPU)
    assert str(refused.value).endswith(str(newest))
    assert said(open_engine("transformers", str(newest), CPU), user("Who are you?"))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="has neither finished nor saved a checkpoint"):
        open_engine("auto", str(run), CPU)
    (run / "run.json").unlink()
    with pytest.raises(ValueError, match=r"cannot load model .* it has no config\.json"):
        open_engine("transformers", str(run), CPU)


def test_an_adapter_goes_to_transformers(tmp_path: Path) -> None:
    """Also where a GGUF file lies beside it, and where llama.cpp is asked for by name."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    (tmp_path / "adapter.gguf").write_bytes(b"GGUF")
    assert choose_engine(str(tmp_path), LoadOptions()) == "transformers"
    with pytest.raises(ValueError, match=r"an adapter directory, which transformers runs: --engine transformers"):
        open_engine("llamacpp", str(tmp_path), LoadOptions())
    with pytest.raises(ValueError, match=r"is for a model that is not there; load that, and give --adapter: .*gone"):
        open_engine("auto", str(tmp_path), CPU)

"""LoRA adapters: the answers of the models that peft merges them into; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import Generation

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
CPU = LoadOptions(device="cpu")
ASKED = Conversation().add("system", "Be brief.").add("user", "Hello, who are you?")


@pytest.fixture(scope="module")
def tiny(tiny_chat_model: Path) -> Any:
    return open_engine("transformers", str(tiny_chat_model), CPU)


def said(model: Any, generation: Generation, asked: Conversation = ASKED) -> str:
    return "".join(delta.text for delta in model.stream(asked, generation))


def save_adapter(folder: Path, base: Path, seed: int) -> Path:
    """A LoRA adapter with random weights, saved by peft."""
    import torch

    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_alpha=16)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapters(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("adapters")
    return [save_adapter(place / f"v{n}.0", tiny_chat_model, n) for n in (1, 2)]


@pytest.fixture(scope="module")
def merged(adapters: list[Path], tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The same as whole models, merged by peft: the oracle."""
    import peft
    from transformers import AutoModelForCausalLM, AutoTokenizer

    models = []
    for adapter in adapters:
        folder = tmp_path_factory.mktemp("merged")
        wrapped: Any = peft.PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(tiny_chat_model), str(adapter)
        )
        wrapped.merge_and_unload().save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_chat_model).save_pretrained(folder)
        models.append(open_engine("transformers", str(folder), CPU))
    return models


def test_adapters_are_switched_and_keep_their_caches_apart(
    adapters: list[Path], merged: list[Any], tiny: Any, tiny_chat_model: Path
) -> None:
    options = LoadOptions(device="cpu", adapters=tuple(map(str, adapters)))
    model: Any = open_engine("transformers", str(tiny_chat_model), options)
    assert (model.adapters, model.adapter) == (("v1.0", "v2.0"), "v1.0")
    generation = Generation(max_tokens=30)
    expected = {name: said(each, generation) for name, each in zip(("v1.0", "v2.0"), merged, strict=True)}
    expected[None] = said(tiny, generation)  # type: ignore[index]
    assert len(set(expected.values())) == 3, "they differ here"
    seen: set[str | None] = set()
    for name in ("v1.0", None, "v2.0", "v2.0", "v1.0", None):
        model.use_adapter(name)
        deltas = list(model.stream(ASKED, generation))
        assert "".join(delta.text for delta in deltas) == expected[name]  # type: ignore[index]
        assert (deltas[-1].usage.cached_tokens > 0) == (name in seen), "its own cache, no other's"
        seen.add(name)
    with pytest.raises(ValueError, match=r"unknown adapter 'v3'; loaded: v1\.0, v2\.0"):
        model.use_adapter("v3")


def test_a_switch_leaves_answers_in_the_making_as_they_began(
    adapters: list[Path], merged: list[Any], tiny: Any, tiny_chat_model: Path
) -> None:
    options = LoadOptions(device="cpu", adapters=(str(adapters[0]),))
    model: Any = open_engine("transformers", str(tiny_chat_model), options)
    generation = Generation(max_tokens=60)
    stream = model.stream(ASKED, generation)
    first = next(stream).text
    model.use_adapter(None)
    second = said(model, generation)
    assert first + "".join(delta.text for delta in stream) == said(merged[0], generation)
    assert second == said(tiny, generation)


def test_an_adapter_directory_is_a_model_by_itself(adapters: list[Path], merged: list[Any]) -> None:
    model: Any = open_engine("transformers", str(adapters[0]), CPU)
    assert said(model, Generation(max_tokens=30)) == said(merged[0], Generation(max_tokens=30))
    assert (model.name, model.adapter) == (str(adapters[0]), "v1.0")


def test_what_is_no_adapter_is_refused(
    adapters: list[Path], tiny_chat_model: Path, tiny_base_model: Path, tmp_path: Path
) -> None:
    def load(*paths: Path, model: Path = tiny_chat_model) -> None:
        open_engine("transformers", str(model), LoadOptions(device="cpu", adapters=tuple(map(str, paths))))

    with pytest.raises(ValueError, match=r"is no adapter: it has no adapter_config\.json"):
        load(tiny_chat_model)
    with pytest.raises(ValueError, match=r"two adapters are called 'v1\.0'"):
        load(adapters[0], adapters[0])
    with pytest.raises(ValueError, match="adapter"):
        load(adapters[0], model=tiny_base_model)
    with pytest.raises(ValueError, match="does not exist"):
        load(tmp_path / "nowhere")
    pickled = shutil.copytree(adapters[0], tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        load(pickled)


@pytest.mark.parametrize(("text", "complaint"), [("{}", "does not say which model"), ("{", "no valid adapter_config")])
def test_an_adapter_that_names_no_model_needs_one(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(ValueError, match=complaint):
        open_engine("transformers", str(tmp_path), CPU)


def test_an_adapter_of_another_size_is_refused(adapters: list[Path], tiny_chat_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    torn = shutil.copytree(adapters[0], tmp_path / "torn")
    weights = load_file(torn / "adapter_model.safetensors")
    weights.pop(sorted(weights)[0])
    save_file(weights, torn / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"adapter '.*torn' does not fit this model"):
        open_engine("transformers", str(tiny_chat_model), LoadOptions(device="cpu", adapters=(str(torn),)))
    wide = shutil.copytree(adapters[0], tmp_path / "wide")
    config = json.loads((wide / "adapter_config.json").read_text())
    (wide / "adapter_config.json").write_text(json.dumps(config | {"r": 8}))
    with pytest.raises(ValueError, match="adapter"):
        open_engine("transformers", str(tiny_chat_model), LoadOptions(device="cpu", adapters=(str(wide),)))


def test_an_adapter_that_replaces_a_whole_layer_is_switched_with_it(
    adapters: list[Path], merged: list[Any], tiny: Any, tiny_chat_model: Path, tmp_path: Path
) -> None:
    """`modules_to_save`, beside an adapter that has none: after another was in use, the answer of peft's generate."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    config = peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_chat_model), config).eval()
    torch.nn.init.normal_(wrapped.base_model.model.lm_head.modules_to_save["default"].weight, 0.0, 0.5)
    wrapped.save_pretrained(str(tmp_path / "whole"))
    options = LoadOptions(device="cpu", adapters=(str(tmp_path / "whole"), str(adapters[0])))
    model: Any = open_engine("transformers", str(tiny_chat_model), options)
    ids = torch.tensor([model.renderer.ids(ASKED)])
    expected = wrapped.generate(input_ids=ids, max_new_tokens=20, do_sample=False)[0][ids.shape[1] :]
    generation = Generation(max_tokens=20)
    answers = {
        "whole": model.tokenizer.decode(expected, skip_special_tokens=True),
        "v1.0": said(merged[0], generation),
        None: said(tiny, generation),
    }
    assert len(set(answers.values())) == 3
    for name in ("whole", "v1.0", "whole", None, "whole", None, "v1.0"):
        model.use_adapter(name)
        model.forget()
        assert said(model, generation) == answers[name]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`:UserWarning")
def test_an_adapter_may_bring_more_tokens_than_its_model_has(tiny_chat_model: Path, tmp_path: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_chat_model)
    tokenizer.add_tokens(["<x1>", "<x2>"])
    base: Any = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    base.resize_token_embeddings(len(tokenizer))
    torch.nn.init.normal_(base.get_input_embeddings().weight[-2:].data)
    peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "wide"))
    tokenizer.save_pretrained(tmp_path / "wide")
    model: Any = open_engine("transformers", str(tmp_path / "wide"), CPU)
    assert model.model.get_input_embeddings().weight.equal(base.get_input_embeddings().weight)
    assert model.model.get_output_embeddings().weight.equal(base.get_output_embeddings().weight)
    assert said(model, Generation(max_tokens=5), Conversation().add("user", "<x1> <x2>"))

"""Adapter and base become one model: peft's own sums are the oracle; what does not fit is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tools.merge_lora import cli, merge

peft = pytest.importorskip("peft")
# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")


def save_adapter(folder: Path, base: Path, config: Any = None) -> Path:
    """An adapter with random weights, saved by peft."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    lora = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, lora_alpha=16)
    peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config or lora).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def adapter(tiny_chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_adapter(tmp_path_factory.mktemp("adapters") / "mine", tiny_chat_model)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_weights_are_base_plus_scaled_product(adapter: Path, tiny_chat_model: Path, tmp_path: Path) -> None:
    """W + alpha / r * B A (Hu et al. 2021, section 4.1), by hand from the files."""
    import torch
    from safetensors.torch import load_file

    parity = merge(str(adapter), tmp_path / "merged")
    assert (parity.num_same, parity.num_tokens) == (128, 128)
    before, after = weights(tiny_chat_model), weights(tmp_path / "merged")
    low = load_file(adapter / "adapter_model.safetensors")
    assert set(before) == set(after)
    for name, weight in before.items():
        stem = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in low:
            weight = weight + 16 / 4 * low[f"{stem}.lora_B.weight"] @ low[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(after[name], weight)
    assert sum("lora_A" in name for name in low) == 4
    assert (tmp_path / "merged" / "chat_template.jinja").read_text() == (
        tiny_chat_model / "chat_template.jinja"
    ).read_text()


def test_precision_is_the_bases_and_the_tokenizer_the_adapters(
    adapter: Path, tiny_chat_model: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_chat_model, dtype=torch.bfloat16).save_pretrained(half)
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_chat_model)
    tokenizer.save_pretrained(half)
    own = shutil.copytree(adapter, tmp_path / "own")
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "<|im_end|> ")
    tokenizer.save_pretrained(own)
    result = CliRunner().invoke(cli, [str(own), "--out", str(tmp_path / "merged"), "--base", str(half)])
    assert (result.exit_code, result.stdout) == (0, ""), result.stderr
    assert "4 conversations have the same text and token ids" in result.stderr
    assert {weight.dtype for weight in weights(tmp_path / "merged").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"
    assert "<|im_end|> " in (tmp_path / "merged" / "chat_template.jinja").read_text()


def test_what_does_not_fit_is_refused(
    adapter: Path, tiny_chat_model: Path, tiny_base_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    torn = shutil.copytree(adapter, tmp_path / "torn")
    low = load_file(torn / "adapter_model.safetensors")
    low.pop(sorted(low)[0])
    save_file(low, torn / "adapter_model.safetensors", {"format": "pt"})
    prompts = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    cases = (
        (tiny_chat_model, None, r"is no adapter: it has no adapter_config\.json"),
        (adapter, str(tiny_base_model), "adapter"),
        (torn, None, "does not fit its base model"),
        (save_adapter(tmp_path / "prompts", tiny_chat_model, prompts), None, "have no weights that could be added"),
        (tmp_path / "none", None, "does not exist"),
    )
    for place, base, message in cases:
        with pytest.raises(ValueError, match=message):
            merge(str(place), tmp_path / "out" / "merged", base)
        assert not (tmp_path / "out").exists()

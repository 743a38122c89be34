"""The gate: what is the same passes with figures that arithmetic confirms; every kind of mistake is refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.convert_hf_to_gguf import write_gguf
from tools.parity import NUM_TOKENS, TOLERANCES, Reference, beside, check_directory, check_gguf, compare, load_gguf


@pytest.fixture(scope="module")
def source(tiny_chat_model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_chat_model).eval()


@pytest.fixture(scope="module")
def reference(source: Any, tiny_chat_model: Path) -> Reference:
    from transformers import AutoTokenizer

    return Reference.of(source, AutoTokenizer.from_pretrained(tiny_chat_model))


def test_a_reference_is_what_generate_says(reference: Reference, source: Any) -> None:
    """transformers' own greedy generation; an end of text does not stop it."""
    import torch

    for ids, continuation, logprobs_TV in zip(reference.ids, reference.continuations, reference.logprobs, strict=True):
        settings: dict[str, Any] = {"do_sample": False, "max_new_tokens": NUM_TOKENS, "eos_token_id": None}
        generated = source.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **settings)
        assert generated[0, len(ids) :].tolist() == continuation
        assert logprobs_TV.shape == (NUM_TOKENS, source.config.vocab_size)
        assert logprobs_TV.argmax(-1).tolist() == continuation
        assert logprobs_TV.exp().sum(-1).tolist() == pytest.approx([1.0] * NUM_TOKENS)


def test_the_same_directory_passes_without_a_difference(reference: Reference, tiny_chat_model: Path) -> None:
    parity = check_directory(reference, tiny_chat_model, "float32")
    assert (parity.num_tokens, parity.num_same, parity.mean) == (
        4 * NUM_TOKENS,
        4 * NUM_TOKENS,
        pytest.approx(0, abs=1e-5),
    )
    assert "128 of 128 greedy tokens are the same" in str(parity)


def shifted(by: float, chosen: int | None = None) -> Callable[..., Any]:
    """A result that gives each of two tokens a log-probability `by` nats from the source's."""

    def told(reference: Reference) -> Callable[..., Any]:
        def likeliest(ids: list[int], continuation: list[int]) -> list[list[tuple[int, float]]]:
            logprobs_TV = reference.logprobs[reference.ids.index(ids)]
            rows = []
            for token, logprobs_V in zip(continuation, logprobs_TV, strict=True):
                first = int(logprobs_V.argsort(descending=True)[chosen]) if chosen else token
                rows.append([(first, float(logprobs_V[first]) + by), (0, float(logprobs_V[0]) - by)])
            return rows

        return likeliest

    return told


def test_differences_are_measured_in_nats(reference: Reference) -> None:
    parity = compare(reference, shifted(0.008)(reference), "f32", "me")
    assert (parity.mean, parity.largest) == (pytest.approx(0.008, abs=1e-5), pytest.approx(0.008, abs=1e-5))
    for by in (0.011, math.nan, math.inf):
        with pytest.raises(
            ValueError, match=r"log-probabilities differ by .* on average, more than 0.01 for f32 \(me\)"
        ):
            compare(reference, shifted(by)(reference), "f32", "me")


def test_another_greedy_token_is_refused_unless_it_is_as_likely(reference: Reference) -> None:
    with pytest.raises(
        ValueError, match=r"another greedy token is .* nats less likely .* \(0 of 128 are the same, me\)"
    ):
        compare(reference, shifted(0.0, chosen=1)(reference), "float32", "me")
    gaps = [float(row.max() - row.topk(2).values[1]) for each in reference.logprobs for row in each]
    assert max(gaps) < 5 * TOLERANCES["q4_0"], "so that here the second likeliest passes"
    assert compare(reference, shifted(0.0, chosen=1)(reference), "q4_0", "me").num_same == 0


def changed_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without_permutation(folder: Path) -> None:
    """Weights as if queries and keys had been reordered once too often, or not at all."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].reshape(4, 2, 4, 32).swapaxes(1, 2).reshape(32, 32).contiguous()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def swapped_layers(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    names = {"0": "1", "1": "0"}
    weights = load_file(folder / "model.safetensors")
    moved = {
        ".".join([*parts[:2], names[parts[2]], *parts[3:]]) if (parts := name.split("."))[1] == "layers" else name: each
        for name, each in weights.items()
    }
    save_file(moved, folder / "model.safetensors", {"format": "pt"})


MISTAKES: dict[str, Callable[[Path], None]] = {
    "log-probabilities differ|greedy token": lambda folder: changed_config(
        folder, rope_parameters={"rope_type": "default", "rope_theta": 100.0}
    ),
    "log-probabilities differ|another greedy": without_permutation,
    "log-probabilities differ": swapped_layers,
    "the chat template differs": lambda folder: (
        (folder / "chat_template.jinja").write_text(
            (folder / "chat_template.jinja").read_text().replace("assistant", "bot")
        )
        and None
    ),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_refused_in_a_directory_and_in_a_file(
    message: str, reference: Reference, tiny_chat_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    MISTAKES[message](folder)
    with pytest.raises(ValueError, match=message):
        check_directory(reference, folder, "float32")
    write_gguf(folder, tmp_path / "model.gguf", "f16")
    with pytest.raises(ValueError, match=message):
        check_gguf(reference, tmp_path / "model.gguf", "f16")


def test_what_transformers_would_leave_out_of_a_file_is_refused(tiny_chat_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    rope = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
    rope |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 64}
    changed_config(folder, rope_parameters=rope)
    write_gguf(folder, tmp_path / "model.gguf", "f32")
    with pytest.raises(ValueError, match=r"holds 44,196 numbers, of which transformers takes 44,192"):
        load_gguf(tmp_path / "model.gguf")


def test_without_llama_cpp_transformers_is_the_judge(
    reference: Reference, tiny_chat_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)  # as where it is not installed
    write_gguf(tiny_chat_model, tmp_path / "right.gguf", "f32")
    parity = check_gguf(reference, tmp_path / "right.gguf", "f32")
    assert (parity.num_same, parity.mean, parity.by) == (128, pytest.approx(0, abs=1e-5), "transformers")
    folder = shutil.copytree(tiny_chat_model, tmp_path / "model")
    swapped_layers(folder)
    write_gguf(folder, tmp_path / "wrong.gguf", "f32")
    with pytest.raises(ValueError, match=r"log-probabilities differ .* can judge it: pip install 'parley\[gguf\]'"):
        check_gguf(reference, tmp_path / "wrong.gguf", "f32")


def test_nothing_appears_before_all_is_well(tmp_path: Path) -> None:
    target = tmp_path / "out" / "model"

    def fail() -> None:
        with beside(target) as made:
            made.mkdir()
            (made / "config.json").write_text("{}")
            raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        fail()
    assert list((tmp_path / "out").iterdir()) == []
    with beside(target) as made:
        made.mkdir()
        (made / "config.json").write_text("{}")
        (made / "config.json").chmod(0o600)
        assert not target.exists()
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["model"]
    assert (target / "config.json").stat().st_mode & 0o777 == 0o644
    with pytest.raises(ValueError, match="exists; remove it first, or name another"), beside(target):
        pass


def test_what_a_killed_conversion_left_is_removed_later(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".model.dead.converting", tmp_path / ".model.busy.converting"
    for folder in (old, fresh):
        folder.mkdir()
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    with beside(tmp_path / "model") as made:
        made.write_text("x")
    assert (old.exists(), fresh.exists()) == (False, True)

"""The policy's numbers for sampled tokens, its value head, and that it is the same policy at each look."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from training.examples.collate import causal_batch, encoder_decoder_batch
from training.rl.policy import HEAD, attach_value_head, save_value_head, token_numbers, without_dropout
from training.rl.rounds import Rollout, rollout_batch

ROLLOUTS = [
    Rollout(np.array([5, 6, 7, 20, 21], np.int32), 3, "", 0.0, True),
    Rollout(np.array([8, 30, 31, 32, 33, 34, 2], np.int32), 1, "", 0.0, True),
]


@pytest.fixture
def model(tiny_chat_model: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_chat_model)


def t5(**more: Any) -> Any:
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, **more
    )
    return T5ForConditionalGeneration(config)


def test_numbers_of_a_decoder_are_those_of_a_plain_pass_over_each_answer(model: Any) -> None:
    attach_value_head(model, None)
    torch.nn.init.normal_(model.value_head.weight)
    found = token_numbers(model, rollout_batch([ROLLOUTS], partial(causal_batch, pad_id=0, packed=False)), 0.7)
    logp, entropy, values = [], [], []
    for rollout in ROLLOUTS:
        ids = torch.from_numpy(rollout.ids.astype(np.int64))[None]
        out = model(ids, output_hidden_states=True)
        before = slice(rollout.start - 1, -1)
        all_logp = (out.logits[0, before] / 0.7).log_softmax(-1)
        logp.append(all_logp.gather(1, ids[0, rollout.start :, None])[:, 0])
        entropy.append(-(all_logp.exp() * all_logp).sum(1))
        values.append(model.value_head(out.hidden_states[-1][0, before])[:, 0])
    torch.testing.assert_close(found.logp, torch.cat(logp), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.entropy, torch.cat(entropy), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.values, torch.cat(values), rtol=1e-4, atol=1e-4)


def test_numbers_of_an_encoder_decoder_too() -> None:
    model = t5().eval()
    found = token_numbers(model, rollout_batch([ROLLOUTS], partial(encoder_decoder_batch, pad_id=0, start_id=0)), 1.0)
    logp = []
    for rollout in ROLLOUTS:
        source = torch.from_numpy(rollout.ids[: rollout.start].astype(np.int64))[None]
        answer = torch.from_numpy(rollout.ids[rollout.start :].astype(np.int64))[None]
        shifted = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], 1)
        logits = model(input_ids=source, decoder_input_ids=shifted).logits
        logp.append(logits.log_softmax(-1).gather(2, answer[..., None])[0, :, 0])
    torch.testing.assert_close(found.logp, torch.cat(logp), rtol=1e-4, atol=1e-4)
    assert found.values.tolist() == [0] * 8


@pytest.mark.parametrize("kind", ["decoder", "encoder-decoder"])
def test_without_dropout_a_model_in_training_is_the_model(kind: str, tiny_chat_model: Path) -> None:
    if kind == "decoder":
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_chat_model, attention_dropout=0.5)
        batch = rollout_batch([ROLLOUTS], partial(causal_batch, pad_id=0, packed=False))
    else:
        model = t5(dropout_rate=0.5)
        batch = rollout_batch([ROLLOUTS], partial(encoder_decoder_batch, pad_id=0, start_id=0))
    plain = token_numbers(model.eval(), batch, 1.0).logp
    assert not token_numbers(model.train(), batch, 1.0).logp.allclose(plain)
    without_dropout(model)
    assert token_numbers(model.train(), batch, 1.0).logp.allclose(plain)


def test_the_value_head_is_kept_beside_the_model_and_found_again(model: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    attach_value_head(model, None)
    assert not model.value_head.weight.any()  # advantages are at first the returns
    torch.nn.init.normal_(model.value_head.weight)
    model.save_pretrained(tmp_path)
    assert not any(HEAD in name for name in load_file(tmp_path / "model.safetensors"))
    save_value_head(model, tmp_path)
    other: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    attach_value_head(other, tmp_path)
    assert other.value_head.weight.equal(model.value_head.weight)


def test_a_round_at_hand_comes_back_exactly(tmp_path: Path) -> None:
    from training.rl.rounds import Rounds
    from training.state_files import load_tree, save_tree

    def rounds() -> Rounds:
        more: Any = {"num_prompts": 2, "samples": 1, "learned": 2, "passes": 1, "numbers": {"kl_coeff": 0.1}}
        nothing: Any = None
        return Rounds(nothing, nothing, nothing, **more)

    one, two = rounds(), rounds()
    kept = [[np.array([3, 4], np.int32)] * rollout.length for rollout in ROLLOUTS]
    rows = [
        Rollout(each.ids, each.start, "é", -0.1, False, sets, {"logp": np.arange(each.length, dtype=np.float32) / 3})
        for each, sets in zip(ROLLOUTS, kept, strict=True)
    ]
    one.restore({**rounds().state(), "round": 7, "numbers": {"kl_coeff": 1 / 3}})
    one._rows = rows
    save_tree(tmp_path, "round", one.state())
    two.restore(load_tree(tmp_path, "round"))
    assert two.numbers == {"kl_coeff": 1 / 3}
    for row, expected in zip(two._rows, rows, strict=True):
        assert row.ids.tolist() == expected.ids.tolist()
        assert (row.start, row.text, row.reward, row.ended) == (expected.start, "é", -0.1, False)
        assert row.tokens["logp"].tobytes() == expected.tokens["logp"].tobytes()
        assert [each.tolist() for each in row.kept or ()] == [each.tolist() for each in expected.kept or ()]

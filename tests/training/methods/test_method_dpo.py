"""DPO and its variants by hand and against TRL; references; pairs of ranked answers."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.conversation import Conversation
from training.data.converting import LeftOut
from training.data.rows import PreferenceRow, RankedRow
from training.methods.dpo import dpo_loss
from training.methods.pairs import Pairs, pairs_of

TALK = Conversation().add("user", "Who are you?")


def test_by_hand() -> None:
    ratios = torch.tensor([[-10.0 + 11, -12.0 + 11], [0.0, 0.0]])
    assert dpo_loss(ratios, 0.1).tolist() == pytest.approx([0.598139, math.log(2)], abs=1e-6)
    assert dpo_loss(ratios, 0.1, "ipo").tolist() == pytest.approx([(2 - 5) ** 2, 25])
    assert dpo_loss(ratios, 0.1, "hinge").tolist() == pytest.approx([0.8, 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", ["sigmoid", "ipo", "hinge"])
def test_loss_and_gradients_are_those_of_trl(
    variant: str, configured: Any, tmp_path: Path, tiny_chat_model: Path
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from training.examples.answers import AnswerMaker, answers_batch
    from training.methods.dpo import _objective
    from training.models import load

    config = configured("r", "method=dpo", "data=none", f"method.loss={variant}", "method.beta=0.3")
    loaded = load(config)
    objective = _objective(config, loaded, None)  # type: ignore[arg-type]
    moved(loaded.model)
    maker = AnswerMaker(loaded.renderer, 64, lambda row, counts: pairs_of(row, counts, Pairs.best_over_rest), 2)
    pairs = [("A small model.", "No."), ("I answer.", "The bridge was opened in 1932.")]
    rows = [list(maker.examples(PreferenceRow(TALK, *pair))) for pair in pairs]
    batch = answers_batch(rows, loaded.pad_id)
    theirs = copy.deepcopy(loaded.model)
    loss = objective.loss(loaded.model, batch).sums / objective.count(batch)
    loss.backward()
    reference = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    args = DPOConfig(
        str(tmp_path / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        loss_type=variant,
        beta=0.3,
    )
    some = Dataset.from_list([{"prompt": "Hi", "chosen": "Yes", "rejected": "No"}])
    trainer = DPOTrainer(theirs, reference, args, train_dataset=some, processing_class=loaded.tokenizer)
    answers = [rows[0][0], rows[1][0], rows[0][1], rows[1][1]]  # chosen first
    width = max(len(each.ids) for each in answers)
    inputs = {
        key: torch.zeros(4, width, dtype=torch.long) for key in ("input_ids", "attention_mask", "completion_mask")
    }
    for number, each in enumerate(answers):
        size = len(each.ids)
        inputs["input_ids"][number, :size] = torch.from_numpy(each.ids.astype("int64"))
        inputs["attention_mask"][number, :size] = 1
        inputs["completion_mask"][number, :size] = torch.from_numpy(each.mask.astype("int64"))
    expected = trainer.compute_loss(theirs, inputs)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    expected.backward()
    for (name, mine), other in zip(loaded.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=2e-3, atol=1e-5, msg=name)


def moved(model: Any) -> None:
    """A model that is no longer the one it was."""
    torch.manual_seed(5)
    with torch.no_grad():
        for each in model.parameters():
            each.add_(0.02 * torch.randn_like(each))


def test_a_reference_computed_before_trains_to_the_same_weights(run: Any, ranked: Path, weights: Any) -> None:
    one = ("method=dpo", f"data={ranked}", "trainer.max_steps=3")
    beside = weights(run("beside", *one))
    before = weights(run("before", *one, "method.precompute_reference=true"))
    for key, value in beside.items():
        assert float((value - before[key]).abs().max()) < 1e-5, key


def test_an_adapter_that_is_trained_further_is_measured_against_itself(
    run: Any, ranked: Path, evaluations: Any
) -> None:
    """And not against the model under it: at the start both are one, so that the loss is ln 2."""
    one = ("method=dpo", f"data={ranked}", "peft=lora", "trainer.max_steps=4", "data.eval_fraction=0.25")
    first = run("first", *one)
    second = run("second", *one, f"model={first}")
    assert evaluations(second)[0]["eval_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert evaluations(first)[-1]["eval_accuracy"] > 0.5


def pairs(scores: tuple[float | None, ...], which: Pairs) -> list[str]:
    row = RankedRow(TALK, tuple("abcdef"[: len(scores)]), scores)
    return ["".join(answer.text for answer in pair) for pair in pairs_of(row, Counter(), which)]


def test_pairs_of_ranked_answers_by_hand() -> None:
    scores = (1.0, -2.0, 3.0, 1.0, None)
    assert pairs(scores, Pairs.best_over_rest) == ["ca", "cd", "cb"]
    assert pairs(scores, Pairs.best_over_worst) == ["cb"]
    assert pairs(scores, Pairs.one_over_rest) == ["ca", "cd", "cb", "ab", "db"]
    with pytest.raises(LeftOut, match="different scores"):
        pairs((2.0, 2.0), Pairs.one_over_rest)


def test_what_was_trained_loads_as_a_language_model(run: Any, ranked: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory = run("r", "method=dpo", f"data={ranked}", "data.eval_fraction=0.25", "trainer.max_steps=2")
    AutoModelForCausalLM.from_pretrained(directory)
    samples = [json.loads(line) for line in (directory / "samples.jsonl").read_text().splitlines()]
    assert {"prompt", "answer", "expected"} <= samples[0].keys()

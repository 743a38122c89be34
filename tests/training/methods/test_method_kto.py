"""KTO by hand and against TRL."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from chatbot.conversation import Conversation
from training.data.rows import RatedRow
from training.methods.kto import _rated, kto_loss, mismatched_batch


def test_by_hand() -> None:
    ratios, good = torch.tensor([1.0, 1.0]), torch.tensor([True, False])
    losses = kto_loss(ratios, good, torch.tensor(0.0), 0.1)
    assert losses.tolist() == pytest.approx([0.475021, 0.524979], abs=1e-6)
    assert kto_loss(ratios, good, torch.tensor(1.0), 0.1, 2.0, 3.0).tolist() == pytest.approx([1.0, 1.5])


@pytest.fixture
def rows_and_model(configured: Any) -> Any:
    from training.examples.answers import AnswerMaker
    from training.models import load

    config = configured("r", "method=kto", "data=none", "method.beta=0.3", "method.bad_weight=2")
    loaded = load(config)
    maker = AnswerMaker(loaded.renderer, 64, _rated)
    given = [("Who are you?", "A small model.", True), ("Where?", "No.", False), ("How many lanes?", "Eight.", True)]
    rows = [
        list(maker.examples(RatedRow(Conversation().add("user", asked), said, good))) for asked, said, good in given
    ]
    return config, loaded, rows


def test_mismatched_answers_are_those_of_the_row_before(rows_and_model: Any) -> None:
    _, loaded, rows = rows_and_model
    batch = mismatched_batch(rows, loaded.pad_id, 64)
    text = loaded.tokenizer.decode(batch["kl_input_ids"][0][: int(batch["kl_input_ids"][0].ne(loaded.pad_id).sum())])
    assert "Who are you?" in text
    assert "Eight." in text


@pytest.mark.filterwarnings("ignore")
def test_loss_and_gradients_are_those_of_trl(rows_and_model: Any, tmp_path: Path, tiny_chat_model: Path) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import KTOConfig, KTOTrainer

    from training.methods.kto import _objective

    config, loaded, rows = rows_and_model
    objective = _objective(config, loaded, None)  # type: ignore[arg-type]
    torch.manual_seed(5)
    with torch.no_grad():
        for each in loaded.model.parameters():
            each.add_(0.02 * torch.randn_like(each))
    batch = mismatched_batch(rows, loaded.pad_id, 64)
    theirs = copy.deepcopy(loaded.model)
    loss = objective.loss(loaded.model, batch).sums / objective.count(batch)
    loss.backward()
    args = KTOConfig(
        str(tmp_path / "trl"),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        beta=0.3,
        undesirable_weight=2.0,
        per_device_train_batch_size=2,
    )
    some = Dataset.from_list([{"prompt": "Hi", "completion": "Yes", "label": number == 0} for number in range(2)])
    reference = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    trainer = KTOTrainer(theirs, reference, args, train_dataset=some, processing_class=loaded.tokenizer)
    inputs = {"label": torch.tensor([True, False, True])}
    answers = [row[0] for row in rows]
    prompts = [each.ids[~each.mask].tolist() for each in answers]
    said = [each.ids[each.mask].tolist() for each in answers]
    for prefix, endings in (("", said), ("KL_", [said[2], said[0], said[1]])):
        both = [prompt + ending for prompt, ending in zip(prompts, endings, strict=True)]
        width = max(map(len, both))
        names = [f"{prefix}{name}" for name in ("input_ids", "attention_mask", "completion_mask")]
        for name in names:
            inputs[name] = torch.zeros(3, width, dtype=torch.long)
        for number, ids in enumerate(both):
            inputs[names[0]][number, : len(ids)] = torch.tensor(ids)
            inputs[names[1]][number, : len(ids)] = 1
            inputs[names[2]][number, len(prompts[number]) : len(ids)] = 1
    expected = trainer.compute_loss(theirs, inputs)
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    expected.backward()
    for (name, mine), other in zip(loaded.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=2e-3, atol=1e-5, msg=name)


def test_a_single_row_a_step_is_refused(run: Any, rated: Path) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        run("r", "method=kto", f"data={rated}", "trainer.batch_size=1")

"""Reward models: the loss by hand and against TRL, what is read from where, what is saved, and bad data."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.calibration import expected_calibration_error
from training.heads import pooled
from training.methods.reward import Settings, bradley_terry_loss, reward_metrics


def mean_loss(rewards: list[float], scores: list[float], rows: list[int] | None = None, **more: Any) -> float:
    losses, _ = bradley_terry_loss(
        torch.tensor(rewards, dtype=torch.float32),
        torch.tensor(scores),
        torch.tensor(rows or [0] * len(scores)),
        **more,
    )
    return float(losses.mean())


def test_pairs_by_hand() -> None:
    assert mean_loss([2, 1, 0], [3, 2, 1]) == pytest.approx(0.251150, abs=1e-6)
    assert mean_loss([1, 0], [-1, -2]) == pytest.approx(0.313262, abs=1e-6)  # negative scores are scores
    assert mean_loss([0.3, 0.3], [1, 0]) == pytest.approx(math.log(2))
    assert mean_loss([1, 0], [1, 0], margins_B=torch.tensor([1.0, 1.0])) == pytest.approx(math.log(2))
    assert mean_loss([1, 0], [1, 0], weights_B=torch.tensor([3.0, 3.0])) == pytest.approx(3 * 0.313262, abs=1e-5)


def test_answers_of_another_row_and_equal_scores_make_no_pair() -> None:
    assert mean_loss([2, 1, 0, 9], [3, 2, 1, 0], [0, 0, 0, 1]) == pytest.approx(0.251150, abs=1e-6)
    losses, records = bradley_terry_loss(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 2.0]), torch.tensor([0, 0]))
    assert losses.shape == (0,)
    assert records.shape == (0, 2)


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5), st.integers(0, 2)), min_size=1, max_size=9))
def test_all_pairs_are_those_that_a_double_loop_finds(answers: list[tuple[int, float, int]]) -> None:
    answers.sort(key=lambda each: each[2])
    scores, rewards, rows = (list(column) for column in zip(*answers, strict=True))
    expected = [
        math.log1p(math.exp(-(rewards[i] - rewards[j])))
        for i in range(len(rows))
        for j in range(len(rows))
        if rows[i] == rows[j] and scores[i] > scores[j]
    ]
    losses, _ = bradley_terry_loss(torch.tensor(rewards), torch.tensor(scores), torch.tensor(rows))
    assert losses.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("margin", [False, True])
def test_loss_and_gradients_are_those_of_trl(margin: bool, configured: Any, write: Any, tmp_path: Path) -> None:
    import copy

    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    from training.methods.reward import _batch, _objective
    from training.models import Head, load

    config = configured("r", "method=reward", "data=none")
    loaded = load(config, head=Head(("reward",)))
    rows = answer_rows(loaded, 0.7 if margin else 0.0)
    batch = _batch(rows, loaded.pad_id, config.method)
    theirs = copy.deepcopy(loaded.model)
    objective = _objective(config.method, loaded, None)  # type: ignore[arg-type]
    loss = objective.loss(loaded.model, batch).sums / objective.count(batch)
    loss.backward()
    args = RewardConfig(str(tmp_path / "trl"), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
    some = Dataset.from_list([{"chosen": "Yes", "rejected": "No"}])
    trainer = RewardTrainer(theirs, args, train_dataset=some, processing_class=loaded.tokenizer)
    order = [0, 2, 1, 3]  # chosen first
    inputs = {key: batch[key][order] for key in ("input_ids", "attention_mask")}
    if margin:
        inputs["margin"] = torch.tensor([0.7, 0.7])
    expected = trainer.compute_loss(theirs, inputs)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    expected.backward()
    for (name, mine), other in zip(loaded.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def answer_rows(loaded: Any, margin: float) -> list[Any]:
    """Two rows with a better and a worse answer."""
    from chatbot.conversation import Conversation
    from training.data.rows import PreferenceRow
    from training.examples.answers import AnswerMaker
    from training.methods.pairs import list_of

    maker = AnswerMaker(loaded.renderer, 64, list_of, 2)
    talk = Conversation().add("user", "Who are you?")
    pairs = [("A small model.", "No."), ("I answer.", "The bridge was opened in 1932.")]
    return [list(maker.examples(PreferenceRow(talk, *pair, margin))) for pair in pairs]


def test_pooling_by_hand() -> None:
    hidden = torch.tensor([[[-1.0, 2.0], [-3.0, 4.0], [9.0, 9.0]], [[1.0, 1.0], [2.0, 5.0], [6.0, 3.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert pooled(hidden, mask, "eos").tolist() == [[-3, 4], [6, 3]]
    assert pooled(hidden, mask, "last").tolist() == [[-1, 2], [2, 5]]
    assert pooled(hidden, mask, "max").tolist() == [[-1, 4], [6, 5]]  # filling is not 0, which beats -1
    assert pooled(hidden, mask, "average").tolist() == [[-2, 3], [3, 3]]


def test_calibration_errors_by_hand() -> None:
    assert expected_calibration_error([0.9] * 4, [1, 1, 1, 0], 5) == pytest.approx(0.15)
    assert expected_calibration_error([0.55, 0.95], [1, 0], 5) == pytest.approx(0.7)
    assert expected_calibration_error([0.55, 0.95], [1, 0], 1) == pytest.approx(0.25)
    assert expected_calibration_error([0.6, 0.7, 0.8, 0.9], [1, 0, 1, 1], 2, "quantile") == pytest.approx(
        (abs(1.3 - 1) + abs(1.7 - 2)) / 4
    )
    with pytest.raises(ValueError, match="of 0 values"):
        expected_calibration_error([], [], 5)


def test_metrics_by_hand() -> None:
    records = np.array([[2.0, 1], [-1.0, 0], [1.0, 0]])
    told = reward_metrics(Settings(calibration_bins=[1]), 0.0, [], records)
    assert told["pair_accuracy"] == pytest.approx(2 / 3)
    assert told["first_two_accuracy"] == 1
    confidence = [1 / (1 + math.exp(-each)) for each in (2, 1, 1)]
    assert told["ece_1"] == pytest.approx(abs(2 / 3 - sum(confidence) / 3))


def test_what_is_saved_scores_in_transformers_as_in_training(
    run: Any, ranked: Path, configured: Any, tiny_chat_model: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    directory = run("r", "method=reward", f"data={ranked}", "trainer.max_steps=3")
    model = AutoModelForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.config.id2label == {0: "reward"}
    talks = [[("user", "Who are you?"), ("assistant", text)] for text in ("I.", "A small model, and I answer.")]
    texts = ["".join(f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in talk).rstrip() for talk in talks]
    told = {"return_tensors": "pt", "return_token_type_ids": False}
    with torch.no_grad():
        together = model(**tokenizer(texts, padding=True, **told)).logits[:, 0]
        alone = [model(**tokenizer([text], **told)).logits[0, 0] for text in texts]
        hidden = model.model(**tokenizer([texts[0]], **told)).last_hidden_state[0, -1]
    assert together.tolist() == pytest.approx([float(each) for each in alone], abs=1e-5)
    assert float(hidden @ model.score.weight[0]) == pytest.approx(float(together[0]), abs=1e-5)


def test_a_model_that_pads_with_its_end_token_gets_another_one(
    run: Any, ranked: Path, tiny_base_model: Path, weights: Any
) -> None:
    """Else transformers would read the state of the token before the end, or of none."""
    from transformers import AutoConfig, AutoTokenizer

    directory = run("r", "method=reward", f"data={ranked}", f"model={tiny_base_model}", "trainer.max_steps=2")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert AutoConfig.from_pretrained(directory).pad_token_id == tokenizer.pad_token_id


def test_an_adapters_head_is_saved_with_it(run: Any, ranked: Path, weights: Any) -> None:
    directory = run("r", "method=reward", f"data={ranked}", "peft=lora", "trainer.max_steps=2")
    assert any("score" in key for key in weights(directory))


def test_it_learns_which_answer_is_better(run: Any, ranked: Path, evaluations: Any) -> None:
    directory = run("r", "method=reward", f"data={ranked}", "data.eval_fraction=0.25", "method.calibration_bins=[5,10]")
    before, *_, after = evaluations(directory)
    assert after["eval_pair_accuracy"] > 0.8 > before["eval_pair_accuracy"]
    assert {"eval_first_two_accuracy", "eval_ece_5", "eval_ece_10", "eval_margin"} <= after.keys()


def test_weights_and_unscored_answers(write: Any, run: Any, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "responses": ["Hello!", "What?", "?"], "scores": [0.9, 0.1, None], "weight": 2},
        {"prompt": "Hi", "responses": ["Hello!", "What?"], "scores": [0.5, 0.5]},
    ]
    directory = run("r", "method=reward", f"data={write('few.jsonl', rows)}", "trainer.max_steps=1")
    source = json.loads((directory / "run.json").read_text())["data"][0]
    assert source["counts"] == {"answers left out: no score": 1}
    (skipped,) = source["read"]["skipped"]
    assert skipped == {
        "reason": "no two answers have different scores",
        "count": 1,
        "places": [f"{tmp_path / 'few.jsonl'}:2"],
    }
    assert source["num_rows"] == 1
    assert source["num_examples"] == 2


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"prompt": "Hi", "responses": ["a", "b"], "scores": [1, 1]},
            r"no two answers have different scores \(.*bad.jsonl:1\)",
        ),
        ({"prompt": "Hi", "responses": ["a", "b"], "scores": [1, float("nan")]}, r"bad.jsonl:1: .*nan"),
        ({"prompt": "Hi", "responses": [], "scores": []}, r"bad.jsonl:1: 0 answers"),
        ({"prompt": "Hi", "responses": ["a", 3], "scores": [1, 2]}, r"bad.jsonl:1: .*must be text"),
        (
            {"prompt": "Hi " * 200, "responses": ["a", "b"], "scores": [1, 2]},
            r"answers left out: too long.*bad.jsonl:1",
        ),
    ],
)
def test_bad_data_trains_nothing(row: dict[str, Any], reason: str, write: Any, run: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=reason):
        run("r", "method=reward", f"data={write('bad.jsonl', [row])}")
    assert not (tmp_path / "r" / "checkpoints").exists()


@pytest.mark.parametrize("more", [(), ("peft=lora",), ("method.pooling=max",)], ids=["whole", "lora", "max"])
def test_a_saved_model_scores_as_it_did_in_evaluation(
    more: tuple[str, ...], run: Any, ranked: Path, evaluations: Any
) -> None:
    """The margin over all pairs, from the file's rows and the saved directory alone."""
    from chatbot.conversation import Conversation
    from training.scoring import open_reward_model

    directory = run("r", "method=reward", f"data={ranked}", f"data.eval={ranked}", "trainer.max_steps=4", *more)
    rewards = open_reward_model(str(directory), "cpu")
    margins = []
    for line in ranked.read_text().splitlines():
        row = json.loads(line)
        found = rewards.scores(Conversation().add("user", row["prompt"]), row["responses"])
        order = [reward for reward, score in zip(found, row["scores"], strict=True) if score is not None]
        margins += [better - worse for place, better in enumerate(order) for worse in order[place + 1 :]]
    assert sum(margins) / len(margins) == pytest.approx(evaluations(directory)[-1]["eval_margin"], abs=1e-4)


@pytest.mark.parametrize("more", [(), ("peft=lora",)], ids=["whole", "lora"])
def test_a_saved_model_scores_at_the_length_that_it_was_trained_at(
    more: tuple[str, ...], run: Any, write: Any, evaluations: Any, tiny_chat_model: Path
) -> None:
    """Prompts of which training kept the last turn alone; scores by transformers on those tokens, in evaluation, from
    the saved directory, and through what RL and `tools/evaluate.py reward` ask."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from chatbot.conversation import Conversation
    from training.rl.rewards import open_rewards
    from training.scoring import open_reward_model

    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_chat_model)
    prompts, rows = [], []
    for number in range(8):
        turns = Conversation().add("user", "The bridge was opened. " * 4).add("assistant", "Yes.")
        prompts.append(turns.add("user", f"Add {number} and 1."))
        rows.append(
            {"prompt": prompts[-1].to_dicts(), "responses": [f"{number + 1}.", "What?"], "scores": [1, 0]},
        )
    data = write("long.jsonl", rows)
    directory = run("r", "method=reward", f"data={data}", f"data.eval={data}", "trainer.max_steps=3", *more)
    rewards = open_reward_model(str(directory), "cpu")
    assert rewards.max_length == 64
    found = [rewards.scores(prompt, row["responses"]) for prompt, row in zip(prompts, rows, strict=True)]
    margin = sum(good - bad for good, bad in found) / len(found)
    assert margin == pytest.approx(evaluations(directory)[-1]["eval_margin"], abs=1e-4)
    asked = open_rewards(str(directory), device="cpu")(prompts, [row["responses"] for row in rows])
    assert [score for each in asked for score in each] == pytest.approx([s for each in found for s in each], abs=1e-5)
    if not more:
        model: Any = AutoModelForSequenceClassification.from_pretrained(directory).eval()
        kept = [prompts[0].last.to_dict(), {"role": "assistant", "content": rows[0]["responses"][0]}]
        text = tokenizer.apply_chat_template(kept, tokenize=False).rstrip()
        by_hand = model(**tokenizer(text, return_tensors="pt")).logits.item()
        assert found[0][0] == pytest.approx(by_hand, abs=1e-4)
    whole = open_rewards(str(directory), device="cpu", max_length=300)(prompts[:1], [rows[0]["responses"]])
    assert abs(whole[0][0] - found[0][0]) > 1e-3, "it reads all turns where that is asked for"
    for too_many in (1, 513):
        with pytest.raises(ValueError, match=f"cannot score {too_many} tokens; its context is 512"):
            open_reward_model(str(directory), "cpu", too_many)

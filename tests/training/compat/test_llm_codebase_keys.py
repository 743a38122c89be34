"""llm_codebase's arguments and files, and ChatLLaMA's files: read as those systems meant them."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from chatbot.conversation import Conversation
from training.config.compat.llm_codebase import COLUMNS, KEYS, TASKS, translated
from training.config.door import SHORT, compose
from training.config.door import keys as our_keys
from training.data.mixture import parse_mixture
from training.data.reading import read_rows
from training.data.rows import ChatRow, LabelledRow, PairRow, PromptRow, RankedRow, Row
from training.main import cli
from training.methods import METHODS

ASKED = Conversation().add("user", "q")
MODEL = "model_name_or_path=m"


def rows_of(tmp_path: Path, rows: Any, *arguments: str, wanted: tuple[type[Row], ...]) -> list[Row]:
    """What a run of these arguments reads of a file with `rows`."""
    file = tmp_path / "data.json"
    file.write_text(json.dumps(rows))
    data = compose(translated([MODEL, f"data_paths={file}", *arguments])).data
    (source,) = parse_mixture(data.train, data.format, data.columns)
    return [row for _, row in read_rows(source, wanted)]


def test_each_argument_is_a_key_of_ours() -> None:
    ours = {key for method in METHODS for key in our_keys(method)}
    assert set(KEYS.values()) <= ours | set(SHORT)
    assert set(TASKS.values()) <= set(METHODS)


def test_a_command_of_theirs_is_the_same_in_ours() -> None:
    theirs = [
        *("task_type=reward", MODEL, "data_paths=a.json,b.json", "eval_data_paths=c.json", "model_max_length=512"),
        *("pooling_type=average", "calibration_bins=[5,10]", "lm_loss_coeff=0.1", "lm_score_thresh=0.9"),
        *("preference_data_text_name=answers", "preference_data_score_name=marks", "training_type=lora", "bf16=True"),
        *("per_device_train_batch_size=4", "gradient_accumulation_steps=2", "num_train_epochs=1", "learning_rate=1e-5"),
    ]
    ours = [
        *("method=reward", "model=m", "data=a.json,b.json", "data.eval=c.json", "data.max_length=512"),
        *("method.pooling=average", "method.calibration_bins=[5,10]", "method.lm_coeff=0.1", "method.lm_threshold=0.9"),
        *("data.columns={answers: text, marks: score}", "peft=lora", "trainer.precision=bf16"),
        *("trainer.batch_size=4", "trainer.accumulate=2", "trainer.epochs=1", "trainer.lr=1e-5"),
    ]
    assert asdict(compose(translated(theirs))) == asdict(compose(ours))
    assert translated(ours) == ours, "ours come back as they are"
    for key, values in {"only_predict_answer=True": "replies", "only_predict_answer=False": "all"}.items():
        assert compose(translated(["task_type=SFT", MODEL, "data_dir=d", key])).data.train_on.value == values


@pytest.mark.parametrize(
    ("arguments", "row", "wanted", "expected"),
    [
        (
            ("task_type=rm",),
            {"text": ["a", "b"], "score": ["2", "-1"]},
            RankedRow,
            RankedRow(None, ("a", "b"), (2, -1)),
        ),
        (("task_type=rm",), {"texts": ["a", "b"], "scores": [1, 0]}, RankedRow, RankedRow(None, ("a", "b"), (1, 0))),
        (
            ("task_type=offline_RRHF", "preference_data_text_name=my-answers", "preference_data_score_name=marks"),
            {"my-answers": ["q<sep>a", "q<sep>b"], "marks": [1, 2], "text": "of another matter"},
            RankedRow,
            RankedRow(ASKED, ("a", "b"), (1, 2)),
        ),
        (("task_type=sft",), {"prompt": "q", "answer": "a"}, PairRow, PairRow("q", "a")),
        (
            ("task_type=sft", "sft_data_prompt_name=ask", "sft_data_answer_name=reply"),
            {"ask": "q", "reply": "a"},
            PairRow,
            PairRow("q", "a"),
        ),
        (
            ("task_type=classification", "cls_data_text_name=body", "cls_data_label_name=class"),
            {"body": "Buy!", "class": "spam"},
            LabelledRow,
            LabelledRow("Buy!", {"label": "spam"}),
        ),
        (
            ("task_type=multi_objective_classification", "cls_data_text_name=text"),
            {"text": "Buy!", "labels": {"rude": 0, "spam": 1}},
            LabelledRow,
            LabelledRow("Buy!", {"rude": 0, "spam": 1}),
        ),
    ],
)
def test_files_with_columns_by_their_names(
    arguments: tuple[str, ...], row: Any, wanted: type[Row], expected: Row, tmp_path: Path
) -> None:
    assert rows_of(tmp_path, [row, row], *arguments, wanted=(wanted,)) == [expected, expected]


@pytest.mark.parametrize(
    ("name", "rows", "wanted", "expected"),
    [
        ("actor", [{"user_input": "q", "completion": "a"}], ChatRow, ChatRow(ASKED.add("assistant", "a"))),
        ("reward", [{"user_input": "q", "completion": "a", "score": 0.0}], RankedRow, RankedRow(ASKED, ("a",), (0.0,))),
        (
            "reward",
            [{"user_input": "q", "completion": "a", "score": None}],
            RankedRow,
            RankedRow(ASKED, ("a",), (None,)),
        ),
        ("rlhf", [{"user_input": "q"}, {"user_input": "q"}, "q"], PromptRow, PromptRow(ASKED)),
    ],
)
def test_chatllamas_three_files(name: str, rows: Any, wanted: type[Row], expected: Row, tmp_path: Path) -> None:
    file = tmp_path / f"{name}_training_data.json"
    file.write_text(json.dumps(rows))
    (source,) = parse_mixture(str(file))
    assert [row for _, row in read_rows(source, (wanted,))] == [expected] * len(rows)


def test_chatllamas_log_of_conversations_with_columns_renamed(tmp_path: Path) -> None:
    (tmp_path / "conversations_log.json").write_text(
        json.dumps([{"input": "q", "completion": "a", "reward": 1.5, "learn-iter": 3}])
    )
    columns = {"input": "user_input", "reward": "score"}
    (source,) = parse_mixture(str(tmp_path / "conversations_log.json"), columns=columns)
    assert [row for _, row in read_rows(source, (RankedRow,))] == [RankedRow(ASKED, ("a",), (1.5,))]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("task_type=rewrd", "task_type=rewrd is unknown; choose one of: sft, reward, rm"),
        ("only_predict_answer=maybe", "choose one of: true, false"),
        ("sep_token=<s>", "sep_token of llm_codebase has no counterpart: <sep> is understood; leave it out"),
        ("sft_data_prompt_name=my question", "must be letters, digits, _ and -"),
        ("preference_data_txt_name=a", "unknown key 'preference_data_txt_name'"),
    ],
)
def test_mistakes_are_told_in_a_line(argument: str, told: str) -> None:
    result = CliRunner().invoke(cli, ["task_type=reward", MODEL, "data_paths=d", argument])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert (told in result.stderr, result.stderr.count("\n")) == (True, 1)


def test_columns_are_said_in_a_file_too(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text('method: reward\nmodel: m\ndata: {train: d.json, columns: {"my answers": text}}\n')
    assert compose([], file).data.columns == {"my answers": "text"}
    assert sorted(set(COLUMNS.values())) == ["answer", "label", "prompt", "score", "text"]

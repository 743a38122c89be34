"""Perplexity: uniform models, transformers' own loss, a window for every token, and what must not hide in a mean."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from chatbot.conversation import Conversation
from chatbot.engines import LoadOptions
from chatbot.rendering import Renderer
from tools.evaluate import cli
from tools.evaluation.perplexity import open_model, perplexity, score, tokens_of, windows
from training.data.rows import ChatRow, PairRow, TextRow

CPU = LoadOptions(device="cpu")
CHAT = Conversation().add("user", "Hello, who are you?").add("assistant", "A bridge.").add("user", "What?")
ANSWERED = CHAT.add("assistant", "It carries eight lanes.")


@pytest.fixture(scope="module")
def opened(tiny_chat_model: Path) -> tuple[Any, Renderer]:
    return open_model(str(tiny_chat_model), None, CPU)


def transformers_loss(model: Any, ids: list[int], labels: list[int]) -> float:
    """The mean negative log-likelihood, by transformers itself."""
    import torch

    with torch.inference_mode():
        return float(model(torch.tensor([ids]), labels=torch.tensor([labels])).loss)


@given(length=st.integers(2, 200), context=st.integers(2, 50), data=st.data())
def test_every_token_but_the_first_is_scored_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    scored = []
    for begin, first, end in windows(length, context, stride):
        assert 0 <= begin < first <= end <= begin + context
        assert begin == 0 or first - begin >= context - stride, "as much before it as was promised"
        scored += range(first, end)
    assert scored == list(range(1, length))


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(opened: tuple[Any, Renderer]) -> None:
    """Equal logits: 1/V for each token, hence a perplexity of V."""
    import copy

    import torch

    model, renderer = copy.deepcopy(opened[0]), opened[1]
    torch.nn.init.zeros_(model.lm_head.weight)
    rows = [("a:1", TextRow("The bridge was opened in 1932.")), ("a:2", ChatRow(ANSWERED))]
    *_, found = perplexity(model, renderer, rows, 16, 5)
    assert found.value == pytest.approx(model.config.vocab_size, rel=1e-5)
    assert found.num_tokens == sum(len(tokens_of(row, renderer, False, "")[0]) - 1 for _, row in rows)


def test_one_window_is_transformers_own_loss_weighted_by_tokens(opened: tuple[Any, Renderer]) -> None:
    model, renderer = opened
    texts = ["The bridge was opened in 1932, and it carries eight lanes of traffic.", "Grüße aus", "1 + 1 = 2"]
    total, count = 0.0, 0
    for text in texts:
        ids = renderer.plain_ids(text)
        total += transformers_loss(model, ids, ids) * (len(ids) - 1)
        count += len(ids) - 1
    *_, found = perplexity(model, renderer, [("", TextRow(text)) for text in texts], 512, 256)
    assert (found.num_tokens, found.num_rows) == (count, 3)
    assert found.value == pytest.approx(math.exp(total / count), rel=1e-5)


def test_windows_give_each_token_what_stands_before_it_in_its_window(opened: tuple[Any, Renderer]) -> None:
    model, renderer = opened
    ids = renderer.plain_ids("The bridge was opened in 1932, and it carries eight lanes of traffic. Where is it?")
    context, stride = 12, 5
    expected = 0.0
    for t in range(1, len(ids)):
        # The first window that holds token t.
        begin = next(b for b in range(0, len(ids), stride) if t < b + context)
        labels = [-100] * (t - begin) + [ids[t]]
        expected += transformers_loss(model, ids[begin : t + 1], labels)
    nll, num = score(model, ids, [True] * len(ids), context, stride)
    assert (nll, num) == (pytest.approx(expected, rel=1e-5), len(ids) - 1)


def test_replies_alone_after_all_that_stands_before_them(opened: tuple[Any, Renderer]) -> None:
    model, renderer = opened
    rendered = renderer.encode(ANSWERED, add_generation_prompt=False)
    labels = [id_ if on else -100 for id_, on in zip(rendered.ids, rendered.loss_mask, strict=True)]
    prompt, completion = renderer.plain_ids("The bridge"), renderer.plain_ids(" was opened")
    parts = [
        (transformers_loss(model, rendered.ids, labels), sum(rendered.loss_mask)),
        (
            transformers_loss(model, prompt + completion, [-100] * len(prompt) + completion),
            len(completion),
        ),
    ]
    rows = [("", ChatRow(ANSWERED)), ("", PairRow("The bridge", " was opened"))]
    *_, found = perplexity(model, renderer, rows, 512, 256, replies_only=True)
    assert found.num_tokens == sum(num for _, num in parts)
    assert found.nll == pytest.approx(sum(loss * num for loss, num in parts), rel=1e-5)
    with pytest.raises(ValueError, match="a:7: plain text has no replies; leave out --replies-only"):
        list(perplexity(model, renderer, [("a:7", TextRow("x y"))], 512, 256, replies_only=True))


def test_what_is_no_number_is_an_error_and_no_part_of_a_mean(opened: tuple[Any, Renderer]) -> None:
    import copy

    import torch

    model, renderer = copy.deepcopy(opened[0]), opened[1]
    with torch.no_grad():
        model.model.embed_tokens.weight[renderer.plain_ids("1")[0]] = math.nan
    rows = [("a:1", TextRow("Hello")), ("a:2", TextRow("1 + 1 = 2"))]
    with pytest.raises(ValueError, match="a:2: the log-likelihood is nan"):
        list(perplexity(model, renderer, rows, 512, 256))


def test_a_stride_must_leave_something_before_each_token(opened: tuple[Any, Renderer]) -> None:
    for stride in (0, 8, 9):
        with pytest.raises(ValueError, match=rf"stride={stride} must be from 1 to 7"):
            list(perplexity(*opened, [("", TextRow("Hello"))], 8, stride))


def run(*arguments: object) -> Any:
    return CliRunner().invoke(cli, ["ppl", *map(str, arguments), "--device", "cpu"])


def test_the_command_reports_what_it_did(tiny_chat_model: Path, tmp_path: Path, opened: tuple[Any, Renderer]) -> None:
    data = tmp_path / "held-out.jsonl"
    data.write_text("".join(json.dumps({"messages": each.to_dicts()}) + "\n" for each in (ANSWERED, ANSWERED)))
    done = run(tiny_chat_model, data, "--replies-only", "--context", 32, "--out", tmp_path / "report.json")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report == json.loads((tmp_path / "report.json").read_text())
    *_, found = perplexity(*opened, [("", ChatRow(ANSWERED))] * 2, 32, 16, replies_only=True)
    assert report["perplexity"] == pytest.approx(found.value)
    assert (report["rows"], report["tokens"], report["context"], report["stride"]) == (2, found.num_tokens, 32, 16)
    assert report["perplexity"] == pytest.approx(math.exp(report["nll_per_token"]))
    assert "2 rows read" in done.stderr


def test_bad_rows_stop_it_or_are_counted(tiny_chat_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"text": "Hello, who are you?"}\n{"text": 3}\n')
    assert run(tiny_chat_model, data).exit_code == 2
    done = run(tiny_chat_model, data, "--skip-bad-rows")
    report = json.loads(done.stdout)
    assert (report["rows"], sum(report["skipped"].values())) == (1, 1)
    assert "1 left out" in done.stderr


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_scores_as_the_model_that_it_makes(tiny_chat_model: Path, tmp_path: Path) -> None:
    import torch

    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    from tools.merge_lora import merge

    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, lora_alpha=16)
    base = AutoModelForCausalLM.from_pretrained(tiny_chat_model)
    peft.get_peft_model(base, config).save_pretrained(tmp_path / "lora")
    merge(str(tmp_path / "lora"), tmp_path / "merged")
    (tmp_path / "a.txt").write_text("The bridge was opened in 1932, and it carries eight lanes of traffic.")
    values = [
        json.loads(run(model, tmp_path / "a.txt", *more).stdout)["perplexity"]
        for model, more in (
            (tmp_path / "merged", ()),
            (tmp_path / "lora", ()),
            (tiny_chat_model, ("--adapter", tmp_path / "lora")),
            (tiny_chat_model, ()),
        )
    ]
    assert values[:3] == pytest.approx([values[0]] * 3, rel=1e-4)
    assert values[3] != pytest.approx(values[0], rel=0.01)

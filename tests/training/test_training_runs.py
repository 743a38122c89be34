"""Whole runs on tiny models: what they leave, that they go on exactly, and that how rows are batched is no matter."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.torture.resumes import TIMES
from training.config.door import compose
from training.methods import method_run
from training.run_directory import STATE

Run = Callable[..., Path]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """24 short conversations."""
    path = tmp_path / "chats.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(24):
            turns = [("user", f"Add {number} and 1."), ("assistant", f"{number + 1}. " * (number % 5 + 1))]
            file.write(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n")
    return path


@pytest.fixture
def run(tmp_path: Path, tiny_chat_model: Path, data: Path) -> Run:
    """(name of the run, overrides) -> its directory."""

    def start(name: str, *overrides: str) -> Path:
        common = [
            "method=sft",
            f"model={tiny_chat_model}",
            f"data={data}",
            f"data.cache={tmp_path / 'cache'}",
            "data.max_length=64",
            "model.device=cpu",
            "trainer.lr=1e-3",
            "trainer.batch_size=4",
            "trainer.epochs=2",
            f"trainer.output={tmp_path / name}",
        ]
        given = {each.partition("=")[0] for each in overrides}
        config = compose([each for each in common if each.partition("=")[0] not in given] + list(overrides))
        directory: Path = method_run(config.method.name)(config)
        return directory

    return start


def weights(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {key: value for file in sorted(directory.glob("*.safetensors")) for key, value in load_file(file).items()}


def history(directory: Path) -> list[dict[str, Any]]:
    newest = max((directory / "checkpoints").glob(f"*/{STATE}"))
    lines: list[dict[str, Any]] = json.loads(newest.read_text())["log_history"]
    return lines


def test_a_run_leaves_a_model_that_has_learned_and_can_be_loaded(run: Run, tiny_chat_model: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    directory = run("r", "data.eval_fraction=0.25", "trainer.epochs=8", "trainer.log_every=1")
    record = json.loads((directory / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["data"][0]["num_examples"] == 24
    assert record["config"]["trainer"]["lr"] == 1e-3
    losses = [line["eval_loss"] for line in history(directory) if "eval_loss" in line]
    assert len(losses) == 9  # before training, and after each epoch
    assert losses[-1] < 0.8 * losses[0]
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.use_cache
    assert model.config.pad_token_id == AutoModelForCausalLM.from_pretrained(tiny_chat_model).config.pad_token_id
    tokenizer, before = AutoTokenizer.from_pretrained(directory), AutoTokenizer.from_pretrained(tiny_chat_model)
    assert tokenizer.chat_template == before.chat_template
    assert not list(directory.rglob("*.bin"))
    assert not list(directory.rglob("*.pt*"))


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("peft=lora", "peft.dropout=0.2"),
        ("data.packing=true", "trainer.batch_size=2"),
        ("trainer.optimizer=adafactor", "trainer.schedule=linear"),
    ],
    ids=["full", "lora", "packed", "adafactor"],
)
@pytest.mark.parametrize("step", [2, 3])
def test_a_run_that_goes_on_ends_where_an_undisturbed_one_does(run: Run, more: tuple[str, ...], step: int) -> None:
    every = ("trainer.save_every=1", "trainer.keep_checkpoints=99", "trainer.log_every=4", "trainer.max_steps=5", *more)
    whole = run("whole", *every)
    halved = whole.parent / "halved"
    (halved / "checkpoints").mkdir(parents=True)
    shutil.copytree(whole / "checkpoints" / f"step-{step:06d}", halved / "checkpoints" / f"step-{step:06d}")
    shutil.copy(whole / "run.json", halved)
    run("halved", *every)
    first, second = weights(whole), weights(halved)
    assert first.keys() == second.keys()
    assert all(first[key].equal(second[key]) for key in first)
    timeless = [
        [{key: value for key, value in line.items() if not any(word in key for word in TIMES)} for line in each]
        for each in (history(whole), history(halved))
    ]
    curves = [[line for line in lines if "train_loss" not in line] for lines in timeless]
    assert curves[0] == curves[1]


def test_accumulated_batches_are_one_large_batch(run: Run) -> None:
    large = weights(run("large", "trainer.batch_size=8"))
    small = weights(run("small", "trainer.batch_size=1", "trainer.accumulate=8"))
    for key, value in large.items():
        assert float((value - small[key]).abs().max()) < 2e-6, key


def test_packed_rows_train_to_the_same_weights(run: Run) -> None:
    """All examples in one step: how they lie in rows is no matter."""
    one = ("trainer.max_steps=1", "trainer.schedule=constant", "trainer.optimizer=sgd", "trainer.lr=0.1")
    apart = weights(run("apart", "trainer.batch_size=24", *one))
    packed = weights(run("packed", "trainer.batch_size=24", "data.packing=true", "data.max_length=200", *one))
    for key, value in apart.items():
        assert float((value - packed[key]).abs().max()) < 2e-6, key


def test_the_best_weights_are_kept_and_patience_ends(run: Run) -> None:
    directory = run(
        "r",
        "data.eval_fraction=0.25",
        "trainer.keep=best",
        "trainer.early_stop=2",
        "trainer.epochs=60",
        "trainer.lr=0.02",
        "trainer.schedule=constant",
    )
    lines = [line for line in history(directory) if "eval_loss" in line]
    assert lines[-1]["epoch"] < 60
    best = min(lines, key=lambda line: line["eval_loss"])
    assert [line["epoch"] for line in lines[-2:]] == [best["epoch"] + 1, best["epoch"] + 2]
    record = json.loads((directory / "run.json").read_text())
    assert record["model_of_step"] == best["step"]
    kept = weights(directory / "checkpoints" / f"step-{best['step']:06d}")
    assert all(value.equal(kept[key]) for key, value in weights(directory).items())


def test_speakers_folder_names(run: Run) -> None:
    directory = run("r", "trainer.folder_names=epoch_step", "trainer.save_every=4", "trainer.keep_checkpoints=9")
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == ["0", "0_4", "1", "1_8"]


def test_only_the_newest_checkpoints_stay(run: Run) -> None:
    directory = run("r", "trainer.save_every=1", "trainer.keep_checkpoints=3")
    assert sorted(path.name for path in (directory / "checkpoints").iterdir()) == [
        "step-000010",
        "step-000011",
        "step-000012",
    ]


def test_an_adapter_is_saved_alone_and_trained_further(run: Run) -> None:
    first = run("first", "peft=lora", "peft.r=4")
    assert (first / "adapter_config.json").is_file()
    assert not (first / "model.safetensors").exists()
    second = run("second", "peft=lora", f"model={first}")
    # It began from the first one's adapter: rank 4, not the default 16.
    assert json.loads((second / "adapter_config.json").read_text())["r"] == 4
    with pytest.raises(ValueError, match="it is an adapter"):
        run("third", f"model={first}")


@pytest.mark.parametrize("name", ["ia3", "prompt_tuning", "p_tuning", "prefix_tuning"])
def test_other_adapters_by_name(run: Run, name: str) -> None:
    options = {} if name == "ia3" else {"num_virtual_tokens": 3}
    more = ["peft.options.num_virtual_tokens=3"] if options else []
    directory = run("r", f"peft={name}", *more, "trainer.lr=0.05", "trainer.epochs=6", "data.eval_fraction=0.25")
    assert json.loads((directory / "adapter_config.json").read_text())["peft_type"] == name.upper()
    losses = [line["eval_loss"] for line in history(directory) if "eval_loss" in line]
    assert losses[-1] < losses[0]


def test_from_scratch_only_the_shape_is_taken(run: Run, tiny_chat_model: Path) -> None:
    more = ("model.from_scratch=true", "model.config={num_hidden_layers: 1}", "trainer.max_steps=1", "trainer.lr=0")
    directory = run("r", *more)
    made, before = weights(directory), weights(tiny_chat_model)
    assert not any("layers.1." in key for key in made)
    key = "model.embed_tokens.weight"
    assert made[key].shape == before[key].shape
    assert not made[key].equal(before[key])


def test_next_token_prediction_on_text(run: Run, tmp_path: Path) -> None:
    text = tmp_path / "book.txt"
    text.write_text("The bridge was opened in 1932, and it carries eight lanes of traffic. " * 40)
    for number, more in enumerate((("data.packing=true",), ("method.sampling=windows", "method.length=16"))):
        directory = run(f"r{number}", "method=ntp", f"data={text}", *more, "trainer.epochs=4", "trainer.log_every=1")
        losses = [line["loss"] for line in history(directory) if "loss" in line]
        assert losses[-1] < losses[0]
    assert len(losses) == 16  # 16 windows in batches of 4, four times


@pytest.mark.parametrize("bidirectional", ["false", "true"])
def test_prefix_language_modelling(run: Run, bidirectional: str) -> None:
    directory = run("r", "method=prefix_lm", f"method.bidirectional={bidirectional}", "trainer.log_every=1")
    losses = [line["loss"] for line in history(directory) if "loss" in line]
    assert losses[-1] < losses[0]


def test_a_run_with_other_settings_is_not_gone_on_with(run: Run) -> None:
    run("r", "trainer.max_steps=1")
    with pytest.raises(ValueError, match=r"trainer\.lr=0\.001, now it is 0\.01"):
        run("r", "trainer.max_steps=1", "trainer.lr=0.01")
    with pytest.raises(ValueError, match=r"trainer\.overwrite"):
        run("r", "trainer.max_steps=1", "trainer.resume=never")
    run("r", "trainer.max_steps=2", "trainer.resume=never", "trainer.overwrite=true")


def test_a_finished_run_is_left_as_it_is(run: Run) -> None:
    directory = run("r", "trainer.max_steps=2")
    before = weights(directory)
    assert run("r", "trainer.max_steps=2") == directory
    assert all(value.equal(before[key]) for key, value in weights(directory).items())


def test_what_a_run_that_was_killed_at_its_beginning_leaves_is_no_hindrance(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    for name in (".run.json.x1y2.tmp", "train.log", "train.rank1.log"):
        (tmp_path / "r" / name).write_text("{")
    directory = run("r", "trainer.max_steps=1")
    assert json.loads((directory / "run.json").read_text())["status"] == "finished"


@pytest.mark.parametrize("key", ["data", "data.eval"])
def test_data_that_is_not_there_is_told_before_a_model_is_looked_for(run: Run, tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=r"missing\.jsonl: no such file or folder"):
        run("r", f"{key}={tmp_path / 'missing.jsonl'}", f"model={tmp_path / 'missing-model'}")
    assert not (tmp_path / "r").exists()


def test_a_folder_of_something_else_is_not_touched(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.txt").write_text("years of work")
    for more in ((), ("trainer.resume=never", "trainer.overwrite=true")):
        with pytest.raises(ValueError, match="no run's directory"):
            run("r", *more)
    assert (tmp_path / "r" / "thesis.txt").read_text() == "years of work"


def test_killed_runs_end_as_if_nobody_had_touched_them() -> None:
    """SIGKILL at random moments: whole model, LoRA, packed, two processes, pipelines; and all train as one does."""
    command = [sys.executable, "-m", "tools.torture.resumes", "--kills", "1", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("1/1 identical") == 7
    apart = [float(number) for number in re.findall(r"trained weights (\S+) from those", done.stdout)]
    assert len(apart) == 4
    assert max(apart) < 1e-5

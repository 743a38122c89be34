"""tools/improve.py from end to end with tiny models: a better model is promoted and the bot runs it, one made worse on
purpose is refused, rollback goes back, and a run that is over is not done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from chatbot.bot import cli as chat
from chatbot.prompting import SPOTLIGHT, with_passages
from common.default_model import pointer, read_default
from retrieval.build import build_index
from retrieval.types import Passage
from tools.improve import cli

# peft 0.21 asks transformers 5.23 for a property by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")

REFUSAL = "The documents do not say."
PLACES = ("bridge", "castle", "mill", "harbour", "tower", "abbey", "market", "garden")
# Deterministic, and cheap: a tiny model learns one sentence by heart in so many steps.
LEARN = ("trainer.max_steps=40", "trainer.lr=2e-2", "trainer.batch_size=4", "trainer.samples=0", "model.device=cpu")
GATE = "refusals_of_unanswerable: {gain: 0.2, loss: 0.1}\n"

Improve = Callable[..., Result]


def questions(folder: Path, reply: Callable[[str], str]) -> Path:
    """Training rows with that reply to each question, in the bot's layout, and questions that nothing answers."""
    folder.mkdir()
    passage = Passage("p", "The bridge was built in 1932.", "Bridge", "docs/bridge.md", 1, 1)
    with open(folder / "train.jsonl", "w") as file:
        for place in PLACES:
            turns = [
                {"role": "system", "content": SPOTLIGHT},
                {"role": "user", "content": with_passages(f"Who built the {place}?", [passage])},
                {"role": "assistant", "content": reply(place)},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    rows = [{"question": f"Who was king in {year}?"} for year in range(1600, 1612)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def home(tmp_path: Path, tiny_chat_model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PARLEY_HOME of its own, whose first default model is a tiny one."""
    monkeypatch.setenv("PARLEY_HOME", str(tmp_path))
    shutil.copytree(tiny_chat_model, tmp_path / "models" / "smollm2-135m")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bridge.md").write_text("# Bridge\n\nThe bridge was built in 1932.\n")
    build_index([tmp_path / "docs"], tmp_path / "index", "hash")
    (tmp_path / "gate.yaml").write_text(GATE)
    return tmp_path


@pytest.fixture
def improve(home: Path) -> Improve:
    def run(work: str, questions: Path, *more: object) -> Result:
        fixed = [
            "--index",
            home / "index",
            "--gate",
            home / "gate.yaml",
            "--work",
            home / work,
            "--questions",
            questions,
        ]
        bot = ["--engine", "transformers", "--no-moderation", "--floor", "0", "--max-tokens", "40"]
        return CliRunner().invoke(cli, [str(each) for each in [*fixed, *bot, *more, *LEARN]])

    return run


def steps(done: Result, ending: str) -> list[str]:
    """The steps of which it is said that they were done before, or that they are at work."""
    return [line.split(":")[0] for line in done.stderr.splitlines() if ending in line]


def test_better_is_promoted_worse_is_refused_and_rollback_goes_back(home: Path, improve: Improve) -> None:
    learned = questions(home / "better", lambda _: REFUSAL)
    done = improve("one", learned)
    assert done.exit_code == 0, done.output
    assert "promoted: the default model is smollm2-135m-improved-" in done.stdout
    promoted = read_default()
    assert promoted is not None
    report = json.loads((home / "one" / "report" / "report.json").read_text())
    assert report["figures"]["refusals_of_unanswerable"]["new"] == 1
    assert len(report["changes"]["better"]) == 12
    assert REFUSAL in (home / "one" / "report" / "report.html").read_text()

    # The same again does nothing; another question is asked of both models, and nothing is trained for it.
    again = improve("one", learned)
    assert again.exit_code == 0, again.output
    assert steps(again, "done before") == ["rows", "old", "train", "model", "new"]
    assert f"promoted before: {promoted.model}" in again.stdout
    with open(learned / "test.jsonl", "a") as file:
        file.write('{"question": "Who was queen?"}\n')
    assert steps(improve("one", learned), "at work") == ["rows", "old", "new"]

    shutil.rmtree(home / "one")  # what is promoted does not need it
    asked = ["--index", str(home / "index"), "--engine", "transformers", "--no-moderation", "--floor", "0"]
    said = CliRunner().invoke(chat, [*asked, "--max-tokens", "40"], input="Who was king in 1700?\n")
    assert REFUSAL in said.stdout
    assert f"running {promoted.model}" in said.stderr

    garbled = questions(home / "worse", lambda place: f"{place} {place} 17 {place[::-1]}.")
    worse = improve("two", garbled)
    assert worse.exit_code == 3, worse.output
    assert "BROKEN  refusals_of_unanswerable loss 0.1" in worse.stdout
    assert f"refused: {promoted.model} stays" in worse.stdout
    assert read_default() == promoted

    back = CliRunner().invoke(cli, ["--rollback"])
    assert back.stdout == f"the default model was {promoted.model}, and is smollm2-135m now\n"
    assert json.loads(pointer().read_text())["model"] == "smollm2-135m"


def test_preferences_from_feedback_alone(home: Path, improve: Improve) -> None:
    asked = [{"role": "user", "content": "Who built it?"}]
    line = {"rating": "edit", "messages": asked, "prompt_messages": asked, "prompt": "...", "finish_reason": "stop"}
    log = home / "log.jsonl"
    log.write_text(json.dumps({**line, "answer": "Me.", "edit": REFUSAL, "replaced": None}) + "\n")
    learned = questions(home / "q", lambda _: REFUSAL)
    more = ["--method", "dpo", "--feedback", log, "--no-promote", "trainer.max_steps=1"]
    done = improve("one", learned, *more)
    assert done.exit_code == 3, done.output  # a step changes nothing that is measured
    assert "1 rows to learn from" in done.stderr
    assert read_default() is None


MISTAKES = [
    ((), ("--index is missing",)),
    (("--index", "{}/index"), ("--work is missing",)),
    (("--index", "{}/index", "--work", "{}/w", "model=x"), ("model= is set by this command itself",)),
    (("--index", "{}/index", "--work", "{}/w", "trainer.lr"), ("'trainer.lr' is not KEY=VALUE",)),
    (("--index", "{}/index", "--work", "{}/w", "--method", "dpo"), ("--feedback",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/q", "trainer.lrr=1"), ("did you mean trainer.lr",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/none"), ("none/test.jsonl",)),
    (("--index", "{}/none", "--work", "{}/w", "--questions", "{}/q"), ("none",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/q", "--model", "{}/none"), ("none",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/q", "--gate", "{}/g.yaml"), ("g.yaml:1", "f9")),
    (("--index", "{}/index", "--work", "{}/g.yaml"), ("g.yaml",)),
    (("--index", "{}/index", "--work", "{}/w"), ("no question was kept",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/q", "--adapter", "{}/a"), ("merge the two first",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/q", "--engine", "openai"), ("runs on a service",)),
    (("--index", "{}/index", "--work", "{}/w", "--questions", "{}/q", "--model", "{}/q"), ("no safetensors",)),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES)
def test_a_mistake_is_one_line_before_anything_is_trained(
    home: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    questions(home / "q", lambda _: REFUSAL)
    (home / "g.yaml").write_text("f9: {gain: 0}\n")
    done = CliRunner().invoke(cli, [each.replace("{}", str(home)) for each in arguments])
    assert done.exit_code == 2
    assert done.stderr.count("error: ") + done.stderr.count("Error: ") == 1
    for word in words:
        assert word in done.stderr
    assert not (home / "w" / "train").exists()

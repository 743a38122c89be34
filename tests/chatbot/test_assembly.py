"""From flags to a bot: several indexes, filters, neighbours, and what is refused before anything slow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from chatbot.assembly import open_bot, open_index
from chatbot.bot import cli
from chatbot.conversation import Conversation
from chatbot.core import NOT_IN_DOCUMENTS
from chatbot.options import bot_options, check_options
from retrieval.index.manifest import IndexSettings
from retrieval.passages import SplitSettings
from retrieval.retriever import Retriever
from retrieval.several import SeveralIndexes
from retrieval.writing.building import build_index

SENTENCES = IndexSettings(split=SplitSettings(window=1, stride=1, min_chars=0))


def options(*arguments: str | Path) -> dict[str, Any]:
    """What the flags of bot.py and server.py stand for."""
    found: dict[str, Any] = {}

    @bot_options
    def command(**values: Any) -> None:
        check_options(values)
        found.update(values)

    click.command()(command).main([str(each) for each in arguments], standalone_mode=False)
    return found


@pytest.fixture(scope="module")
def castles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two records of castles, with a year each, and a floor that everything reaches."""
    folder = tmp_path_factory.mktemp("castles")
    text = "The castle {} has a tower. The castle {} has a gate. The castle {} has a well."
    rows = [
        {"id": f"c{year}", "title": "Castles", "text": text.format(*[f"of{year}"] * 3), "year": year}
        for year in (1500, 1600)
    ]
    (folder / "castles.jsonl").write_text("\n".join(map(json.dumps, rows)))
    build_index([folder / "castles.jsonl"], folder / "index", "hash", SENTENCES, floor=0.05)
    return folder / "index"


@pytest.fixture(scope="module")
def gardens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One text about gardens, with a floor that only near questions reach."""
    folder = tmp_path_factory.mktemp("gardens")
    (folder / "gardens.txt").write_text("A garden grows beans and roses.")
    build_index([folder / "gardens.txt"], folder / "index", "hash", floor=0.4)
    return folder / "index"


def ask(question: str, *arguments: str | Path) -> tuple[str, list[str]]:
    """The answer of the echo engine, and the texts that it was shown."""
    bot = open_bot(options("--engine", "echo", *arguments))
    reply = bot.reply(Conversation().add("user", question))
    return reply.text, [hit.passage.text for hit in reply.sources]


# Flags --------------------------------------------------------------------------------------------------------------


def test_an_index_turns_retrieval_on_and_none_leaves_it_off(castles: Path) -> None:
    assert options("--index", castles)["retrieval"] is True
    assert options()["retrieval"] is False
    assert options("--index", castles, "--no-retrieval")["retrieval"] is False
    assert options("--retrieval")["index"][0].endswith("sample")


def test_one_index_is_opened_as_it_is_and_two_as_one(castles: Path, gardens: Path) -> None:
    assert isinstance(open_index(options("--index", castles)), Retriever)
    both = open_index(options("--index", castles, "--index", gardens))
    assert isinstance(both, SeveralIndexes)
    assert str(both) == "2 documents (6 passages) and 1 documents (1 passages)"
    assert both.floor == 0.5


# Answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "word"), [("A garden grows beans?", "garden"), ("Which castle of1600 has a gate?", "castle of1600")]
)
def test_of_two_indexes_the_one_that_knows_answers(castles: Path, gardens: Path, question: str, word: str) -> None:
    _, texts = ask(question, "--index", castles, "--index", gardens)
    assert word in texts[0]


def test_each_index_keeps_its_own_floor(castles: Path, gardens: Path) -> None:
    unknown = "Who discovered penicillin?"
    assert ask(unknown, "--index", gardens)[0] == NOT_IN_DOCUMENTS
    assert ask(unknown, "--index", gardens, "--floor", "0")[0] != NOT_IN_DOCUMENTS
    assert ask("A garden grows beans and roses?", "--index", gardens, "--floor", "1.1")[0] == NOT_IN_DOCUMENTS


def test_where_limits_the_documents(castles: Path) -> None:
    _, texts = ask("Which castle has a tower?", "--index", castles, "--k", "6", "--where", "year<1550")
    assert len(texts) == 3
    assert all("of1500" in text for text in texts)


def test_where_limits_every_index(castles: Path, gardens: Path) -> None:
    flags = ["--index", castles, "--index", gardens, "--where", "source=*gardens.txt", "--floor", "0"]
    assert ask("Which castle has a tower?", *flags)[1] == ["A garden grows beans and roses."]


def test_expand_shows_neighbours_as_one_passage(castles: Path) -> None:
    question = "Which castle of1500 has a gate?"
    (alone,) = ask(question, "--index", castles, "--k", "1")[1]
    assert alone == "The castle of1500 has a gate."
    (whole,) = ask(question, "--index", castles, "--k", "1", "--expand", "1")[1]
    assert whole == "The castle of1500 has a tower. The castle of1500 has a gate. The castle of1500 has a well."


# What is refused ----------------------------------------------------------------------------------------------------

REMOTE = "qdrant+http://localhost:1/docs"


@pytest.mark.parametrize("flags", [["--expand", "1"], ["--rerank", "./nowhere"]])
@pytest.mark.parametrize("indexes", [[REMOTE], ["./no-index", REMOTE]])
def test_an_index_on_a_server_takes_no_neighbours_and_no_reranker(indexes: list[str], flags: list[str]) -> None:
    """Said before any index or encoder is opened."""
    named = [part for index in indexes for part in ("--index", index)]
    with pytest.raises(ValueError, match="--expand and --rerank work on an index of your own, not on Qdrant"):
        open_index(options(*named, "--encoder", "./nowhere", *flags))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--index", "{tmp}/none"], "there is no index in"),
        (["--index", "{castles}", "--index", "{tmp}/none"], "there is no index in"),
        (["--index", "qdrant+nonsense"], "is no remote index; write qdrant+http://HOST:6333/COLLECTION"),
        (["--index", "{castles}", "--where", "nonsense"], "'nonsense' is no condition"),
        (["--index", "{castles}", "--encoder", "./nowhere"], "model directory './nowhere' does not exist"),
        (["--index", "{castles}", "--rerank", "./nowhere"], "model directory './nowhere' does not exist"),
        (["--index", "{castles}", "--expand", "-1"], "Invalid value for '--expand'"),
        (["--index", "{castles}", "--k", "0"], "Invalid value for '--k'"),
        (["--index", "{castles}", "--layout", "x"], "unknown layout 'x'; choose one of"),
    ],
)
def test_a_mistake_is_one_line(castles: Path, tmp_path: Path, flags: list[str], message: str) -> None:
    filled = [flag.format(castles=castles, tmp=tmp_path) for flag in flags]
    result = CliRunner().invoke(cli, ["--engine", "echo", *filled], input="Which castle?\n")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1

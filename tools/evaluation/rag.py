"""Answers from documents: what was found, how right the answers are, whether their citations hold, what was refused.

The command `rag` of tools/evaluate.py. It drives the same bot as the shell, one question at a time, each on its own.
"""

from __future__ import annotations

import re
import string
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from chatbot.attribution.attributing import Attributor, says_unknown
from chatbot.attribution.sentences import spans, without_citations
from chatbot.conversation import Conversation
from chatbot.core import Bot, Done, Reply
from chatbot.options import bot_options, check_options
from common.files import atomic_write, check_can_write, expand, json_text, read_json, write_json
from retrieval.hiding import without
from tools.evaluation.asked import Asked, read_asked
from tools.evaluation.rag_figures import figures
from tools.evaluation.rag_page import as_html

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SECONDS = 5.0  # between two lines of progress
_ARTICLES = re.compile(r"\b(a|an|the)\b")


@click.command("rag", context_settings={"show_default": True})
@click.argument("searched", metavar="INDEX")
@click.argument("questions", type=_FILE)
@bot_options
@click.option("--report", type=_FOLDER, required=True, metavar="DIR", help="Write report.json and report.html there.")
@click.option("--against", type=_FILE, metavar="JSON", help="The report.json of another run, shown beside this one.")
def rag(searched: str, questions: Path, report: Path, against: Path | None, **options: Any) -> None:
    """Answer QUESTIONS from INDEX as the shell does, and measure the answers. QUESTIONS: JSON Lines of `question` and
    `answer` (text, or a list of accepted ones); without an answer it is one that the documents do not answer. As
    tools/make_qa.py writes them they also have `passage`, or `without`: passages that the search leaves out."""
    from chatbot.assembly import open_bot

    target = expand(report)
    check_can_write(target / "report.json")
    asked = read_asked(expand(questions))
    other = read_report(expand(against)) if against else None
    options["index"] = (searched, *options["index"])
    check_options(options)
    rows = list(_told(answered(open_bot(options), asked), len(asked)))
    found = {"figures": figures(rows), "index": searched, "questions": str(questions), "model": options["model"]}
    written = found | {"rows": rows}
    with atomic_write(target / "report.html") as file:
        file.write(as_html(written, other))
    write_json(target / "report.json", written)
    click.echo(json_text(found), nl=False)


def read_report(path: Path) -> dict[str, Any]:
    """A report.json that an earlier run wrote. Raises ValueError for another file."""
    report = read_json(path)
    if not isinstance(report, dict) or not {"figures", "rows"} <= set(report):
        raise ValueError(f"{path}: is no report of this command; name its report.json")
    return report


def answered(bot: Bot, asked: Iterable[Asked]) -> Iterator[dict[str, Any]]:
    """A row of the report for each question."""
    for each in asked:
        begun = time.perf_counter()
        asked_bot = bot
        if bot.retriever is not None and each.without:
            asked_bot = replace(bot, retriever=without(bot.retriever, each.without))
        turn = asked_bot.prepare(Conversation().add("user", each.question))
        reply = next(event.reply for event in bot.stream(turn) if isinstance(event, Done))
        seconds = time.perf_counter() - begun
        refused = turn.answer is not None or is_refusal(reply.text)
        yield judged(each.question, each.answers, reply, refused, seconds, each.passage)


def judged(
    question: str, answers: Sequence[str], reply: Reply, refused: bool, seconds: float, passage: str | None = None
) -> dict[str, Any]:
    """What there is to say of one reply, as JSON values. Its sentences are compared with its sources whether or not the
    bot did so; what it cites is no part of its words. `passage`: the id of the one that answers, where it is known."""
    passages = [hit.passage for hit in reply.sources]
    sentences = Attributor(passages).attribute(reply.text)
    cited = [(number in each.passages) for each in sentences for number in each.cited]
    bare = without_citations(reply.text)
    text = normalized(bare)
    return {
        "question": question,
        "answers": list(answers),
        "reply": reply.text,
        "found": any(holds(normalized(each.text), answers) for each in passages),
        "found_passage": None if passage is None else any(each.id == passage for each in passages),
        "exact": any(text == normalized(answer) for answer in answers),
        "f1": max((f1(bare, answer) for answer in answers), default=0.0),
        "contained": holds(text, answers),
        "refused": refused,
        "flagged": any(verdict.flagged for verdict in reply.verdicts.values()),
        "sentences": len(sentences),
        "supported": sum(each.supported for each in sentences),
        "wrong_source": sum(each.supported and bool(each.cited) and not _rightly(each) for each in sentences),
        "rightly_cited": sum(_rightly(each) for each in sentences),
        "citations": len(cited),
        "right_citations": sum(cited),
        "unsupported": [{"text": each.text, "reason": each.reason} for each in sentences if not each.supported],
        "sources": [passage.location for passage in passages],
        "seconds": round(seconds, 4),
    }


def _rightly(each: Any) -> bool:
    return any(number in each.passages for number in each.cited)


def is_refusal(text: str) -> bool:
    """Whether every sentence of an answer says that something is not known (in English)."""
    sentences = [text[start:end] for start, end in spans(text)]
    return all(says_unknown(each) for each in sentences)


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and extra space (SQuAD 1.1, Rajpurkar et al. 2016)."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(_ARTICLES.sub(" ", bare).split())


def f1(reply: str, answer: str) -> float:
    """The harmonic mean of precision and recall of the normalized words, 0 to 1 (SQuAD 1.1)."""
    ours, theirs = normalized(reply).split(), normalized(answer).split()
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def holds(text: str, answers: Sequence[str]) -> bool:
    """Whether one of the answers, normalized, is a run of whole words of `text`, which is normalized already."""
    return any(f" {normalized(answer)} " in f" {text} " for answer in answers)


def _told(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """The rows as they come; where they take long, a line now and then says how far it is."""
    told = time.monotonic()
    for number, row in enumerate(rows, start=1):
        if (now := time.monotonic()) - told > _SECONDS:
            told = now
            click.echo(f"{number:,} of {total:,} questions", err=True)
        yield row

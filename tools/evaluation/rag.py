"""Answers from documents: what was found, how right the answers are, whether their citations hold, what was refused.

The command `rag` of tools/evaluate.py. It drives the same bot as the shell, one question at a time, each on its own.
"""

from __future__ import annotations

import html
import json
import re
import string
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from tools.evaluation.statistics import wilson

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False)
_SECONDS = 5.0  # between two lines of progress
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# What a figure is the share of: (its name, the field of a row, which rows count).
_RATES = (
    ("retrieval_recall", "found", "answerable"),
    ("passage_recall", "found_passage", "with_passage"),
    ("exact_match", "exact", "answerable"),
    ("answer_contained", "contained", "answerable"),
    ("false_refusals", "refused", "answerable"),
    ("refusals_of_unanswerable", "refused", "unanswerable"),
    ("flagged_by_moderation", "flagged", "all"),
)


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
    asked = read_questions(expand(questions))
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


def read_questions(path: Path) -> list[dict[str, Any]]:
    """[{question, answers, passage, without}] of JSON Lines; the id of the passage that answers it, or None, and the
    ids of those that a search is to leave out. Raises ValueError, which names the line, for one that is no question."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else None
        except ValueError:
            raise ValueError(f"{path}:{number}: not a line of JSON") from None
        if row is None:
            continue
        answers = (row.get("answers") or row.get("answer") or []) if isinstance(row, dict) else None
        answers = [answers] if isinstance(answers, str) else answers
        if answers is None or not isinstance(row.get("question"), str) or not _are_texts(answers):
            raise ValueError(f"{path}:{number}: needs `question`, a text, and `answer`, a text or a list of texts")
        passage, without = row.get("passage"), row.get("without") or []
        if not isinstance(passage, str | None) or not _are_texts(without):
            raise ValueError(f"{path}:{number}: `passage` must be a text, `without` a list of texts: ids of passages")
        found.append({"question": row["question"], "answers": answers, "passage": passage, "without": without})
    if not found:
        raise ValueError(f"{path}: holds no question")
    return found


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def read_report(path: Path) -> dict[str, Any]:
    """A report.json that an earlier run wrote. Raises ValueError for another file."""
    report = read_json(path)
    if not isinstance(report, dict) or not {"figures", "rows"} <= set(report):
        raise ValueError(f"{path}: is no report of this command; name its report.json")
    return report


def answered(bot: Bot, asked: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row of the report for each question."""
    for each in asked:
        begun = time.perf_counter()
        asked_bot = bot
        if bot.retriever is not None and each.get("without"):
            asked_bot = replace(bot, retriever=without(bot.retriever, each["without"]))
        turn = asked_bot.prepare(Conversation().add("user", each["question"]))
        reply = next(event.reply for event in bot.stream(turn) if isinstance(event, Done))
        seconds = time.perf_counter() - begun
        refused = turn.answer is not None or is_refusal(reply.text)
        yield judged(each["question"], each["answers"], reply, refused, seconds, each.get("passage"))


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


def is_right(row: Mapping[str, Any]) -> bool:
    """Whether a reply is right: it holds an accepted answer; for an unanswerable question, it says so."""
    return bool(row["contained"] if row["answers"] else row["refused"])


def figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The shares over all rows, each with its number and 95 % interval (Wilson); None where nothing counts."""
    which = {
        "all": list(rows),
        "answerable": [row for row in rows if row["answers"]],
        "unanswerable": [row for row in rows if not row["answers"]],
        "with_passage": [row for row in rows if row.get("found_passage") is not None],
    }
    found: dict[str, Any] = {f"questions_{name}": len(each) for name, each in which.items()}
    for name, field, counted in _RATES:
        found |= _rate(name, sum(bool(row[field]) for row in which[counted]), len(which[counted]))
    answerable = which["answerable"]
    found["f1"] = sum(row["f1"] for row in answerable) / len(answerable) if answerable else None

    def total(field: str) -> int:
        return sum(row[field] for row in rows)

    found |= _rate("sentences_supported", total("supported"), total("sentences"))
    found |= _rate("sentences_citing_a_wrong_source", total("wrong_source"), total("sentences"))
    found |= _rate("citation_precision", total("right_citations"), total("citations"))
    found |= _rate("citation_recall", total("rightly_cited"), total("sentences"))
    seconds = sorted(row["seconds"] for row in rows)
    found["median_seconds"] = seconds[len(seconds) // 2]
    found["p95_seconds"] = seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))]
    return found


def _rate(name: str, right: int, total: int) -> dict[str, Any]:
    interval = wilson(right, total)
    return {name: right / total if total else None, f"{name}_ci": list(interval) if interval else None}


def as_html(report: Mapping[str, Any], other: Mapping[str, Any] | None = None) -> str:
    """The report as one page: figures, then every question; beside those of another run where there is one. Questions
    that this run answers and the other does not, or the other way round, come first."""
    theirs = {row["question"]: row for row in other["rows"]} if other else {}
    rows = sorted(report["rows"], key=lambda row: not _differs(row, theirs.get(row["question"])))
    shown = [name for name in report["figures"] if not name.endswith("_ci")]
    table = "".join(
        f"<tr><th>{name.replace('_', ' ')}</th><td>{_number(report['figures'][name])}</td>"
        + (f"<td>{_number(other['figures'].get(name))}</td>" if other else "")
        + "</tr>"
        for name in shown
    )
    heads = "".join(f"<th>{each}</th>" for each in ("question", "accepted", "reply", *(["other run"] if other else [])))
    body = "".join(_html_row(row, theirs.get(row["question"]), bool(other)) for row in rows)
    style = "body{font:15px system-ui;margin:2em}td,th{padding:.3em .6em;text-align:left;vertical-align:top}"
    style += "tr:nth-child(even){background:#8881}.no{color:#b3261e}small{display:block;color:#777}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Answers</title><style>{style}</style>'
        f"<h1>Answers from {html.escape(str(report['index']))}</h1><table>{table}</table>"
        f"<table><tr>{heads}</tr>{body}</table></html>\n"
    )


def _differs(row: Mapping[str, Any], other: Mapping[str, Any] | None) -> bool:
    return other is not None and (row["contained"], row["refused"]) != (other["contained"], other["refused"])


def _html_row(row: Mapping[str, Any], other: Mapping[str, Any] | None, beside: bool) -> str:
    cells = [html.escape(row["question"]), html.escape("; ".join(row["answers"]) or "none"), _html_reply(row)]
    if beside:
        cells.append(_html_reply(other) if other else "")
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _html_reply(row: Mapping[str, Any]) -> str:
    notes = [
        f"{row['supported']} of {row['sentences']} sentences supported",
        f"{row['seconds']:.2f} s",
        *row["sources"],
    ]
    notes += [f"{each['text']} ({each['reason']})" for each in row["unsupported"]]
    small = "".join(f"<small>{html.escape(note)}</small>" for note in notes)
    return f'<span class="{"yes" if is_right(row) else "no"}">{html.escape(row["reply"])}</span>{small}'


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _told(rows: Iterable[dict[str, Any]], total: int) -> Iterator[dict[str, Any]]:
    """The rows as they come; where they take long, a line now and then says how far it is."""
    told = time.monotonic()
    for number, row in enumerate(rows, start=1):
        if (now := time.monotonic()) - told > _SECONDS:
            told = now
            click.echo(f"{number:,} of {total:,} questions", err=True)
        yield row

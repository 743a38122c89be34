"""Make questions from the documents of an index: a private test set, and training rows to answer from passages.

Run: python tools/make_qa.py indexes/sample --out questions --num 100 --model smollm2-135m
     python tools/make_qa.py INDEX --out questions --questions mine.jsonl

A chat model reads passages and asks; what it asks is kept where the search finds the passage again and the answer
stands in it. Writes FOLDER/test.jsonl (for tools/evaluate.py rag), train.jsonl (for training/main.py method=sft) and
questions.jsonl (all that were kept, to read). Run again after a kill, it asks only for what is missing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from chatbot.options import DEFAULT_MODEL, FILE
from common.cli import OneLineCommand
from common.files import check_can_write, expand, json_text, sha256_of, write_json
from common.locks import exclusive
from common.models import KNOWN_MODELS
from tools.evaluation.asked import read_asked
from tools.generating.options import generating_options, open_generator, settings, show_plan, show_tally
from tools.generating.writing import write_rows
from tools.questions.asking import Asking, generated
from tools.questions.given import placed, round_trip
from tools.questions.library import Library
from tools.questions.rows import Making, evaluation_rows, training_rows
from tools.questions.splitting import Split, split
from tools.questions.types import Question, document_of

_FOLDER = click.Path(path_type=Path, file_okay=False)
_MAKING = ("k", "style", "order", "without_gold", "unanswerable", "system")
_K = KNOWN_MODELS[DEFAULT_MODEL].num_passages


@click.command(cls=OneLineCommand, context_settings=settings(max_tokens=96, seed=0))
@click.argument("index", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="Folder to write test.jsonl and train.jsonl to.")
@click.option("--num", type=click.IntRange(min=0), help="Questions to make.  [default: 100; 0 with --questions]")
@click.option("--questions", type=FILE, help="Your own: JSON Lines of `question` and `answer`.")
@click.option("--test-share", type=click.FloatRange(0, 1), default=0.3, help="Of the questions, held out for the test.")
@click.option("--unanswerable", type=click.FloatRange(0, 1), default=0.25, help="Of the test, made unanswerable.")
@click.option("--without-gold", type=click.FloatRange(0, 0.5), default=0.1, help="Of the training rows, unanswerable.")
@click.option("--k", type=click.IntRange(min=1), default=_K, help="Passages that a training prompt shows: the bot's k.")
@click.option("--order", type=click.Choice(("random", "found")), default="random", help="Of the passages shown.")
@click.option(
    "--style", type=click.Choice(("short", "sentence")), default="short", help="Answers: bare, or a sentence."
)
@click.option("--system", default="", help="The bot's own system prompt.")
@click.option("--among", type=click.IntRange(min=1), default=10, help="Hits among which a question finds its passage.")
@click.option("--min-chars", type=click.IntRange(min=1), default=150, help="Shortest passage to ask about.")
@click.option("--rounds", type=click.IntRange(min=1), default=1, help="How often a passage is asked about, at most.")
@click.option("--picked/--free", default=None, help="Ask for a name or number.  [default: for smollm2-135m]")
@generating_options
def cli(
    index: Path,
    out: Path,
    num: int | None,
    questions: Path | None,
    test_share: float,
    among: int,
    min_chars: int,
    rounds: int,
    picked: bool | None,
    **options: Any,
) -> None:
    """Make test and training questions from the documents of INDEX."""
    seed = options["seed"] or 0
    making = Making(**{name: options[name] for name in _MAKING}, seed=seed)
    given = read_asked(expand(questions)) if questions else []
    wanted = (0 if given else 100) if num is None else num
    library, dropped = Library.open(expand(index)), Counter[str]()
    places = library.drawn(min_chars, seed, dropped) if wanted else []
    asking = Asking(options["model"] == DEFAULT_MODEL if picked is None else picked, seed)
    generator = open_generator(options)
    if options["dry_run"]:
        requests = filter(None, (asking.request(library.passage(place), 0) for place in places))
        show_plan(options, 2 * min(wanted, len(places)), next(requests, (None,))[0], True)
        return
    folder = expand(out)
    check_can_write(folder / "test.jsonl")
    with exclusive(folder / ".lock", f"writing {folder}"):
        outside = [each.question for each in given if not each.answers]
        kept = _kept(placed([each for each in given if each.answers], library, among), len(given), dropped)
        if wanted:
            asked = (
                each if isinstance(each, str) else round_trip(each, library, among)
                for each in generated(generator, library, places, rounds, asking)
            )
            made = _kept(asked, wanted, dropped)
            if len(made) < wanted:
                click.echo(f"{len(made):,} of {wanted:,} questions came about; --rounds asks again", err=True)
            kept |= made
            show_tally(generator, options)
        report = _write(folder, library, list(kept.values()), outside, test_share, making, dropped)
    for reason, count in dropped.most_common():
        click.echo(f"  {count:,} left out: {reason}", err=True)
    click.echo(json_text(report), nl=False)


def _kept(found: Iterable[Question | str], wanted: int, dropped: Counter[str]) -> dict[str, Question]:
    """The first `wanted` questions by their key; the reasons why others are none are counted, as far as it was read."""
    kept: dict[str, Question] = {}
    for each in found:
        if isinstance(each, str):
            dropped[each] += 1
        elif each.key in kept:
            dropped["questions that were asked before"] += 1
        else:
            kept[each.key] = each
            if len(kept) == wanted:
                break
    return kept


def _write(
    folder: Path,
    library: Library,
    kept: Sequence[Question],
    outside: Sequence[str],
    test_share: float,
    making: Making,
    dropped: Counter[str],
) -> dict[str, Any]:
    """All files, the report last, which has the sums of the others. Raises ValueError for no question."""
    if not kept:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common())
        raise ValueError(f"no question was kept ({reasons}); ask a larger model, or lower --min-chars")
    twins = library.twins(each.passage for each in kept)
    parts = split(kept, twins, test_share, making.seed)
    test, train = Counter[str](), Counter[str]()
    rows = {
        "test": evaluation_rows(parts, library, twins, making, outside, test),
        "train": training_rows(parts, library, twins, making, train),
        "questions": _listed(parts),
    }
    for name, each in rows.items():
        write_rows(folder / f"{name}.jsonl", each)
    report = {
        "passages_in_index": len(library),
        "questions": len(kept),
        "left_out": dict(dropped),
        "kept_whole": parts.by,
        "test": dict(test),
        "train": dict(train),
        "sha256": {f"{name}.jsonl": sha256_of(folder / f"{name}.jsonl") for name in rows},
    }
    write_json(folder / "report.json", report)
    return report


def _listed(parts: Split) -> Iterator[dict[str, Any]]:
    """Every question with its passage, for people; --questions reads it again."""
    for name, questions in (("test", parts.test), ("train", parts.train)):
        for each in questions:
            place = {"document": document_of(each.passage.id), "passage": each.passage.id, "text": each.passage.text}
            yield {"question": each.text, "answers": list(each.answers), "split": name, "kind": each.kind, **place}


if __name__ == "__main__":
    cli()

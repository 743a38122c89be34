"""Make data for a reward model from a few scored answers: new prompts, answers of several qualities, and their scores.

Run: python tools/extend_rewards.py scored.json more.jsonl --num 100 --engine openai --model NAME

The model writes new prompts like those of the examples, answers each at several levels, and then judges these answers,
with examples of yours to show the scale. An answer without a clear score is left out, and counted.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from chatbot.conversation import Conversation
from chatbot.options import FILE
from common.cli import OneLineCommand
from tools.generate_rewards import RUBRIC, Judge
from tools.generating.client import Generator
from tools.generating.new_prompts import Making, new_prompts
from tools.generating.options import generating_options, open_generator, settings, show_plan, show_tally
from tools.generating.prompting import load_templates, tagged
from tools.generating.row_formats import written
from tools.generating.scores import parse_score
from tools.generating.writing import only_writer, write_rows
from training.data.mixture import Source
from training.data.reading import read_rows
from training.data.rows import RankedRow

MIN_EXAMPLES = 3
_NUM_SHOWN = 4  # examples that the judge sees
_LEVEL = (
    "Write a response to this message that a strict judge would give {level:g} on a scale from {low:g} to {high:g}, "
    "the best. Write the response alone.\n\n{message}"
)
_NUMBERS = 1 << 20  # requests for answers and scores are numbered from here on: those for prompts come before
_MOST_ANSWERS = 64

Example = tuple[Conversation | None, str, float]


def read_examples(data: str) -> tuple[list[RankedRow], list[Example]]:
    """(rows, their answers that have a score). ValueError where these are too few, or have all the same score."""
    rows = [row for _, row in read_rows(Source(data), (RankedRow,)) if isinstance(row, RankedRow)]
    scored: list[Example] = [
        (row.prompt, response, score)
        for row in rows
        for response, score in zip(row.responses, row.scores, strict=True)
        if score is not None and row.prompt is not None
    ]
    different = {score for *_, score in scored}
    if len(scored) < MIN_EXAMPLES or len(different) < 2:
        raise ValueError(
            f"{data} holds {len(scored)} answers with a prompt and a score, of {len(different)} different scores; give "
            f"at least {MIN_EXAMPLES} answers and 2 scores as examples"
        )
    return rows, scored


def shown(examples: Sequence[Example]) -> list[Example]:
    """A few examples, from the lowest score to the highest."""
    ordered = sorted(examples, key=lambda each: each[2])
    steps = min(_NUM_SHOWN, len(ordered)) - 1
    return [ordered[step * (len(ordered) - 1) // steps] for step in range(steps + 1)]


def levels(low: float, high: float, num: int, number: int, seed: int) -> list[float]:
    """The qualities that the answers to a prompt are written at: spread over the scale, in any order."""
    spread = [low + (high - low) * place / max(num - 1, 1) for place in range(num)]
    random.Random(f"{seed}/{number}").shuffle(spread)  # noqa: S311  # no secret
    return spread


def new_row(
    generator: Generator, judge: Judge, prompt: str, number: int, num_answers: int, seed: int
) -> tuple[RankedRow | None, list[str]]:
    """A prompt's answers with their scores, None where none has one; and why answers were left out."""
    asked = Conversation().add("user", prompt)
    found: dict[str, float] = {}
    problems = []
    for place, level in enumerate(levels(judge.low, judge.high, num_answers, number, seed)):
        step = _NUMBERS + 2 * (number * _MOST_ANSWERS + place)
        message = _LEVEL.format(level=level, low=judge.low, high=judge.high, message=tagged("user", prompt))
        answer = generator.ask(Conversation().add("user", message), step)
        text = answer.text.strip()
        if answer.problem or answer.cut or not text or text in found:
            problems.append(answer.problem or ("cut off" if answer.cut else "empty, or the same as another"))
            continue
        verdict = generator.ask(judge.request(asked, text), step + 1, greedy=True)
        try:
            found[text] = parse_score(verdict.text, judge.low, judge.high)
        except ValueError as error:
            problems.append(verdict.problem or f"the judge's answer {error}")
    return (RankedRow(asked, tuple(found), tuple(found.values())) if found else None), problems


@click.command(cls=OneLineCommand, context_settings=settings(sample=True, temperature=0.8, max_tokens=512, seed=0))
@click.argument("data")
@click.argument("out", type=FILE)
@click.option("--num", type=click.IntRange(min=1), default=100, help="New prompts.")
@click.option("--answers", type=click.IntRange(min=1, max=_MOST_ANSWERS), default=2, help="Answers to each.")
@click.option("--scale", type=(float, float), help="Lowest and highest score.  [default: those of the examples]")
@click.option("--most", type=click.FloatRange(0, 1), default=0.7, help="ROUGE-L from which on prompts are too alike.")
@generating_options
def cli(
    data: str, out: Path, num: int, answers: int, scale: tuple[float, float] | None, most: float, **options: Any
) -> None:
    """Write the scored answers of DATA and new ones into OUT, as rows of prompt, responses and scores."""
    rows, examples = read_examples(data)
    templates, seed = load_templates(options["templates"]), options["seed"] or 0
    low, high = scale or (min(score for *_, score in examples), max(score for *_, score in examples))
    judge = Judge(templates.get("reward", RUBRIC), low, high, shown(examples))
    making = Making(most, templates.get("rlhf", ""), seed=seed)
    given = list(dict.fromkeys(prompt.last.content for prompt, *_ in examples if prompt is not None))
    if options["dry_run"]:
        num_requests = -(-num // making.per_request) + 2 * num * answers
        show_plan(options, num_requests, making.request(given, [], 0), at_least=True)
        return
    generator, counts = open_generator(options), Counter[str]()

    def made() -> Iterator[RankedRow]:
        prompts = list(enumerate(new_prompts(generator, given, num, making, counts)))
        work = generator.in_order(
            lambda each: new_row(generator, judge, each[1], each[0], answers, seed), prompts, len(prompts)
        )
        for row, problems in work:
            counts.update(f"answers: {problem}" for problem in problems)
            if row is not None:
                yield row

    with only_writer(out) as target:
        new = list(made())
        num_rows = write_rows(target, (fields for row in [*rows, *new] for fields in written(row, "ranked")))
    for reason, count in counts.most_common():
        click.echo(f"  {count:,} {reason}" * bool(count), err=True, nl=bool(count))
    show_tally(generator, options)
    click.echo(f"{target}: {num_rows:,} rows, {len(new):,} of them new", err=True)
    if not new:
        raise ValueError(f"{options['model']} made no answer with a clear score; try another model")


if __name__ == "__main__":
    cli()

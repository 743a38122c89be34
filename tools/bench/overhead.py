"""What a turn costs beside the encoder and the model: search, moderation, prompt, and what moderation adds.

Run: python -m tools.bench.overhead [--index indexes/sample] [--turns 300]

The model is one that answers at once, so that all time is the bot's own: until the answer's first text is shown, and
after its last, when a policy that only warns judges the answer. The questions are those of
tests/data/sample_questions.jsonl; the time that the encoder takes is counted apart. Figures are medians of one turn, in
milliseconds, of a process that is warm.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from chatbot.conversation import Conversation
from chatbot.core import Bot, Text
from chatbot.engines.base import Delta, Generation, Usage
from chatbot.engines.echo import EchoModel
from chatbot.prompting import PromptAssembler
from common.cli import OneLineCommand
from moderation.moderator import open_moderator
from retrieval.encoders import cached, open_encoder
from retrieval.retriever import Retriever

QUESTIONS = Path(__file__).parents[2] / "tests" / "data" / "sample_questions.jsonl"
ANSWER = "Zurich is the largest city in Switzerland, at the northern end of Lake Zurich."


class FastModel(EchoModel):
    """Answers at once, each time a little differently."""

    num_answers = 0

    def stream(self, conversation: Conversation, generation: Generation) -> Iterator[Delta]:
        """The answer in one piece."""
        del conversation, generation
        self.num_answers += 1
        yield Delta(f"{ANSWER} ({self.num_answers})", "stop", Usage(0, 0))


class TimedEncoder:
    """An encoder that counts the seconds it takes."""

    def __init__(self, name: str) -> None:
        self._encoder = open_encoder(name)
        self.name, self.dim, self.fingerprint = self._encoder.name, self._encoder.dim, self._encoder.fingerprint
        self.max_length, self.count_tokens = self._encoder.max_length, self._encoder.count_tokens
        self.seconds = 0.0

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """As the encoder does."""
        start = time.perf_counter()
        vectors = self._encoder.encode(texts)
        self.seconds += time.perf_counter() - start
        return vectors


def one_turn(bot: Bot, encoder: TimedEncoder, question: str) -> tuple[float, ...]:
    """In ms: until the first text, of that without the encoder, after it, of that without the encoder."""
    conversation = Conversation().add("user", question)
    encoder.seconds, start = 0.0, time.perf_counter()
    events = bot.stream(bot.prepare(conversation))
    next(event for event in events if isinstance(event, Text))
    shown, encoded = time.perf_counter(), encoder.seconds
    for _ in events:
        pass
    end = time.perf_counter()
    spans = (shown - start, shown - start - encoded, end - shown, end - shown - (encoder.seconds - encoded))
    return tuple(1000 * span for span in spans)


def measure(bot: Bot, encoder: TimedEncoder, questions: Sequence[str]) -> list[float]:
    """The medians of `one_turn` over the questions."""
    for question in questions[:20]:  # warm
        one_turn(bot, encoder, f"{question} again?")
    # A number makes each question one that no cache has seen.
    spans = [one_turn(bot, encoder, f"{question} ({number})") for number, question in enumerate(questions)]
    return [statistics.median(each) for each in zip(*spans, strict=True)]


@click.command(cls=OneLineCommand)
@click.option("--index", type=click.Path(path_type=Path), default=Path("indexes/sample"), show_default=True)
@click.option("--turns", default=300, show_default=True)
def cli(index: Path, turns: int) -> None:
    """Print what a turn costs with and without retrieval and moderation, without the model."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    questions = list(islice(cycle(json.loads(line)["question"] for line in lines), turns))
    model = FastModel()
    plain = Bot(model, PromptAssembler(model.count_tokens, model.context_length))

    def make(retrieval: bool, moderation: bool) -> tuple[Bot, TimedEncoder]:
        timed = TimedEncoder("minilm")
        bot = replace(plain, retriever=Retriever.open(index, cached(timed)) if retrieval else None)
        if moderation:
            encode = bot.retriever.encoder.encode if isinstance(bot.retriever, Retriever) else cached(timed).encode
            bot = replace(bot, moderator=open_moderator(), encode=encode)
        return bot, timed

    columns = ("to first text", "w/o encoder", "after last", "w/o encoder")
    click.echo(f"{f'{turns} turns, medians in ms':<32}" + "".join(f"{column:>15}" for column in columns))
    for retrieval in (True, False):
        both = []
        for moderation in (False, True):
            both.append(measure(*make(retrieval, moderation), questions))
            name = f"{'retrieval' if retrieval else 'no retrieval'}, {'moderated' if moderation else 'not moderated'}"
            click.echo(f"{name:<32}" + "".join(f"{span:>15.2f}" for span in both[-1]))
        added = [on - off for off, on in zip(*both, strict=True)]
        click.echo(f"{'  moderation adds':<32}" + "".join(f"{span:>15.2f}" for span in added))


if __name__ == "__main__":
    cli()

"""Make conversations to learn from: a model plays a person, and an assistant that answers.

Run: python tools/generate_dialogues.py --num 100 --turns 10 --out dialogues.jsonl --model smollm2-135m

Each speaker sees the conversation from its own side: the newest exchanges word for word (--memory), and notes of what
went before, which the model writes. Run again after a kill, it asks only for what is missing.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from chatbot.conversation import Conversation
from chatbot.options import FILE
from common.cli import OneLineCommand
from common.files import read_text
from tools.generating.client import Generator, Reply
from tools.generating.options import generating_options, open_generator, settings, show_plan, show_tally
from tools.generating.prompting import load_templates, tagged, transcript
from tools.generating.writing import only_writer, write_rows

PERSONS = (
    "a pupil of fourteen who has homework to do",
    "a student who prepares for an examination and asks for reasons",
    "an office worker with little time, who writes short messages",
    "a retired teacher, polite and curious, who likes details",
    "a parent who plans something for the family",
    "somebody who is new to computers and asks for small steps",
    "an engineer who wants numbers and doubts what is vague",
    "a traveller who speaks simple English",
)
TOPICS = (
    *("cooking a meal", "a journey", "the weather", "a book", "a garden", "money for the month", "a letter to write"),
    *("sleeping well", "a small repair at home", "music", "the history of a town", "a sport", "learning a language"),
    *("a program that does not work", "the night sky", "a present", "mathematics at school", "animals", "a job"),
)
ASSISTANT = "You are a helpful, honest assistant. Answer what you are asked, and say so where you do not know."
_PERSON = (
    "You play {person}, who talks to an assistant about {topic}. Write this person's next message to the assistant and "
    "nothing else: no quotes, no name before it. When the person has nothing more to ask, write [END]."
)
_BEGIN = "Begin the conversation about {topic}: write the first message."
_NOTES = "Write down, in a few short sentences, what was said so far and matters later. Write the notes alone."
_END = "[END]"
_LABEL = re.compile(r"^\s*(?:user|person|human|assistant|ai|bot)\s*:\s*", re.IGNORECASE)
_MOST_STEPS = 4096  # requests of one dialogue: the numbers of the next come after them


@dataclass(frozen=True)
class Setting:
    """What all dialogues share: exchanges of each, and how many are remembered word for word; `extra` is told to both
    speakers."""

    turns: int
    memory: int
    persons: Sequence[str] = PERSONS
    topics: Sequence[str] = TOPICS
    assistant: str = ASSISTANT
    extra: str = ""
    seed: int = 0


@dataclass(frozen=True)
class Dialogue:
    """A dialogue, and why it ended before its last turn, or None."""

    person: str
    topic: str
    conversation: Conversation
    ended: str | None = None


class Play:
    """One dialogue in the making: what was said, and the notes of its beginning."""

    def __init__(self, generator: Generator, setting: Setting, number: int) -> None:
        self.setting, self._generator, self._number, self._step = setting, generator, number, 0
        self.person = setting.persons[number % len(setting.persons)]
        # Its own stream of chance, so that a dialogue does not depend on how many there are.
        self.topic = random.Random(f"{setting.seed}/{number}").choice(setting.topics)  # noqa: S311  # no secret
        self.said = Conversation()
        self.notes, self._noted = "", 0

    def run(self) -> Dialogue:
        """All exchanges; a last one that is not whole is left out."""
        ended = next((why for _ in range(self.setting.turns) if (why := self._exchange())), None)
        return Dialogue(self.person, self.topic, self.said, ended)

    def view(self, speaker: str) -> Conversation:
        """What a speaker ('user' or 'assistant') is sent: its role and the notes, then the newest messages, its own as
        the assistant's."""
        role = self.setting.assistant
        if speaker == "user":
            role = _PERSON.format(person=self.person, topic=self.topic)
        told = "\n\n".join(each for each in (role, self.setting.extra) if each)
        if self.notes:
            told += "\n\nWhat was said before:\n" + tagged("notes", self.notes)
        view = Conversation().add("system", told)
        newest = self.said.messages[self._noted :]
        if speaker == "user":
            view = view.add("user", _BEGIN.format(topic=self.topic))
        for message in newest:
            view = view.add("assistant" if message.role == speaker else "user", message.content)
        return view

    def _exchange(self) -> str | None:
        """A message and its answer; or why there is none."""
        self._remember()
        asked = self._say("user")
        if isinstance(asked, Reply):
            return asked.problem
        before = {message.content for message in self.said if message.role == "user"}
        if _END in asked or asked in before:
            return "the person had nothing more to say" if _END in asked else "the person repeated a message"
        spoken = self.said
        self.said = self.said.add("user", asked)
        answer = self._say("assistant")
        if isinstance(answer, Reply):
            self.said = spoken
            return answer.problem
        self.said = self.said.add("assistant", answer)
        return None

    def _say(self, speaker: str) -> str | Reply:
        """The next message of a speaker, or a reply that is none, with the reason."""
        reply = self._ask(self.view(speaker))
        if reply.problem:
            return reply
        if reply.cut:
            return Reply("", problem="a message came to --max-tokens; give more")
        text = _LABEL.sub("", reply.text.strip()).strip()
        text = text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1] else text
        return text or Reply("", problem="a message was empty")

    def _remember(self) -> None:
        """Once twice as much was said as is remembered word for word, the older half goes into the notes."""
        kept = 2 * self.setting.memory
        if len(self.said) - self._noted < 2 * kept:
            return
        older = Conversation(self.said.messages[self._noted : len(self.said) - kept])
        before = tagged("notes", self.notes) + "\n" if self.notes else ""
        data = f"{before}<conversation>\n{transcript(older)}\n</conversation>"
        reply = self._ask(Conversation().add("user", f"{data}\n\n{_NOTES}"))
        if not reply.problem:
            self.notes, self._noted = reply.text.strip(), len(self.said) - kept

    def _ask(self, conversation: Conversation) -> Reply:
        self._step += 1
        return self._generator.ask(conversation, self._number * _MOST_STEPS + self._step)


def dialogues(generator: Generator, setting: Setting, num: int, ends: Counter[str]) -> Iterator[dict[str, Any]]:
    """Rows of `messages`, with person and topic. `ends` counts why dialogues ended early, or were left out. Raises
    ValueError at the end where none came about."""
    any_made = False
    for made in generator.in_order(lambda number: Play(generator, setting, number).run(), range(num), num):
        if not made.conversation.messages:
            ends[f"left out, without an exchange: {made.ended}"] += 1
            continue
        if made.ended:
            ends[f"ended early: {made.ended}"] += 1
        any_made = True
        yield {"messages": made.conversation.to_dicts(), "person": made.person, "topic": made.topic}
    if not any_made:
        raise ValueError(
            f"no dialogue came about: {', '.join(f'{count:,} {why}' for why, count in ends.most_common())}"
        )


def _lines(path: Path | None, default: Sequence[str]) -> Sequence[str]:
    if path is None:
        return default
    if not (lines := [line.strip() for line in read_text(path).splitlines() if line.strip()]):
        raise ValueError(f"{path}: is empty; write one a line")
    return lines


@click.command(cls=OneLineCommand, context_settings=settings(sample=True, temperature=0.8, seed=0))
@click.option("--out", type=FILE, required=True, help="File to write: .jsonl or .json.")
@click.option("--num", type=click.IntRange(min=1), default=100, help="Dialogues.")
@click.option("--turns", type=click.IntRange(min=1, max=1000), default=10, help="Exchanges of each, at most.")
@click.option("--memory", type=click.IntRange(min=1), default=6, help="Exchanges remembered word for word.")
@click.option("--persons", type=FILE, help="Text file: who talks to the assistant, one a line.")
@click.option("--topics", type=FILE, help="Text file: what about, one a line.")
@click.option("--assistant", default=ASSISTANT, help="What the assistant is told to be.", show_default=False)
@generating_options
def cli(
    out: Path,
    num: int,
    turns: int,
    memory: int,
    persons: Path | None,
    topics: Path | None,
    assistant: str,
    **options: Any,
) -> None:
    """Make dialogues between a person and an assistant, both played by the model."""
    extra = load_templates(options["templates"]).get("actor", "")
    people, about = _lines(persons, PERSONS), _lines(topics, TOPICS)
    setting = Setting(turns, memory, people, about, assistant, extra, options["seed"] or 0)
    generator = open_generator(options)
    if options["dry_run"]:
        show_plan(options, num * turns * 2, Play(generator, setting, 0).view("user"))
        return
    ends: Counter[str] = Counter()
    with only_writer(out) as target:
        written = write_rows(target, dialogues(generator, setting, num, ends))
    for reason, count in ends.most_common():
        click.echo(f"  {count:,} {reason}", err=True)
    show_tally(generator, options)
    click.echo(f"{target}: {written:,} dialogues", err=True)


if __name__ == "__main__":
    cli()

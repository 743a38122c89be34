"""Session: one person's conversation with a bot, and what is kept of it. No terminal here; the shell prints.

After each turn the conversation, the prompt/response pairs and the ratings are on disk, where files were named for
them, so that an interrupt loses nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from chatbot.conversation import Conversation, load_conversations, save_conversations
from chatbot.core import Bot, Done, Event, Notice, Reply, Text, Turn
from chatbot.engines.base import ChatModel, Generation
from chatbot.prompting import LAYOUTS
from chatbot.records import about, feedback_record
from common.files import append_json_line, read_json, write_json
from retrieval.types import Hit, Searcher

Rating = Literal["good", "bad", "edit", "regenerate"]
# What a person sets for the answers; log-probabilities are asked for by programs, see chatbot/api.py.
_GENERATION = tuple(field.name for field in fields(Generation) if field.name != "logprobs")


@dataclass(frozen=True)
class Files:
    """Where things are kept; None: not kept."""

    save: Path | None = None
    pairs: Path | None = None
    feedback: Path | None = None


class Session:
    """A bot, a conversation, and the commands that change them. User mistakes raise ValueError."""

    def __init__(self, bot: Bot, files: Files = Files()) -> None:
        self.bot = bot
        self.files = files
        self.conversation = Conversation()
        self.turn: Turn | None = None  # the newest exchange, as prepared
        self.reply: Reply | None = None  # and as answered (partly, when it was stopped)
        self.seen: str | None = None  # exactly what the model saw for it, where it was asked
        self._about: dict[str, Any] = {}  # the model and the settings that answered
        self._answer_id = ""  # what its ratings have in common
        self._replaced: str | None = None  # the answer in whose place it was asked for
        self._retriever = bot.retriever
        self._pairs = _existing_pairs(files.pairs)
        # Conversations that --save keeps before the current one: those of earlier days, and those ended by a reset.
        self._finished = load_conversations(files.save) if files.save and files.save.is_file() else []

    # Talking ----------------------------------------------------------------------------------------------------

    def ask(self, text: str) -> Iterator[Event]:
        """Say `text` and stream the answer; both join the conversation, unless moderation blocked the message."""
        if not text.strip():
            raise ValueError("nothing to say; type a message")
        earlier = self.conversation
        if earlier.messages and earlier.last.role == "user":
            # It never got an answer (stopped, failed). Many templates insist on turns, so it gives way.
            earlier = earlier.upto(len(earlier) - 1)
        yield from self._run(self.bot, self.bot.prepare(earlier.add("user", text)))

    def regenerate(self) -> Iterator[Event]:
        """Answer the newest user message again. Greedy decoding would repeat itself, so this samples. That another
        answer was asked for is kept as feedback where a file is named."""
        place = self._last_question()
        bot = self.bot
        if bot.generation.greedy:
            temperature = bot.generation.temperature or Generation.temperature
            bot = replace(bot, generation=replace(bot.generation, sample=True, temperature=temperature))
            yield Notice(f"sampling at temperature {temperature:g}, since greedy decoding would repeat the answer")
        asked, *answers = self.conversation.messages[place:]
        turn = bot.prepare(self.conversation.upto(place).add("user", asked.content))
        yield from self._run(bot, turn, answers[0].content if answers else None)

    def raw_say(self, text: str) -> Iterator[Event]:
        """Continue `text` as it is: no template, no history, no documents. It stands outside the conversation."""
        yield from self._run(self.bot, self.bot.prepare_plain(text))

    def complete(self, text: str) -> Iterator[Event]:
        """`raw_say` after the system prompt and the examples, as plain text: what a base model needs."""
        assembler = self.bot.assembler
        lead = [assembler.system] if assembler.system else []
        contents = [message.content for message in assembler.examples]
        lead += [f"{asked} {answered}" for asked, answered in zip(contents[::2], contents[1::2], strict=True)]
        yield from self.raw_say("\n\n".join([*lead, text]))

    def _run(self, bot: Bot, turn: Turn, replaced: str | None = None) -> Iterator[Event]:
        said = ""
        reply: Reply | None = None
        events = bot.stream(turn)
        try:
            for event in events:
                if isinstance(event, Text):
                    said += event.text
                elif isinstance(event, Done):
                    reply = event.reply
                yield event
        finally:
            # Also runs when the user stops the answer: what was said until then stays in the conversation.
            cut = Reply(said, turn.sources, turn.withheld, finish_reason="length", blocked=turn.blocked)
            self.turn, self.reply, self._replaced = turn, reply or cut, replaced
            self.seen = turn.plain
            if turn.prompt is not None:
                self.seen = bot.model.render(turn.prompt.conversation)
            self._about, self._answer_id = about(bot, turn.generation), _new_id()
            if not turn.blocked and turn.plain is None:
                self.conversation = turn.conversation
                if said:
                    answered = turn.conversation.add("assistant", said)
                    self.conversation = answered.with_last(verdicts=tuple(self.reply.verdicts.items()))
            self._keep(reply)

    # Keeping ----------------------------------------------------------------------------------------------------

    def _keep(self, reply: Reply | None) -> None:
        """Write what the files ask for; of pairs only whole answers, since they are there to be trained on."""
        self._autosave()
        if reply is None or reply.blocked or not reply.text:
            return
        if self.files.pairs and self.seen is not None:
            self._pairs.append([self.seen, reply.text])
            write_json(self.files.pairs, self._pairs)
        if self.files.feedback and self._replaced not in (None, reply.text):
            self.rate("regenerate")

    def _autosave(self) -> None:
        if self.files.save:
            current = [self._whole_conversation()] if self.conversation.messages else []
            save_conversations(self.files.save, [*self._finished, *current])

    def _whole_conversation(self) -> Conversation:
        """The conversation with the system prompt as its first message."""
        system = Conversation()
        if self.bot.assembler.system:
            system = system.add("system", self.bot.assembler.system)
        return Conversation((*system.messages, *self.conversation.messages))

    def save(self, path: Path) -> None:
        """Write the conversation, its system message first, as one line of JSON."""
        save_conversations(path, [self._whole_conversation()])

    def load(self, path: Path) -> None:
        """Go on with the last conversation in `path`; a system message at its start becomes the system prompt."""
        found = load_conversations(path)
        if not found:
            raise ValueError(f"{path}: holds no conversation")
        messages = found[-1].messages
        if messages and messages[0].role == "system":
            self.set_system(messages[0].content)
            messages = messages[1:]
        self.reset()
        self.conversation = Conversation(messages)
        if self.files.save and path.resolve() == self.files.save.resolve():
            self._finished = found[:-1]  # the last one goes on, in its own place

    def rate(self, rating: Rating, reason: str = "", edit: str | None = None) -> Path:
        """Append the newest exchange, with its prompt and passages, to the feedback file; returns the file."""
        if self.files.feedback is None:
            raise ValueError("no feedback file; start with --feedback FILE")
        if self.turn is None or self.reply is None or not self.reply.text:
            raise ValueError("there is no answer to rate yet")
        record = feedback_record(
            self._answer_id, rating, reason, edit, self.turn, self.reply, self.seen, self._about, self._replaced
        )
        append_json_line(self.files.feedback, record)
        return self.files.feedback

    # Changing ---------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Forget the conversation; system prompt, examples and settings stay."""
        if self.conversation.messages:
            self._finished.append(self._whole_conversation())
        self.conversation = Conversation()
        self.turn, self.reply, self.seen = None, None, None

    def undo(self) -> str:
        """Take back the newest user message and its answer; returns that message."""
        place = self._last_question()
        text = self.conversation.messages[place].content
        self.conversation = self.conversation.upto(place)
        self.turn, self.reply, self.seen = None, None, None
        self._autosave()
        return text

    def edit(self, text: str) -> None:
        """Put `text` in the place of the newest answer; the change is kept as feedback where a file is named."""
        if not self.conversation.messages or self.conversation.last.role != "assistant":
            raise ValueError("there is no answer to edit yet")
        if self.turn is not None and (self.turn.blocked or self.turn.plain is not None):
            raise ValueError("the newest answer is not part of the conversation; there is nothing to edit")
        if not text.strip():
            raise ValueError("the new answer is empty; give its text")
        if self.files.feedback and self.turn is not None:
            self.rate("edit", edit=text)
        self.conversation = self.conversation.with_last(content=text)
        if self.reply is not None:
            # A rating from now on is of the new text, which is another answer, and whole.
            self.reply = replace(self.reply, text=text, finish_reason="stop", attribution=())
            self._answer_id, self._replaced = _new_id(), None
        self._autosave()

    def set_system(self, text: str) -> None:
        """Change the system prompt ('' for none) from the next message on."""
        self.bot = replace(self.bot, assembler=replace(self.bot.assembler, system=text))

    def set_model(self, model: ChatModel) -> None:
        """Go on with another model."""
        assembler = replace(self.bot.assembler, count=model.count_tokens, context_length=model.context_length)
        self.bot = replace(self.bot, model=model, assembler=assembler)

    @property
    def has_index(self) -> bool:
        """True where an index was opened, in use or not."""
        return self._retriever is not None

    def set_retriever(self, retriever: Searcher) -> None:
        """Answer from this index."""
        self._retriever = retriever
        self.bot = self.bot.searching(retriever)

    def set_retrieval(self, on: bool) -> None:
        """Switch the index on or off; ValueError where none was ever opened."""
        if on and self._retriever is None:
            raise ValueError("no index is open; start with --index DIR")
        self.bot = replace(self.bot, retriever=self._retriever if on else None)

    def search(self, query: str) -> list[Hit]:
        """What retrieval finds for `query`, floor or not."""
        if self._retriever is None:
            raise ValueError("no index is open; start with --index DIR")
        if not query.strip():
            raise ValueError("nothing to search for; give a query")
        return self._retriever.search([query], self.bot.k)[0]

    def hyperparameters(self) -> dict[str, Any]:
        """Every setting that `set_hyperparameters` knows, with its value."""
        own = {"k": self.bot.k, "floor": self.bot.floor, "layout": self.bot.assembler.layout}
        return {name: getattr(self.bot.generation, name) for name in _GENERATION} | own

    def set_hyperparameters(self, assignments: Sequence[str]) -> None:
        """Each `name=value`. All are checked before any takes effect."""
        generation, bot = self.bot.generation, self.bot
        for assignment in assignments:
            name, equals, value = assignment.partition("=")
            if not equals:
                raise ValueError(f"'{assignment}' is not name=value")
            if name in _GENERATION:
                generation = replace(generation, **{name: _parse(name, value)})
            elif name == "k":
                bot = replace(bot, k=_number(name, value, int))
            elif name == "floor":
                bot = replace(bot, floor=None if value == "none" else _number(name, value, float))
            elif name == "layout":
                if value not in LAYOUTS:
                    raise ValueError(f"unknown layout '{value}'; choose one of: {', '.join(LAYOUTS)}")
                bot = replace(bot, assembler=replace(bot.assembler, layout=value))
            else:
                raise ValueError(f"unknown setting '{name}'; choose one of: {', '.join(self.hyperparameters())}")
        if generation.max_tokens >= bot.assembler.context_length:
            limit = bot.assembler.context_length
            raise ValueError(f"max_tokens={generation.max_tokens} must be below the model's context of {limit}")
        self.bot = replace(bot, generation=generation)

    def _last_question(self) -> int:
        place = self.conversation.last_index("user")
        if place is None:
            raise ValueError("nothing has been said yet")
        return place


def _existing_pairs(path: Path | None) -> list[list[str]]:
    """What earlier runs saved there; new pairs join them."""
    if path is None or not path.is_file() or path.stat().st_size == 0:
        return []
    pairs = read_json(path)
    if not isinstance(pairs, list):
        raise ValueError(f"{path}: is no list of pairs, so none can be added to it; name another file")
    return pairs


def _parse(name: str, value: str) -> Any:
    """The value of a Generation field from text."""
    if name == "sample":
        if value not in {"on", "off", "true", "false"}:
            raise ValueError(f"sample={value} must be on or off")
        return value in {"on", "true"}
    if name == "stop":
        return tuple(value.split(",")) if value else ()
    if name == "seed" and value == "none":
        return None
    return _number(name, value, int if name in {"max_tokens", "top_k", "seed"} else float)


def _number(name: str, value: str, kind: type[int] | type[float]) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name}={value} must be a {'whole ' if kind is int else ''}number") from None


def _new_id() -> str:
    return f"answer-{uuid.uuid4().hex}"

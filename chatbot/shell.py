"""The interactive shell: messages and /commands until Ctrl-D. Session does the work; this reads and prints."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from chatbot.core import Done, Event, Notice, Reply, Text
from chatbot.engines.base import ChatModel
from chatbot.session import Session
from chatbot.terminal import Keyboard, Screen
from common.files import expand
from retrieval.types import Hit, Passage, Searcher

MAX_SHOWN = 80  # characters of a sentence


@dataclass(frozen=True)
class Command:
    """`run` gets what was typed after the name. `usage` and `about` make the help line."""

    usage: str
    about: str
    run: Callable[[str], None]


class Shell:
    """Drives one session on one screen. `load_model` opens a model by name, `open_index` the retrieval index."""

    def __init__(
        self,
        session: Session,
        screen: Screen,
        load_model: Callable[[str], ChatModel],
        open_index: Callable[[], Searcher],
        stream: bool = True,
        complete: bool = False,
    ) -> None:
        self.session = session
        self.screen = screen
        self.load_model = load_model
        self.open_index = open_index
        self.stream = stream
        self.complete = complete
        self._keyboard: Keyboard | None = None
        self._prefilled = ""
        self._quitting = False
        self.commands: dict[str, Command] = {
            "/help": Command("/help", "this list (also /?)", self._help),
            "/say": Command("/say TEXT", "say TEXT, also when it begins with a slash", self.say),
            "/raw_say": Command("/raw_say TEXT", "continue TEXT as it is: no template, no history", self._raw_say),
            "/raw_prompt": Command("/raw_prompt", "exactly what the model saw for the last answer", self._raw_prompt),
            "/reset": Command("/reset", "forget the conversation", self._reset),
            "/hyperparameters": Command(
                "/hyperparameters [NAME=VALUE ...]", "show the settings, or set some", self._hyperparameters
            ),
            "/sources": Command("/sources", "the passages behind the last answer, in full", self._sources),
            "/search": Command("/search QUERY", "look into the documents without asking the model", self._search),
            "/system": Command("/system [TEXT]", "show or set the system prompt ('none' removes it)", self._system),
            "/save": Command("/save FILE", "write the conversation as JSON Lines", self._save),
            "/load": Command("/load FILE", "go on with a saved conversation", self._load),
            "/undo": Command("/undo", "take back your last message and its answer", self._undo),
            "/regenerate": Command("/regenerate", "another answer to your last message (kept too)", self._regenerate),
            "/edit": Command("/edit [TEXT]", "correct the last answer (kept as feedback)", self._edit),
            "/retrieval": Command("/retrieval on|off", "answer from the documents, or not", self._retrieval),
            "/model": Command("/model [NAME]", "show the model, or load another", self._model),
            "/good": Command("/good [why]", "rate the last answer as good", lambda why: self._rate("good", why)),
            "/bad": Command("/bad [why]", "rate the last answer as bad", lambda why: self._rate("bad", why)),
            "/quit": Command("/quit", "leave (also Ctrl-D)", self._quit),
        }

    def run(self) -> None:
        """Read and answer until /quit or Ctrl-D. A mistake is one line; Ctrl-C stops the answer, not the shell."""
        self._keyboard = keyboard = Keyboard(list(self.commands))
        self.screen.remark(self._welcome())
        while True:
            try:
                prefilled, self._prefilled = self._prefilled, ""
                try:
                    line = keyboard.read(prefilled)
                except EOFError:
                    return
                self.handle(line)
            except KeyboardInterrupt:
                self.screen.line()
                self.screen.remark("(stopped; Ctrl-D or /quit leaves)")
            except (ValueError, OSError) as error:
                self.screen.error(str(error))
            except EOFError:
                if self._quitting:
                    return

    def handle(self, line: str) -> None:
        """Do what one line asks for. Raises ValueError for a mistake, EOFError to leave."""
        text = line.strip()
        if not text:
            return
        name, _, rest = text.partition(" ")
        name = "/help" if name == "/?" else name
        if name in self.commands:
            self.commands[name].run(rest.strip())
        elif name.startswith("/"):
            near = difflib.get_close_matches(name, self.commands, n=1)
            hint = f"; did you mean {near[0]}?" if near else "; /help lists them"
            raise ValueError(f"unknown command {name}{hint} (to say it: /say {text})")
        else:
            self.say(text)

    def say(self, text: str) -> None:
        """Answer `text`, or continue it in completion mode."""
        self._show(self.session.complete(text) if self.complete else self.session.ask(text))

    def _show(self, events: Iterable[Event]) -> None:
        """Print an answer as it comes (or whole, without streaming) and then its sources."""
        held = ""
        for event in events:
            if isinstance(event, Notice):
                self.screen.remark(f"({event.text})")
            elif isinstance(event, Text) and self.stream:
                self.screen.piece(event.text)
            elif isinstance(event, Text):
                held += event.text
            elif isinstance(event, Done):
                self.screen.line(held)
                self._finish(event)

    def _finish(self, done: Done) -> None:
        if unsupported := unsupported_line(done.reply):
            self.screen.remark(unsupported)
        for number, hit in enumerate(done.reply.sources, start=1):
            self.screen.remark(source_line(number, hit.passage))
        for hit in done.reply.withheld:
            self.screen.remark(f"withheld: {hit.passage.title or hit.passage.source} ({hit.passage.location})")
        if done.reply.finish_reason == "length":
            limit = self.session.bot.generation.max_tokens
            self.screen.remark(f"(stopped at max_tokens={limit}; /hyperparameters max_tokens={2 * limit} allows more)")

    def _welcome(self) -> str:
        bot = self.session.bot
        index = f", answering from {bot.retriever}" if bot.retriever else ""
        return f"Parley with {bot.model.name}{index}. /help lists the commands, Ctrl-D leaves."

    def _help(self, _: str) -> None:
        width = max(len(command.usage) for command in self.commands.values())
        for command in self.commands.values():
            self.screen.line(f"  {command.usage:{width}}  {command.about}")
        self.screen.line("Alt-Enter, or a \\ at the end, goes on in a new line; Ctrl-C stops an answer.")

    def _raw_say(self, text: str) -> None:
        if not text:
            raise ValueError("nothing to say; give the text: /raw_say TEXT")
        self._show(self.session.raw_say(text))

    def _raw_prompt(self, _: str) -> None:
        turn = self.session.turn
        if turn is None:
            raise ValueError("nothing has been said yet")
        if self.session.seen is None:
            self.screen.remark("(the model was not asked)")
        else:
            self.screen.line(self.session.seen)

    def _reset(self, _: str) -> None:
        self.session.reset()
        self.screen.remark("(a new conversation)")

    def _hyperparameters(self, text: str) -> None:
        if text:
            self.session.set_hyperparameters(text.split())
        for name, value in self.session.hyperparameters().items():
            shown = ("on" if value else "off") if isinstance(value, bool) else value
            self.screen.line(f"  {name}={shown if shown is not None else 'none'}")

    def _sources(self, _: str) -> None:
        reply = self.session.reply
        if reply is None or not (reply.sources or reply.withheld):
            self.screen.remark("(the last answer had no sources)")
            return
        self._show_hits(reply.sources)
        if reply.withheld:
            self.screen.remark("(found, and kept from the model:)")
            self._show_hits(reply.withheld)

    def _search(self, query: str) -> None:
        hits = self.session.search(query)
        self._show_hits(hits)
        if not hits:
            self.screen.remark("(nothing found)")

    def _show_hits(self, hits: Iterable[Hit]) -> None:
        for number, hit in enumerate(hits, start=1):
            self.screen.line(f"{source_line(number, hit.passage)} ({hit.score:.2f})")
            self.screen.remark(hit.passage.text)

    def _system(self, text: str) -> None:
        if text:
            self.session.set_system("" if text == "none" else text)
        self.screen.line(self.session.bot.assembler.system or "(no system prompt)")

    def _save(self, path: str) -> None:
        if not path:
            raise ValueError("give the file: /save FILE")
        self.session.save(expand(path))
        self.screen.remark(f"(saved to {path})")

    def _load(self, path: str) -> None:
        if not path:
            raise ValueError("give the file: /load FILE")
        self.session.load(expand(path))
        self.screen.remark(f"({len(self.session.conversation)} messages from {path})")

    def _undo(self, _: str) -> None:
        self._prefilled = self.session.undo()
        self.screen.remark("(taken back)")

    def _regenerate(self, _: str) -> None:
        self._show(self.session.regenerate())

    def _edit(self, text: str) -> None:
        messages = self.session.conversation.messages
        if not text and self._keyboard is not None and messages and messages[-1].role == "assistant":
            text = self._keyboard.read(messages[-1].content)
        self.session.edit(text)
        self.screen.remark("(answer changed)")

    def _retrieval(self, word: str) -> None:
        if word not in {"on", "off", ""}:
            raise ValueError(f"/retrieval {word}: choose on or off")
        if word == "on" and self.session.bot.retriever is None:
            self._switch_on()
        elif word == "off":
            self.session.set_retrieval(False)
        self.screen.remark(f"(retrieval is {'on' if self.session.bot.retriever else 'off'})")

    def _switch_on(self) -> None:
        if self.session.has_index:
            self.session.set_retrieval(True)
        else:
            self.session.set_retriever(self.open_index())

    def _model(self, name: str) -> None:
        if name:
            self.screen.remark(f"(loading {name} ...)")
            self.session.set_model(self.load_model(name))
        model = self.session.bot.model
        self.screen.line(f"{model.name} (context of {model.context_length} tokens)")

    def _rate(self, rating: str, why: str) -> None:
        file = self.session.rate("good" if rating == "good" else "bad", why)
        self.screen.remark(f"(kept in {file})")

    def _quit(self, _: str) -> None:
        self._quitting = True
        raise EOFError


def unsupported_line(reply: Reply) -> str:
    """`? 1 of 3 sentences unsupported: "..." (why)`, of the first of them; '' where there is none."""
    wanting = [each for each in reply.attribution if not each.supported]
    if not wanting:
        return ""
    first = wanting[0].text if len(wanting[0].text) <= MAX_SHOWN else f"{wanting[0].text[: MAX_SHOWN - 1]}…"
    counted = f"{len(wanting)} of {len(reply.attribution)} sentences unsupported"
    return f'? {counted}: "{first}" ({wanting[0].reason})'


def source_line(number: int, passage: Passage) -> str:
    """`[1] title - file:line`."""
    return f"[{number}] {passage.title} - {passage.location}"

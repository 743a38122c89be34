"""Trying a model as Speaker did, behind `parley.speaker`: prompts from a file first, then what is typed or piped.

`complete` continues plain text, `chat` holds a conversation. The words `quit` and, in a chat, `reset` are commands.
Nothing is looked up in documents or moderated; the bot proper is chatbot/bot.py.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from chatbot.batch import RESET, Batch
from chatbot.conversation import Message
from chatbot.core import Bot
from chatbot.engines import LoadOptions, open_engine
from chatbot.engines.base import ChatModel, Generation
from chatbot.prompt_files import load_examples, load_prompts
from chatbot.prompting import PromptAssembler
from chatbot.session import Files, Session
from chatbot.terminal import Keyboard, is_terminal
from common.files import check_can_write, expand
from common.text import lines_of

MODES = ("complete", "chat")
QUIT = "quit"


@dataclass(frozen=True)
class Speaking:
    """What is to be tried, its files read and checked: `run` then loads a model, which may not be there before.

    `examples` open every chat. `pairs` is where [prompt, response] pairs are written after each answer. An answer has
    up to `max_tokens` tokens, and at most half of the model's context. Without a `temperature` it is the most likely
    one.
    """

    mode: str
    prompts: tuple[str, ...] = ()
    examples: tuple[Message, ...] = ()
    system: str = ""
    pairs: Path | None = None
    stream: bool = False
    max_tokens: int = 512
    temperature: float | None = None
    loading: LoadOptions = field(default_factory=LoadOptions)

    def run(self, model: str) -> None:
        """Answer the prompts, then what is typed or piped, until `quit` or the end of input. Raises ValueError where
        the model cannot be loaded, and for a prompt that cannot be answered, unless a person can type another."""
        # The engine that runs what was trained as it was trained: not quantised, adapters included.
        session = Session(self._bot(open_engine("transformers", model, self.loading)), Files(pairs=self.pairs))
        batch = Batch(session, as_json=False, stream=self.stream, complete=self.mode == "complete")
        batch.run(self.prompts, echo=True)
        session.reset()
        typed = is_terminal()
        for text in _typed() if typed else lines_of(sys.stdin):
            if text.strip() == QUIT:
                break
            try:
                batch.run([text])
            except ValueError as error:
                if not typed:
                    raise
                click.echo(f"error: {error}", err=True)

    def _bot(self, model: ChatModel) -> Bot:
        max_tokens = min(self.max_tokens, model.context_length // 2)
        sample = self.temperature is not None
        generation = Generation(max_tokens, sample, self.temperature or 0.0)
        assembler = PromptAssembler(model.count_tokens, model.context_length, self.system, self.examples)
        return Bot(model, assembler, generation=generation)


def open_speaking(
    mode: str,
    eval_data: str | None = None,
    few_shot_pairs: str | None = None,
    system: str | None = None,
    save_conversation_pairs: str | None = None,
    stream: bool = False,
    context_window: int = 512,
    temperature: float | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> Speaking:
    """Speaker's settings by Speaker's names, with what their files hold. Raises ValueError for files that cannot be
    read or written, and for settings that a mode does not have."""
    if mode not in MODES:
        raise ValueError(f"unknown eval_mode '{mode}'; choose one of: {', '.join(MODES)}")
    for name, value in (("few_shot_pairs", few_shot_pairs), ("system", system)):
        if mode == "complete" and value:
            raise ValueError(f"{name} is for eval_mode=chat: plain text has no turns; leave it out")
    pairs = expand(save_conversation_pairs) if save_conversation_pairs else None
    if pairs is not None:
        check_can_write(pairs)
    Generation(temperature=temperature or 0.0)  # checks it
    return Speaking(
        mode,
        tuple(load_prompts(expand(eval_data))) if eval_data else (),
        load_examples(expand(few_shot_pairs)) if few_shot_pairs else (),
        system or "",
        pairs,
        stream,
        context_window,
        temperature,
        LoadOptions(device=device, dtype=precision or "auto"),
    )


def _typed() -> Iterator[str]:
    """What a person types, until Ctrl-D."""
    keyboard = Keyboard([RESET, QUIT])
    while True:
        try:
            yield keyboard.read()
        except EOFError:
            return

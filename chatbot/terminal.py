"""What the shell needs of a terminal: lines typed with history and completion, text shown safely.

Model and document text is stripped of control characters before it is shown, so that it cannot move the cursor,
recolour the screen or write to the clipboard.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from common.text import printable

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

PROMPT = ">>> "


class Screen:
    """Where the shell writes: answers plainly, remarks dimmed, mistakes in red."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(highlight=False, markup=False, soft_wrap=True, emoji=False)

    def piece(self, text: str) -> None:
        """A piece of an answer, shown at once."""
        self._console.file.write(printable(text))
        self._console.file.flush()

    def line(self, text: str = "") -> None:
        """A line of text."""
        self._console.print(printable(text))

    def remark(self, text: str) -> None:
        """Something beside the conversation, wrapped at words."""
        self._console.print(printable(text), style="dim", soft_wrap=False)

    def error(self, text: str) -> None:
        """A mistake, with its remedy."""
        self._console.print(printable(text), style="red")


class Keyboard:
    """Reads lines: Enter sends, Alt-Enter (or a `\\` at the line's end) goes on in a new line, Tab completes
    commands, the arrows walk through earlier sessions' lines too."""

    def __init__(self, commands: Sequence[str]) -> None:
        self._session = _prompt_session(commands)

    def read(self, default: str = "") -> str:
        """One message. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        text: str = self._session.prompt(PROMPT, default=default)
        while text.endswith("\\"):
            text = text[:-1] + "\n" + self._session.prompt("... ")
        return text


def _prompt_session(commands: Sequence[str]) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    if (path := _history_file()) is not None:
        history = FileHistory(str(path))
    completer = WordCompleter(list(commands), sentence=True)
    return PromptSession(
        history=history,
        completer=completer,
        complete_while_typing=False,
        key_bindings=keys,
        prompt_continuation="... ",
        enable_open_in_editor=False,
    )


def _history_file() -> Path | None:
    """Where typed lines are kept, private to the user; None where the folder cannot be written."""
    try:
        folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "parley"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "history").touch(mode=0o600)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder / "history"


def is_terminal() -> bool:
    """True where a person is typing and reading."""
    return sys.stdin.isatty() and sys.stdout.isatty()

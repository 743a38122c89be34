"""Conversation -> token ids and loss mask, through the model's chat template: THE one way from text to tokens.

Chat and training share it, so that the two cannot drift. Text of users and documents cannot forge a turn or a
special token: inside a message every special token, and every role marker of the template, is broken up by a space
(`<|im_end|>` reaches the model as `< |im_end|>`, ordinary characters), and after tokenising the special tokens are
counted against those of the same conversation with harmless contents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from chatbot.conversation import Conversation, Message
from chatbot.templates import DEFAULT_TEMPLATE, find_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Markers of well-known formats: broken up whatever the model at hand uses, so that a saved chat stays harmless when
# another model, or a server with a template of its own, reads it.
COMMON_MARKERS = ("<human>:", "<bot>:", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")
_ANGLE_TOKEN = r"<\|[^<>|\s]{1,40}\|>"  # noqa: S105  # <|im_start|>, <|endoftext|>, <|eot_id|>, ...
_HARMLESS = "x"
_SENTINEL = "\ue000"  # a private-use character, in no template


@dataclass(frozen=True)
class Rendered:
    """`text` as the model sees it, its `ids` (n), and `loss_mask` (n): true on every token of an assistant's turn,
    its end-of-turn token included."""

    text: str
    ids: list[int]
    loss_mask: list[bool]


class Renderer:
    """Renders conversations for one tokenizer.

    `template` names one of `chatbot.templates`; without it the tokenizer's own chat template is used, and where it
    has none, `human-assistant`. `stops` are the strings that end a reply, besides the end-of-sequence token.
    `for_encoder`: prompts are read by an encoder, and end as the tokenizer ends a text (T5 knows them so).
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: str | None = None, for_encoder: bool = False
    ) -> None:
        own = None if template else getattr(tokenizer, "chat_template", None)
        chosen = None if own else find_template(template or DEFAULT_TEMPLATE)
        self.tokenizer = tokenizer
        self.stops: tuple[str, ...] = chosen.stops if chosen else ()
        self._jinja: str | None = chosen.jinja if chosen else None
        # A model's own template writes its beginning-of-text token itself; most of ours leave it to the tokenizer.
        writes_it = own or (chosen and "bos_token" in chosen.jinja)
        self._prefix = [] if writes_it else self._automatic_prefix()
        self._suffix = self._automatic_suffix() if for_encoder else []
        self._folds_system = not self._keeps([Message("system", _SENTINEL), Message("user", _HARMLESS)])

    def text(self, conversation: Conversation, add_generation_prompt: bool = True) -> str:
        """The prompt as text, contents made harmless. Raises ValueError where the template refuses the conversation."""
        return self._apply(self._safe(conversation), add_generation_prompt)

    def whole_text(self, conversation: Conversation) -> str:
        """`text` with what the tokenizer puts before it (a beginning-of-text token, for the named templates)."""
        return str(self.tokenizer.decode(self._prefix)) + self.text(conversation)

    def encode(self, conversation: Conversation, add_generation_prompt: bool = True) -> Rendered:
        """Token ids and loss mask. Raises ValueError where a content would still forge a special token."""
        safe = self._safe(conversation)
        text = self._apply(safe, add_generation_prompt)
        encoding = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = encoding["input_ids"]
        self._check_specials(safe, text, ids, add_generation_prompt)
        spans = self._reply_spans(safe, text)
        mask = [any(start < b and a < end for a, b in spans) for start, end in encoding["offset_mapping"]]
        return Rendered(text, self._prefix + ids, [False] * len(self._prefix) + mask)

    def ids(self, conversation: Conversation, add_generation_prompt: bool = True) -> list[int]:
        """Token ids alone: what an engine runs."""
        safe = self._safe(conversation)
        text = self._apply(safe, add_generation_prompt)
        ids = self._ids(text)
        self._check_specials(safe, text, ids, add_generation_prompt)
        return self._prefix + ids + self._suffix

    def plain_ids(self, text: str, beginning: bool = True) -> list[int]:
        """Ids of text without any template, for plain completion; special tokens in it count as what they are.

        At the `beginning` of a text stands what the tokenizer puts there by itself, once: a text that was rendered by
        a template may have it already.
        """
        ids, prefix = self._ids(text), self._automatic_prefix() if beginning else []
        return ids if ids[: len(prefix)] == prefix else prefix + ids

    def prompt_ids(self, text: str) -> list[int]:
        """`plain_ids` of a text that is a prompt: ended for an encoder."""
        return self.plain_ids(text) + self._suffix

    def harmless_ids(self, text: str) -> list[int]:
        """Ids of text without any template, with special tokens and role markers broken up."""
        return self._ids(self.escape(text))

    @property
    def beginning_ids(self) -> list[int]:
        """What stands before every conversation, where the template does not write it itself."""
        return list(self._prefix)

    @property
    def special_ids(self) -> frozenset[int]:
        """The ids of the tokenizer's special tokens."""
        return frozenset(self._special_tokens)

    def count(self, conversation: Conversation) -> int:
        """Tokens of the prompt, generation prompt included."""
        return len(self._prefix) + len(self._ids(self.text(conversation))) + len(self._suffix)

    def escape(self, text: str) -> str:
        """`text` with special tokens and role markers broken up by a space; other text comes back as it was."""
        return broken_up(text, self._forgeries)

    @cached_property
    def _forgeries(self) -> re.Pattern[str]:
        markers = {str(token) for token in self._special_tokens.values()} | set(COMMON_MARKERS) | self._role_markers()
        longest_first = sorted((marker for marker in markers if marker.strip()), key=len, reverse=True)
        return re.compile("|".join([*map(re.escape, longest_first), _ANGLE_TOKEN]), re.IGNORECASE)

    @cached_property
    def _special_tokens(self) -> dict[int, str]:
        added = self.tokenizer.added_tokens_decoder
        return {id_: token.content for id_, token in added.items() if token.special}

    def _role_markers(self) -> set[str]:
        """What the template writes between contents, a marker a line: `USER:`, `### Response:`, `<|im_start|>user`."""
        roles = ["user", "assistant", "user"] if self._folds_system else ["system", "user", "assistant", "user"]
        try:
            between = self._apply([Message(role, _SENTINEL) for role in roles], True).split(_SENTINEL)
        except ValueError:
            return set()
        if self._folds_system:
            between = between[1:]  # what stands before the first user's text may be a default system prompt
        lines = {line.strip() for literal in between for line in literal.splitlines()}
        # Single words without punctuation ('user', 'model') are everyday language; alone they forge nothing.
        return {line for line in lines if len(line) > 1 and not line.isalnum()}

    def _safe(self, conversation: Conversation) -> list[Message]:
        messages = [Message(each.role, self.escape(each.content)) for each in conversation]
        return _fold_system(messages) if self._folds_system else messages

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        from jinja2 import TemplateError

        try:
            rendered: Any = self.tokenizer.apply_chat_template(
                [message.to_dict() for message in messages],
                chat_template=self._jinja,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from None
        return str(rendered)

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _automatic_suffix(self) -> list[int]:
        with_special: list[int] = self.tokenizer(_HARMLESS)["input_ids"]
        bare = self._ids(_HARMLESS)
        place = with_special.index(bare[0]) if bare and bare[0] in with_special else len(with_special)
        return with_special[place + len(bare) :]

    def _automatic_prefix(self) -> list[int]:
        with_special: list[int] = self.tokenizer(_HARMLESS)["input_ids"]
        bare = self._ids(_HARMLESS)
        return with_special[: with_special.index(bare[0])] if bare and bare[0] in with_special else []

    def _keeps(self, messages: Sequence[Message]) -> bool:
        try:
            return _SENTINEL in self._apply(messages, True)
        except ValueError:
            return False

    def _check_specials(
        self, messages: Sequence[Message], text: str, ids: list[int], add_generation_prompt: bool
    ) -> None:
        """Whatever the contents were, exactly the special tokens of the template itself may come out."""
        harmless = [Message(message.role, _HARMLESS) for message in messages]
        expected = Counter(self._ids(self._apply(harmless, add_generation_prompt)))
        found = Counter(ids)
        unknown = self.tokenizer.unk_token_id  # also stands for characters that the vocabulary lacks: no forgery
        for id_, token in self._special_tokens.items():
            if found[id_] > expected[id_] and (id_ != unknown or token in text):
                raise ValueError(f"a message's text forms the special token {token}; remove it from the text")

    def _reply_spans(self, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
        """Character spans of the assistant's turns, without the white space that the template puts after them."""
        spans = []
        for i, message in enumerate(messages):
            if message.role != "assistant":
                continue
            if i == 0:
                raise ValueError("a conversation that begins with the assistant's message has no loss mask")
            before, after = self._apply(messages[:i], True), self._apply(messages[: i + 1], False)
            if not (text.startswith(after) and after.startswith(before)):
                raise ValueError("the chat template rewrites earlier turns, so no loss mask can be made from it")
            spans.append((len(before), len(after.rstrip())))
        return spans


def broken_up(text: str, forgeries: re.Pattern[str]) -> str:
    """`text` with all that the pattern finds broken up by a space, and what that brings forth."""
    while (broken := forgeries.sub(_break, text)) != text:
        text = broken
    return text


def _break(match: re.Match[str]) -> str:
    """`<|im_end|>` -> `< |im_end|>`, `Human:` -> `Human :`; a single character is replaced."""
    found = match.group()
    if len(found) == 1:
        return "\ufffd"
    place = len(found) - 1 if found[0].isalpha() else 1
    return f"{found[:place]} {found[place:]}"


def _fold_system(messages: list[Message]) -> list[Message]:
    """For templates without a system role: its text goes before the first user message, as their makers advise."""
    if len(messages) < 2 or messages[0].role != "system":
        return messages
    system, first, *rest = messages
    return [Message(first.role, f"{system.content}\n\n{first.content}"), *rest]

"""Messages that lean on what was said before, and messages that ask nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from chatbot.conversation import Conversation
from chatbot.engines.base import Generation

if TYPE_CHECKING:
    from chatbot.engines.base import ChatModel

_SMALL_TALK = re.compile(
    r"(hi|hello|hey|hallo|good (morning|afternoon|evening|night)|thanks?( you)?( (so|very) much)?|thx|bye|goodbye|"
    r"see you|ok(ay)?|great|nice|cool|how are you( doing)?( today)?|who are you|what can you do|nice to meet you)"
    r"( (there|bot|parley|everyone|all|then|again))?",
    re.IGNORECASE,
)

_FOLLOW_UP = re.compile(
    r"\b(it|its|he|him|his|she|her|hers|they|them|their|theirs|this|that|these|those|there|then|one|ones|more|else|"
    r"same|other|another)\b|^(and|or|but|so|also|what about|how about|why|why not)\b",
    re.IGNORECASE,
)
NUM_FOLLOW_UP_WORDS = 3


def is_follow_up(text: str) -> bool:
    """True where a question seems to lean on what was said before: it refers back, or has three words or fewer.

    The words are English; in other languages only the length counts.
    """
    return len(text.split()) <= NUM_FOLLOW_UP_WORDS or bool(_FOLLOW_UP.search(text.strip()))


def is_small_talk(text: str) -> bool:
    """True for greetings, thanks and their like: nothing to look up, so no documents are asked."""
    clauses = [clause.strip() for clause in re.split(r"[.,!?;:\n]+", text) if clause.strip()]
    return all(_SMALL_TALK.fullmatch(clause) for clause in clauses)


REWRITE = (
    "Rewrite the last question so that it can be understood without the conversation: put names in the place of words "
    "like it, he or there. Answer with the question alone."
)
_EXAMPLE = (
    ("user", f"User: Who wrote Faust?\nAssistant: Goethe wrote it.\nLast question: When was he born?\n\n{REWRITE}"),
    ("assistant", "When was Goethe born?"),
)
MAX_REWRITE_TOKENS = 48
MAX_QUOTED_CHARS = 400  # of each earlier message: what a question refers to stands at the beginning


def rewritten(model: ChatModel, earlier: Conversation, question: str) -> str:
    """`question` as `model` puts it on its own, or as it is where the model gives nothing that could be a question."""
    lines = [
        f"{each.role.capitalize()}: {each.content[:MAX_QUOTED_CHARS]}" for each in earlier if each.role != "system"
    ]
    asked = "\n".join([*lines, f"Last question: {question}", "", REWRITE])
    prompt = Conversation()
    for role, content in (*_EXAMPLE, ("user", asked)):
        prompt = prompt.add(role, content)
    if model.count_tokens(prompt) + MAX_REWRITE_TOKENS > model.context_length:
        return question
    deltas = model.stream(prompt, Generation(max_tokens=MAX_REWRITE_TOKENS, sample=False))
    answer = "".join(delta.text for delta in deltas).strip().split("\n")[0].strip()
    return answer if 3 <= len(answer) <= 4 * len(question) + 200 else question

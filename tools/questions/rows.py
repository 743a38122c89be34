"""Questions to rows: what tools/evaluate.py rag asks, and what a model learns to answer from passages by.

Training rows are retrieval-aware (RAFT, Zhang et al. 2024, arXiv 2403.10131): the passage that answers stands among the
retriever's own near misses, in the very prompt that the bot would make; in some rows it is missing, and the reply says
that the documents do not say.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from chatbot.attribution.attributing import says_unknown
from chatbot.attribution.sentences import spans, without_citations
from chatbot.conversation import Conversation
from chatbot.prompting import SPOTLIGHT, PromptAssembler
from retrieval.types import Hit
from tools.generating.row_formats import written
from tools.questions.library import Library
from tools.questions.splitting import Split
from tools.questions.types import Question, stands_in
from tools.questions.unanswerable import DEPTH, answering, hidden, names_in, swapped
from training.data.rows import ChatRow

UNKNOWN = "The documents do not say."  # as chatbot/core.py begins, where nothing near enough is found
Style = Literal["short", "sentence"]
Order = Literal["random", "found"]
Twins = Mapping[str, frozenset[str]]


@dataclass(frozen=True)
class Making:
    """How rows are made. `k`: passages that a prompt shows. `style`: replies are the answer alone, or the passage's
    sentence that holds it. `order` of the passages: by chance, or as the search found them. `without_gold`: the share
    of training rows without the passage that answers; `unanswerable`: of test rows without an answer. `system`: the
    bot's own system text."""

    k: int = 1
    style: Style = "short"
    order: Order = "random"
    without_gold: float = 0.25
    unanswerable: float = 0.25
    system: str = ""
    seed: int = 0


def bot_prompt(question: str, hits: Sequence[Hit], system: str = "") -> Conversation:
    """What the bot gives the model for this question with these passages, where all of them fit its context."""
    assembler = PromptAssembler(lambda _: 0, 2, system, spotlight=SPOTLIGHT)
    return assembler.assemble(Conversation().add("user", question), hits, 1).conversation


def reply(question: Question, number: int, style: Style) -> str:
    """The answer to learn, citing its passage by the number under which it is shown."""
    answer, text = question.answers[0], question.passage.text
    if style == "sentence":
        sentences = (text[start:end] for start, end in spans(text))
        answer = next((each for each in sentences if stands_in(answer, each)), answer)
    return f"{without_citations(answer).rstrip(' .!?;:,')} [{number}]."


def training_rows(
    split: Split, library: Library, twins: Twins, making: Making, counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """Each training question with the passage that answers it, and so many of them again without it that these are
    `making.without_gold` of all; half of the latter as swapped questions, where one can be made. No row shows a passage
    that the test holds out. `counts` says what came of it and what was left out."""
    rng = random.Random(f"train/{making.seed}")  # noqa: S311  # no secret
    names = names_in(split.train)
    share = making.without_gold / (1 - making.without_gold)
    again = set(rng.sample(range(len(split.train)), min(len(split.train), round(share * len(split.train)))))
    for number, question in enumerate(split.train):
        hits = [hit for hit in library.search([question.text], DEPTH)[0] if not split.is_held_out(hit.passage.id)]
        if (row := _answered(question, hits, twins, making, rng)) is None:
            counts["training questions whose answer reads as a refusal"] += 1
        else:
            counts["rows with the passage that answers"] += 1
            yield row
        if number not in again:
            continue
        if other := swapped(question, names, library, rng) if number % 2 else None:
            found = library.search([other.text], DEPTH)[0]
            near = [hit for hit in found if not split.is_held_out(hit.passage.id)]
        else:
            near = _near_misses(question, hits, twins)
        if not near:
            counts["rows without the passage that answers, for which no other passage was found"] += 1
            continue
        counts["rows without the passage that answers"] += 1
        yield _row(other or hidden(question, ()), near[: making.k], UNKNOWN, making.system)


def _near_misses(question: Question, hits: Sequence[Hit], twins: Twins) -> list[Hit]:
    answers = answering(question, hits, twins[question.passage.id])
    return [hit for hit in hits if hit.passage.id not in answers]


def _answered(
    question: Question, hits: Sequence[Hit], twins: Twins, making: Making, rng: random.Random
) -> dict[str, Any] | None:
    """A row with the passage that answers, or None where its reply would pass for a refusal."""
    shown = _near_misses(question, hits, twins)[: making.k - 1]
    ranks = {hit.passage.id: rank for rank, hit in enumerate(hits)}
    own = ranks.get(question.passage.id, 0)
    found = sum(ranks[hit.passage.id] < own for hit in shown)
    place = rng.randrange(len(shown) + 1) if making.order == "random" else found
    shown.insert(place, Hit(question.passage, 1.0))
    said = reply(question, place + 1, making.style)
    return None if says_unknown(said) else _row(question, shown, said, making.system)


def _row(question: Question, hits: Sequence[Hit], said: str, system: str) -> dict[str, Any]:
    """A row of format `messages`, which says besides what it was made of."""
    (fields,) = written(ChatRow(bot_prompt(question.text, hits, system).add("assistant", said)), "messages")
    about = {"question": question.text, "kind": question.kind, "passages": [hit.passage.id for hit in hits]}
    return fields | {"about": about}


def evaluation_rows(
    split: Split, library: Library, twins: Twins, making: Making, outside: Sequence[str], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    """The test questions as tools/evaluate.py rag reads them; `making.unanswerable` of them made unanswerable, by turns
    swapped and hidden; then those that the user says are not answered."""
    rng = random.Random(f"test/{making.seed}")  # noqa: S311  # no secret
    names = names_in([*split.test, *split.train])
    num = round(making.unanswerable * len(split.test))
    turned = set(rng.sample(range(len(split.test)), num))
    for number, question in enumerate(split.test):
        made: Question | None = question
        if number in turned:
            made = swapped(question, names, library, rng) if number % 2 else None
            made = made or _hidden(question, library, twins, making.k)
        if made is None:
            counts["test questions that would find nothing else, left answerable"] += 1
        yield _test_row(made or question, counts)
    for text in outside:
        counts["outside questions"] += 1
        yield {"question": text, "answers": [], "kind": "outside"}


def _hidden(question: Question, library: Library, twins: Twins, k: int) -> Question | None:
    hits = library.search([question.text], DEPTH)[0]
    left = _near_misses(question, hits, twins)
    without = answering(question, hits, twins[question.passage.id])
    return hidden(question, without) if len(left) >= k else None


def _test_row(question: Question, counts: Counter[str]) -> dict[str, Any]:
    counts[f"{question.kind} questions"] += 1
    row: dict[str, Any] = {"question": question.text, "answers": list(question.answers), "kind": question.kind}
    if question.answers:
        row["passage"] = question.passage.id
    return row | ({"without": list(question.without)} if question.without else {})

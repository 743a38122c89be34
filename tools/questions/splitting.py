"""Questions into a test part and a training part that share no passage, no near duplicate, and where possible no
document."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.questions.types import Question, document_of

MIN_DOCUMENTS = 8  # from so many on, with no large one, documents stay whole


@dataclass(frozen=True)
class Split:
    """`by`: what stays whole, 'document' or 'passage'. `passages`: ids of all that answer test questions or say nearly
    the same; `documents`: those that stay whole and answer test questions."""

    test: tuple[Question, ...]
    train: tuple[Question, ...]
    by: str
    passages: frozenset[str]
    documents: frozenset[str]

    def is_held_out(self, passage_id: str) -> bool:
        """Whether a training row may not show this passage."""
        return passage_id in self.passages or document_of(passage_id) in self.documents


def split(questions: Sequence[Question], twins: Mapping[str, frozenset[str]], share: float, seed: int) -> Split:
    """`share` of the questions, or somewhat fewer, for the test. `twins`: for the id of each question's passage, the
    ids of those that say nearly the same. Raises ValueError where a part would be empty."""
    by = "document" if _has_documents(questions, share) else "passage"
    groups = _groups(questions, twins, by)
    random.Random(f"split/{seed}").shuffle(groups)  # noqa: S311  # no secret
    wanted, test, train = round(share * len(questions)), list[Question](), list[Question]()
    for group in groups:
        (test if len(test) + len(group) <= wanted else train).extend(group)
    if (share > 0 and not test) or (share < 1 and not train):
        raise ValueError(
            f"{len(questions):,} questions from {len(groups):,} groups of passages that belong together cannot be "
            f"split into test and training rows (--test-share {share}); make more (--num), or index more documents"
        )
    own = [question.passage.id for question in test]
    documents = map(document_of, own) if by == "document" else ()
    passages = frozenset(each for name in own for each in twins[name])
    return Split(tuple(test), tuple(train), by, passages, frozenset(documents))


def _has_documents(questions: Sequence[Question], share: float) -> bool:
    counts = Counter(document_of(each.passage.id) for each in questions)
    return len(counts) >= MIN_DOCUMENTS and max(counts.values()) <= max(1.0, share * len(questions))


def _groups(questions: Sequence[Question], twins: Mapping[str, frozenset[str]], by: str) -> list[list[Question]]:
    """Questions that belong together, joined over what they share (a union-find over names)."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    found: dict[str, list[Question]] = {}
    for question in questions:
        own = question.passage.id
        shared = [*twins[own], *([f"document {document_of(own)}"] if by == "document" else [])]
        for name in shared:
            parent[root(name)] = root(own)
    for question in questions:
        found.setdefault(root(question.passage.id), []).append(question)
    return list(found.values())

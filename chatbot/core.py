"""Bot: moderate -> retrieve -> assemble -> stream -> moderate. It holds no history: a conversation comes in each time.

`prepare` decides everything that can be decided before a token is generated, so that it can be looked at;
`stream` then generates; `reply` is both at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from chatbot.attribution.attributing import Attribution, Attributor
from chatbot.attribution.sentences import rewrite_cited
from chatbot.conversation import Conversation
from chatbot.engines.base import ChatModel, Delta, FinishReason, Generation, Usage
from chatbot.followups import is_follow_up, is_small_talk, rewritten
from chatbot.prompting import SPOTLIGHT, Prompt, PromptAssembler
from chatbot.streaming import sentences
from moderation.labels import INJECTION
from moderation.types import ACTIONS, Direction, Moderator, Verdict
from retrieval.passages import embedding_text
from retrieval.types import Encoder, Hit, Searcher

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Encode = Callable[[Sequence[str]], NDArray[np.float32]]
    Check = Callable[[Moderator, Sequence[str], Direction], list[Verdict]]

NOT_IN_DOCUMENTS = "The documents do not say. (No passage is close enough to the question.)"
WITHHELD = "The passages that were found seem to give orders to the model rather than information; they were not used."
NO_ROOM = "The passages that were found do not fit the model's context; lower --max-tokens."
NO_USAGE = Usage(0, 0)
DEFAULT_GENERATION = Generation()
NUM_CONTEXT_MESSAGES = 6  # how far back a follow-up question is searched with its conversation


@dataclass(frozen=True)
class Turn:
    """All that will happen, before a token is generated.

    Where `answer` is set no model runs: it is a refusal (`blocked`) or says that the documents do not answer.
    `conversation` is what came in, its newest message carrying the passages that go into the prompt. Where `plain`
    is set it is continued as it is, and no prompt is made. `verdict` is on what the user said, `screened` on each
    passage that was found; `withheld` are those that were blocked, and that the model is not shown.
    """

    conversation: Conversation
    generation: Generation
    prompt: Prompt | None = None
    verdict: Verdict | None = None
    answer: str | None = None
    blocked: bool = False
    plain: str | None = None
    screened: tuple[tuple[Hit, Verdict], ...] = ()

    @property
    def withheld(self) -> tuple[Hit, ...]:
        """The passages that were found and are kept from the model."""
        return tuple(hit for hit, verdict in self.screened if verdict.action == "block")

    @property
    def sources(self) -> tuple[Hit, ...]:
        """The passages that the model is shown, in the order of their numbers [1], [2], ..."""
        return self.prompt.used if self.prompt else ()


@dataclass(frozen=True)
class Reply:
    """A whole answer. `verdicts` maps a direction (input, output, document) to what moderation said, where it ran: of
    several passages the most severe. `withheld`: passages that were found and blocked; the model did not see them.
    `attribution`: for each sentence of a whole answer from passages, which of `sources` support it."""

    text: str
    sources: tuple[Hit, ...] = ()
    withheld: tuple[Hit, ...] = ()
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    usage: Usage = NO_USAGE
    finish_reason: FinishReason = "stop"
    blocked: bool = False
    attribution: tuple[Attribution, ...] = ()


@dataclass(frozen=True)
class Text:
    """A piece of the answer; the pieces of a stream, joined, are `Reply.text`."""

    text: str


@dataclass(frozen=True)
class Notice:
    """Something the user should know that is not part of the answer."""

    text: str


@dataclass(frozen=True)
class Done:
    """The end of a stream."""

    reply: Reply


Event = Text | Notice | Done


@dataclass(frozen=True)
class Bot:
    """A chat model with what surrounds it. `retriever` and `moderator` are optional.

    `k` passages are looked for. A search whose confidence is below `floor` (None: the index's own, 0: never) is
    answered with `NOT_IN_DOCUMENTS`, without running the model. `rewrite`: a follow-up question is searched for as the
    model puts it, on its own, instead of together with the conversation. `encode`: what the retriever encodes with,
    where the moderator reads the same vectors; since it remembers the last texts, one encoding serves both.
    `attribution`: the sentences of an answer are compared with the passages, and wrong citations corrected.
    """

    model: ChatModel
    assembler: PromptAssembler
    retriever: Searcher | None = None
    moderator: Moderator | None = None
    generation: Generation = DEFAULT_GENERATION
    k: int = 3
    floor: float | None = None
    rewrite: bool = False
    encode: Encode | None = None
    attribution: bool = True

    def __post_init__(self) -> None:
        if self.floor is not None and not math.isfinite(self.floor):
            raise ValueError(f"floor={self.floor} must be a finite number")
        if self.k < 1:
            raise ValueError(f"k={self.k} must be at least 1")

    def searching(self, retriever: Searcher, encode: Encode | None = None) -> Bot:
        """This bot, answering from `retriever`; its prompts say what passages are."""
        spotlit = replace(self.assembler, spotlight=SPOTLIGHT)
        return replace(self, retriever=retriever, assembler=spotlit, encode=encode or self.encode)

    def prepare(self, conversation: Conversation, moderate_all: bool = False) -> Turn:
        """Moderate the newest message, retrieve for it, and assemble the prompt.

        `moderate_all`: every message, for conversations whose earlier turns were not moderated here.
        Raises ValueError where the newest message is not the user's or nothing can fit.
        """
        checked = conversation.messages if moderate_all else (conversation.last,)
        turn = self._judge(conversation, [message.content for message in checked])
        if turn.blocked:
            return turn
        hits: list[Hit] = []
        if self.retriever is not None and not is_small_talk(conversation.last.content):
            hits = self._search(self.retriever, conversation)
            if not hits:
                return replace(turn, answer=NOT_IN_DOCUMENTS)
            turn = replace(turn, screened=self._screen(hits))
            withheld = turn.withheld
            if not (hits := [hit for hit in hits if hit not in withheld]):
                return replace(turn, answer=WITHHELD)
        prompt = self.assembler.assemble(conversation, hits, self.generation.max_tokens)
        if hits and not prompt.used and not self._has_room_for(hits[0]):
            return replace(turn, answer=NO_ROOM)
        passages = tuple(hit.passage for hit in prompt.used)
        return replace(turn, conversation=conversation.with_last(passages=passages), prompt=prompt)

    def prepare_plain(self, text: str) -> Turn:
        """Moderate `text`, which `stream` will then continue as it is: no template, no history, no documents."""
        turn = self._judge(Conversation().add("user", text), [text])
        return turn if turn.blocked else replace(turn, plain=text)

    def _judge(self, conversation: Conversation, texts: Sequence[str]) -> Turn:
        """A turn that says no more than what moderation thinks of `texts`: the most severe verdict on any."""
        if self.moderator is None:
            return Turn(conversation, self.generation)
        verdict = _most_severe(self._check(self.moderator, texts, "input"))
        if verdict.action == "block":
            refusal = self.moderator.refusal
            return Turn(conversation, self.generation, verdict=verdict, answer=refusal, blocked=True)
        return Turn(conversation, self.generation, verdict=verdict)

    def _check(self, moderator: Moderator, texts: Sequence[str], direction: Direction) -> list[Verdict]:
        vectors = None if self.encode is None else self.encode(texts)
        return moderator.check(texts, direction, vectors)

    def _screen(self, hits: Sequence[Hit]) -> tuple[tuple[Hit, Verdict], ...]:
        """What the policy says of each passage: of the score it got when it was indexed, where it got one."""
        if self.moderator is None:
            return ()
        if not self.moderator.can_flag("document"):  # judging passages now would be idle
            hits = [hit for hit in hits if hit.passage.injection is not None]
        unknown = [hit for hit in hits if hit.passage.injection is None]
        fresh = iter(self._check(self.moderator, [embedding_text(hit.passage) for hit in unknown], "document"))
        judged = self.moderator.judge
        return tuple(
            (hit, next(fresh) if (score := hit.passage.injection) is None else judged({INJECTION: score}, "document"))
            for hit in hits
        )

    def _has_room_for(self, hit: Hit) -> bool:
        """Whether a passage fits beside a short question. Where it does, only a message that is long itself kept it
        out, and that is answered without passages, which the notice says."""
        asked = Conversation().add("user", "?")
        return bool(self.assembler.assemble(asked, [hit], self.generation.max_tokens).used)

    def _search(self, retriever: Searcher, conversation: Conversation) -> list[Hit]:
        """Hits best first, none where the index does not answer."""
        question = conversation.last.content
        earlier = conversation.messages[:-1][-NUM_CONTEXT_MESSAGES:]
        # A question that stands alone is searched for alone: the conversation would lend it hits that are not its own.
        said = [message.content for message in earlier if message.role == "user"] if is_follow_up(question) else []
        if said and self.rewrite:
            question, said = rewritten(self.model, Conversation(earlier), question), []
        hits = retriever.search([question], self.k, ["\n".join(said)])[0]
        floor = retriever.floor if self.floor is None else self.floor
        return hits if floor == 0 or (hits and hits[0].confidence >= floor) else []

    def stream(self, turn: Turn) -> Iterator[Event]:
        """Generate the answer. Closing the iterator stops the model; `Done` comes last otherwise."""
        verdicts = {"input": turn.verdict} if turn.verdict else {}
        yield from _notices("your message", turn.verdict)
        if turn.screened:
            verdicts["document"] = _most_severe([verdict for _, verdict in turn.screened])
            for hit, verdict in turn.screened:
                yield from _notices(f"passage {hit.passage.location}", verdict)
        if turn.prompt is not None and str(turn.prompt.dropped):
            yield Notice(str(turn.prompt.dropped))
        if turn.plain is not None:
            deltas = self.model.complete(turn.plain, turn.generation)
        elif turn.prompt is not None:
            deltas = self.model.stream(turn.prompt.conversation, turn.generation)
        else:
            fixed = turn.answer or ""
            yield Text(fixed)
            yield Done(Reply(fixed, (), turn.withheld, verdicts, blocked=turn.blocked))
            return
        attributor = self._attributor(turn)
        # Where tokens are told one by one, the text is what they make.
        rewrite = attributor.corrected if attributor and turn.generation.logprobs is None else None
        answer = _Answer(deltas, self.moderator, self._check, turn.plain is None, rewrite)
        yield from answer.events()
        if answer.verdict:
            verdicts["output"] = answer.verdict
        yield from _notices("the answer", answer.verdict)
        usage = answer.last.usage or NO_USAGE
        reason = answer.last.finish_reason or "stop"
        supported = attributor.attribute(answer.text) if attributor and not answer.blocked else ()
        yield Done(Reply(answer.text, turn.sources, turn.withheld, verdicts, usage, reason, answer.blocked, supported))

    def _attributor(self, turn: Turn) -> Attributor | None:
        """What compares the answer with the passages, where there are any."""
        if not (self.attribution and turn.sources):
            return None
        encoder: Encoder | None = getattr(self.retriever, "encoder", None)
        return Attributor([hit.passage for hit in turn.sources], encoder.encode if encoder else None)

    def reply(self, conversation: Conversation) -> Reply:
        """The whole answer at once; the same text as the stream's."""
        for event in self.stream(self.prepare(conversation)):
            if isinstance(event, Done):
                return event.reply
        raise RuntimeError("the stream ended without Done")


class _Answer:
    """One answer on its way out: collects the text, and lets nothing pass that moderation may still block. `rewrite`
    corrects the citations of a sentence."""

    def __init__(
        self,
        deltas: Iterator[Delta],
        moderator: Moderator | None,
        check: Check,
        trim: bool,
        rewrite: Callable[[str], str] | None,
    ) -> None:
        self.text = ""
        self.last = Delta("")
        self.verdict: Verdict | None = None
        self.blocked = False
        self._deltas, self._moderator, self._check, self._trim = deltas, moderator, check, trim
        self._rewrite = rewrite

    def events(self) -> Iterator[Text]:
        """The text that may be shown."""
        if self._moderator is None:
            yield from self._pass(self._pieces())
        elif self._moderator.can_block("output"):
            yield from self._checked(self._moderator)
        else:
            yield from self._pass(self._pieces())
            self.verdict = self._check(self._moderator, [self.text], "output")[0]

    def _pass(self, pieces: Iterator[str]) -> Iterator[Text]:
        for piece in pieces:
            self.text += piece
            yield Text(piece)

    def _checked(self, moderator: Moderator) -> Iterator[Text]:
        """Sentence-sized pieces, each judged together with all that came before it, before it is shown."""
        for piece in sentences(self._pieces()):
            self.verdict = self._check(moderator, [self.text + piece], "output")[0]
            if self.verdict.action == "block":
                self.blocked = True
                refusal = f"\n\n{moderator.refusal}" if self.text else moderator.refusal
                yield from self._pass(iter([refusal]))
                return
            yield from self._pass(iter([piece]))

    def _pieces(self) -> Iterator[str]:
        """The text as it may stay, not yet judged."""
        return rewrite_cited(self._said(), self._rewrite) if self._rewrite else self._said()

    def _said(self) -> Iterator[str]:
        """Non-empty text; when trimming, without the white space that many templates leave before an answer."""
        started = not self._trim
        for delta in self._deltas:
            self.last = delta
            piece = delta.text if started else delta.text.lstrip()
            if piece:
                started = True
                yield piece


def _most_severe(verdicts: Sequence[Verdict]) -> Verdict:
    return max(verdicts, key=lambda each: (ACTIONS.index(each.action), each.flagged))


def _notices(what: str, verdict: Verdict | None) -> Iterator[Notice]:
    if verdict is None or not (verdict.flagged or verdict.error):
        return
    if verdict.error:
        yield Notice(f"moderation of {what} failed: {verdict.error}")
    if verdict.labels and verdict.action != "allow":
        scored = ", ".join(f"{label} {verdict.scores.get(label) or 0:.2f}" for label in verdict.labels)
        yield Notice(f"moderation: {what}: {verdict.action} ({scored})")

"""From a stream of token ids to a stream of text that can be shown: pure functions over iterators.

`text_deltas` never cuts a character in two; `until_stop` never lets a part of a stop string out.
Both give, joined, exactly the text that the whole would have given at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


def text_deltas(token_ids: Iterable[int], decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """One piece of text per token id ('' while a character is unfinished), then the rest.

    Joined they equal `decode` of all ids. (One exception: where bytes form no characters, a byte-fallback decoder
    takes whole characters before them back, which were shown already.) Only a short window of ids is decoded each
    time, so that the cost of a token does not grow with the answer; the window starts with ids already shown, since
    decoders treat the first token of a text differently (a leading space, a SentencePiece prefix).
    """
    ids: list[int] = []
    window, shown = 0, 0  # ids[window:shown] were shown already and are context for decoding ids[shown:]
    for token_id in token_ids:
        ids.append(token_id)
        before, now = decode(ids[window:shown]), decode(ids[window:])
        if len(now) > len(before) and not now.endswith(UNFINISHED):
            yield now[len(before) :]
            window, shown = shown, len(ids)
        else:
            yield ""
    rest = decode(ids[window:])[len(decode(ids[window:shown])) :]
    if rest:
        yield rest


def until_stop(pieces: Iterable[str], stops: Sequence[str]) -> Generator[str, None, str | None]:
    """Pass text on up to the stop string that is complete first, which is not passed on.

    A stop string may straddle any number of pieces, so what might begin one is held back; how the text is cut into
    pieces changes nothing. Ends the iteration at the stop; the return value of the generator is that stop string, or
    None where the pieces ended by themselves.
    """
    stops = [stop for stop in stops if stop]
    held = ""
    for piece in pieces:
        held += piece
        if (found := _first_complete(held, stops)) is not None:
            place, stop = found
            yield held[:place]
            return stop
        keep = _possible_start(held, stops)
        yield held[: len(held) - keep]
        held = held[len(held) - keep :]
    if held:
        yield held
    return None


class UntilStop:
    """Iterates over `until_stop(pieces, stops)`, empty pieces too; afterwards `stopped_by` is the stop string that
    ended it, or None."""

    def __init__(self, pieces: Iterable[str], stops: Sequence[str]) -> None:
        self.stopped_by: str | None = None
        self._pieces, self._stops = pieces, stops

    def __iter__(self) -> Iterator[str]:
        self.stopped_by = yield from until_stop(self._pieces, self._stops)


def _first_complete(text: str, stops: Sequence[str]) -> tuple[int, str] | None:
    """Where the stop string begins that ends first (of several that end there, the longest), and which it is."""
    found = [(place, stop) for stop in stops if (place := text.find(stop)) >= 0]
    return min(found, key=lambda each: (each[0] + len(each[1]), each[0])) if found else None


def _possible_start(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that is a proper beginning of a stop string."""
    longest = max((len(stop) for stop in stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-length:]) for stop in stops):
            return length
    return 0


def sentences(pieces: Iterable[str], minimum: int = 40) -> Iterator[str]:
    """Regroup a stream into sentence-sized pieces (for moderation before showing); joined they are the same text.

    A piece ends after `.`, `!`, `?` or their CJK forms followed by space, or after a line break, and has at least
    `minimum` characters unless it is the last.
    """
    held = ""
    for piece in pieces:
        held += piece
        while (cut := _sentence_end(held, minimum)) is not None:
            yield held[:cut]
            held = held[cut:]
    if held:
        yield held


def _sentence_end(text: str, minimum: int) -> int | None:
    for place in range(max(minimum - 1, 0), len(text)):
        char = text[place]
        if char in "\n。！？" or (char.isspace() and place > 0 and text[place - 1] in ".!?…"):
            return place + 1
    return None

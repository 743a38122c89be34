"""Attribution: what hand-made passages support; citations corrected; streams cut anywhere come out alike."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.attribution.attributing import THRESHOLD, Attributor
from chatbot.attribution.facts import facts
from chatbot.attribution.sentences import citations, rewrite_cited, spans, with_citations
from chatbot.conversation import Conversation
from chatbot.core import Bot, Done, Text
from chatbot.engines.base import Delta, Generation
from chatbot.prompting import PromptAssembler
from chatbot.shell import unsupported_line
from retrieval.types import Hit, Passage

ZURICH = (
    "Zurich is the largest city in Switzerland and has more than 400,000 inhabitants. It joined the Swiss "
    "Confederation in 1351. The windows of the Fraumünster were made by Marc Chagall in 1970. It is not the capital."
)
LISBON = "Lisbon is the capital of Portugal. An earthquake struck it on 1 November 1755 and killed 30,000 people."
PASSAGES = (Passage("a", ZURICH, "Zurich", "z.md", 1, 3), Passage("b", LISBON, "Lisbon", "l.md", 1, 3))
PIECES = (
    "Zurich",
    " [1]",
    "[2]",
    "[9]",
    ". ",
    "\n",
    " joined",
    " in 1351",
    "[",
    "]",
    "2",
    "```",
    " Dr. ",
    "? ",
    "é",
    "- ",
    ", ",
)


def passages_for(sentence: str) -> tuple[int, ...]:
    (found,) = Attributor(PASSAGES).attribute(sentence)
    return found.passages


@pytest.mark.parametrize(
    ("sentence", "right"),
    [
        ("Zurich joined the Confederation in 1351.", (1,)),
        ("The largest city in Switzerland has over 400000 inhabitants.", (1,)),
        ("Marc Chagall made the windows of the Fraumünster.", (1,)),
        ("The capital of Portugal is Lisbon.", (2,)),
        ("Thirty thousand people died in the earthquake of November 1755.", (2,)),
        ("The earthquake killed 30 thousand people.", (2,)),
        ("Zurich joined the Confederation in 1352.", ()),
        ("Zurich joined the Confederation in 1970.", ()),  # a number of the passage, but another one's
        ("Pablo Picasso made the windows of the Fraumünster.", ()),
        ("Zurich is the capital.", ()),
        ("Zurich is not the largest city in Switzerland.", ()),
        ("Lisbon isn't the capital of Portugal.", ()),
        ("Sourdough needs flour, water and time.", ()),
    ],
)
def test_what_hand_made_passages_support(sentence, right):
    assert passages_for(sentence) == right


def test_an_attribution_says_where_and_why():
    answer = "Zurich joined in 1351. It has 12 bridges [1].\nIs it big? I do not know."
    first, second = Attributor(PASSAGES).attribute(answer)
    assert answer[first.start : first.end] == first.text == "Zurich joined in 1351."
    assert answer[second.start : second.end] == second.text == "It has 12 bridges [1]."
    assert (first.supported, first.reason) == (True, "")
    assert first.score >= THRESHOLD
    assert (second.supported, second.score, second.cited) == (False, 0.0, (1,))
    assert "'12'" in second.reason


def test_without_passages_nothing_is_said():
    assert Attributor(()).attribute("Zurich is big.") == ()


@pytest.mark.parametrize(
    ("said", "corrected"),
    [
        ("Zurich joined the Confederation in 1351 [1].", "Zurich joined the Confederation in 1351 [1]."),
        ("Zurich joined the Confederation in 1351 [2].", "Zurich joined the Confederation in 1351 [1]."),
        ("Zurich joined the Confederation in 1351 [1][2].", "Zurich joined the Confederation in 1351 [1]."),
        ("Zurich joined the Confederation in 1351 [7].", "Zurich joined the Confederation in 1351 [1]."),
        ("Zurich joined the Confederation in 1999 [1].", "Zurich joined the Confederation in 1999."),
        ("Lisbon is the capital of Portugal. [1]", "Lisbon is the capital of Portugal. [2]"),
        ("Zurich joined the Swiss Confederation in 1351, and an earthquake struck Lisbon in 1755 [1, 2].",) * 2,
        ("Is Zurich big [1]?", "Is Zurich big [1]?"),
        ("Is Zurich big [3]?", "Is Zurich big?"),
        ("No citation, and see a[i] too.",) * 2,
    ],
)
def test_a_wrong_citation_is_corrected_or_removed(said, corrected):
    assert Attributor(PASSAGES).corrected(said) == corrected


def test_an_encoder_vouches_for_other_words_but_not_for_other_numbers():
    def alike(texts):
        return np.tile(np.array([[1.0, 0.0]], np.float32), (len(texts), 1))

    def unlike(texts):
        return np.array([[1.0, 0.0]] if len(texts) == 1 else [[0.0, 1.0]] * len(texts), np.float32)

    sentence = "A metropolis beside an alpine shoreline."
    assert not Attributor(PASSAGES).attribute(sentence)[0].supported
    assert not Attributor(PASSAGES, unlike).attribute(sentence)[0].supported
    assert Attributor(PASSAGES, alike).attribute(sentence)[0].supported
    assert not Attributor(PASSAGES, alike).attribute("It joined in 1352.")[0].supported


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,000 and 1000.50 in the 1990s, the 3rd of 12", ["1000", "1000.5", "1990", "3", "12"]),
        ("two million, 1.5 million, 30 thousand, one day", ["2000000", "1500000", "30000"]),
        ("1914–1918", ["1914", "1918"]),
    ],
)
def test_numbers_are_one_however_they_are_written(text, numbers):
    assert [each.term for each in facts(text) if each.kind == "number"] == numbers


def test_sentences_of_an_answer():
    text = "Dr. Who met St. Paul. He left.[1] Then:\n\n- One 3.5 m\n2. Two! \n```\nx = a[1]. Y\n```\n“Quoted.” End"
    found = [text[start:end] for start, end in spans(text)]
    assert found == ["Dr. Who met St. Paul.", "He left.[1]", "Then:", "One 3.5 m", "Two!", "“Quoted.”", "End"]


def test_citations_are_read_and_written():
    assert citations("A [1], b [2, 3][1].") == (1, 2, 3)
    assert with_citations("A [1] b [2].", [3]) == "A [3] b."
    assert with_citations("A [1].", []) == "A."


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.integers(1, 9))
def test_a_stream_is_rewritten_alike_however_it_is_cut(parts, size):
    text = "".join(parts)
    corrected = Attributor(PASSAGES).corrected
    whole = "".join(rewrite_cited([text], corrected))
    assert "".join(rewrite_cited([text[i : i + size] for i in range(0, len(text), size)], corrected)) == whole
    assert "".join(rewrite_cited(list(text), lambda sentence: sentence)) == text


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_has_an_attribution(answer, passage):
    for each in Attributor([Passage("a", passage, "T", "s", 1, 1)]).attribute(answer):
        assert each.text == answer[each.start : each.end]
        assert 0 <= each.score <= 1
        assert each.supported == (each.reason == "") == (each.score >= THRESHOLD)


class _Says:
    """A chat model that says one thing, a character at a time."""

    name, context_length = "says", 4096

    def __init__(self, text: str) -> None:
        self.text = text

    def count_tokens(self, conversation: Conversation) -> int:
        return 10

    def stream(self, conversation: Conversation, generation: Generation):
        yield from map(Delta, self.text)


class _Finds:
    floor = 0.0

    def search(self, queries, k, contexts=None):
        return [[Hit(each, 1.0) for each in PASSAGES]]


def bot_that_says(text: str, **settings) -> Bot:
    model = _Says(text)
    return Bot(model, PromptAssembler(model.count_tokens, 4096), _Finds(), **settings)


def test_the_bot_corrects_as_it_streams_and_attributes():
    bot = bot_that_says("Zurich joined in 1351 [2]. It has 12 bridges [1]. Good.")
    events = list(bot.stream(bot.prepare(Conversation().add("user", "Tell me of Zurich"))))
    reply = events[-1].reply
    assert isinstance(events[-1], Done)
    assert reply.text == "Zurich joined in 1351 [1]. It has 12 bridges. Good."
    assert "".join(each.text for each in events if isinstance(each, Text)) == reply.text
    assert [each.supported for each in reply.attribution][:2] == [True, False]
    assert unsupported_line(reply).startswith("? 2 of 3 sentences unsupported: \"It has 12 bridges.\" ('12' ")


@pytest.mark.parametrize("settings", [{"attribution": False}, {"generation": Generation(logprobs=1)}])
def test_a_text_that_must_stay_stays(settings):
    said = "Zurich joined in 1351 [2]."
    reply = bot_that_says(said, **settings).reply(Conversation().add("user", "Tell me of Zurich"))
    assert reply.text == said
    assert bool(reply.attribution) == settings.get("attribution", True)


def test_importing_it_loads_nothing_heavy():
    code = "import sys, chatbot.attribution.attributing; print({'torch', 'numpy', 'Stemmer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"

"""Sentences that the sources do not support: found in the shown answer, underlined, and nothing else changed."""

from __future__ import annotations

from page_browser import Reader
from page_fakes import Answer, source
from test_web_scripts import pytestmark as needs_node
from test_web_scripts import run_node

BODY = """
const { rangesOf } = await import_("attribution.js");
const [texts, sentences] = values;
return rangesOf(texts, sentences).map(({ node, start, end, sentence }) => [sentence, texts[node].slice(start, end)]);
"""


def ranges(texts: list[str], *sentences: str) -> list[list[object]]:
    found: list[list[object]] = run_node(BODY, texts, list(sentences))
    return found


@needs_node
def test_sentences_are_found_whatever_markup_is_around_them():
    texts = ["It was opened in ", "1932", ". It has ", "nine", " lanes 😀é."]
    assert ranges(texts, "It has **nine** lanes 😀é [1].") == [[0, "It has"], [0, "nine"], [0, "lanes 😀é"]]
    assert ranges(["Yes. Yes. No."], "Yes.", "Yes.", "No.") == [[0, "Yes"], [1, "Yes"], [2, "No"]]
    assert ranges(["Something else."], "It has nine lanes.", "", "[1]") == []


def test_an_unsupported_sentence_is_underlined_with_its_reason(reader: Reader):
    judged = [
        {"text": "It was opened in 1932 [1].", "supported": True, "reason": ""},
        {"text": "It has <b>nine</b> lanes.", "supported": False, "reason": "'<i>nine</i>' does not stand there"},
    ]
    pieces = ("It was opened in **1932** [1]. ", "It has <b>nine</b> lanes.")
    reader.api.script = [Answer(pieces, [source()], attribution=judged)]
    reader.ask("How wide is it?")
    (marked,) = reader.all(".unsupported")
    assert marked.text == "It has <b>nine</b> lanes"
    assert marked.get_attribute("title") == "Not supported by the sources: '<i>nine</i>' does not stand there"
    assert "1 of 2 sentences" in reader.one(".notes-plain").text
    assert reader.all(".citations .cite")

"""The page's scripts without a browser: their plain functions, run by Node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.conversation import load_conversations

STATIC = Path(__file__).resolve().parents[3] / "chatbot" / "web" / "static"
NODE = shutil.which("node")
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node.js")

# The least of a document that the scripts need: elements with attributes and children, text as text.
DOCUMENT = """
class Node_ {
  constructor(tag) { Object.assign(this, { tag, attributes: {}, childNodes: [], style: {} }); }
  setAttribute(name, value) { this.attributes[name] = value; }
  removeAttribute(name) { delete this.attributes[name]; }
  addEventListener() {}
  append(...nodes) { for (const node of nodes) { this.childNodes.push(node); if (node.tag) node.parent = this; } }
  get lastChild() { const node = this.childNodes.at(-1); return { remove: () => this.childNodes.pop() }; }
}
globalThis.document = { createElement: (tag) => new Node_(tag), createElementNS: (_, tag) => new Node_(tag) };
const shown = (node) => typeof node === "string" ? node
  : [node.tag, ...Object.keys(node.attributes).length ? [node.attributes] : [], ...node.childNodes.map(shown)];
"""


def run_node(body: str, *values: Any) -> Any:
    """What the body returns; it has `values` and an `import_` of the page's scripts."""
    script = f"""
    {DOCUMENT}
    const import_ = (name) => import({json.dumps(STATIC.as_uri() + "/")} + name);
    const values = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
    (async () => {{ {body} }})().then((result) => console.log(JSON.stringify(result ?? null)));
    """
    done = subprocess.run(
        [str(NODE), "--no-warnings", "-e", script],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rendered(*texts: str) -> list[Any]:
    """The elements that each text becomes: [tag, attributes (if any), children ...]; `dir` is left out."""
    body = """
    const { render } = await import_("markdown.js");
    const cite = (number) => number <= 2 ? new Node_(`cite-${number}`) : null;
    return values.map((text) => {
      const container = new Node_("div");
      render(container, text, cite);
      return container.childNodes.map(shown);
    });
    """
    return without_direction(run_node(body, *texts))


def without_direction(value: Any) -> Any:
    if isinstance(value, list):
        kept = [without_direction(each) for each in value]
        return [each for each in kept if each not in ({}, {"dir": "auto"})]
    if isinstance(value, dict):
        return {key: each for key, each in value.items() if key != "dir"}
    return value


@pytest.mark.parametrize("path", sorted(STATIC.glob("*.js")), ids=lambda path: path.name)
def test_scripts_are_sound(path):
    done = subprocess.run([str(NODE), "--check", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


CODE = {"tabindex": "0", "aria-label": "Code"}
CITED = {"class": "citations"}
ADDRESS = {"class": "address"}
MARKDOWN: dict[str, list[Any]] = {
    "": [],
    "One.\nstill one\n\nTwo.": [["p", "One.\nstill one"], ["p", "Two."]],
    "a **b** *c* `d*e*`": [["p", "a ", ["strong", "b"], " ", ["em", "c"], " ", ["code", "d*e*"]]],
    "***x***": [["p", ["strong", ["em", "x"]]]],
    "**open and 2 * 3 * 4 _snake_case_x": [["p", "**", "open and 2 * 3 * 4 ", "_", "snake_case_x"]],
    "# Title #\ntext": [["p", {"class": "heading"}, "Title"], ["p", "text"]],
    "- a\n- b\n  - c\n\nafter": [
        ["ul", ["li", ["p", "a"]], ["li", ["p", "b"], ["ul", ["li", ["p", "c"]]]]],
        ["p", "after"],
    ],
    "3. c\n4. d": [["ol", {"start": "3"}, ["li", ["p", "c"]], ["li", ["p", "d"]]]],
    "It was in\n1932. Then": [["p", "It was in\n1932. Then"]],
    "```sh\n**x** <b>\n```\nend": [["pre", CODE, ["code", "**x** <b>"]], ["p", "end"]],
    "```\nnot yet closed": [["pre", CODE, ["code", "not yet closed"]]],
    "[1], [1, 2], [3], [1, 3]": [
        ["p", ["span", CITED, ["cite-1"]], ", ", ["span", CITED, ["cite-1"], ["cite-2"]], ", ", "[3]", ", ", "[1, 3]"]
    ],
    "`[1]` \\[1\\] \\*no\\*": [["p", ["code", "[1]"], " [1] *no*"]],
    "[text](javascript:alert)": [["p", ["span", "text (", ["span", ADDRESS, "javascript:alert"], ")"]]],
    "![cat](https://x.example/c.png)": [
        ["p", ["span", "image, not shown: cat (", ["span", ADDRESS, "https://x.example/c.png"], ")"]]
    ],
    "<img src=x onerror=alert(1)><script>x</script>": [["p", "<img src=x onerror=alert(1)><script>x</script>"]],
}


def test_markdown_becomes_these_elements():
    for text, found in zip(MARKDOWN, rendered(*MARKDOWN), strict=True):
        assert found == MARKDOWN[text], text


def words(node: Any) -> str:
    if isinstance(node, str):
        return node
    return "".join(words(each) for each in node[1:] if not isinstance(each, dict))


def tags(node: Any) -> set[str]:
    return {node[0]}.union(*map(tags, node[1:])) if isinstance(node, list) else set()


def test_whatever_the_text_only_these_elements_come_out_and_no_letter_is_lost():
    pieces = ["*", "**", "_", "`", "```", "[", "]", "(", ")", "!", "1", ",", "\\", "\n", "\n\n", " ", "  ", "- ", "1. "]
    pieces += ["# ", "a", "ß", "<b>", "&lt;", "http://x", "~~~", "\t", "+ "]
    texts: list[str] = []

    @settings(max_examples=400, deadline=None, database=None)
    @given(st.lists(st.sampled_from(pieces), max_size=40).map("".join))
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    for text, blocks in zip(texts, rendered(*texts), strict=True):
        known = {"p", "pre", "code", "ul", "ol", "li", "strong", "em", "span", "cite-1", "cite-2"}
        assert set().union(*map(tags, blocks)) <= known, text
        shown = "".join(words(block) for block in blocks)
        for letter in "aß":
            # The name of a code block's language is not shown.
            fences = sum(line.count(letter) for line in text.split("\n") if "```" in line or "~~~" in line)
            assert text.count(letter) - fences <= shown.count(letter) <= text.count(letter), text


def test_a_growing_answer_ends_as_the_whole_one():
    text = "Intro **b**\n\n1. one\n2. two\n   - deep\n\n```py\nx = [1]\n\ny\n```\n\nEnd [1] *a*"
    body = """
    const { render } = await import_("markdown.js");
    const [text] = values, growing = new Node_("div"), whole = new Node_("div"), kept = [];
    for (let end = 0; end <= text.length; end += 3) {
      render(growing, text.slice(0, end));
      kept.push(growing.childNodes[0]);
    }
    render(growing, text); render(whole, text);
    return [growing.childNodes.map(shown), whole.childNodes.map(shown), new Set(kept.slice(6)).size];
    """
    growing, whole, firsts = run_node(body, text)
    assert growing == whole
    assert firsts == 1  # a paragraph that is there stays the same element


def test_hostile_texts_take_no_longer_than_their_length():
    body = """
    const { parse } = await import_("markdown.js");
    const time = (text) => { const start = performance.now(); parse(text); return performance.now() - start; };
    const worst = {};
    for (const piece of values) { time(piece.repeat(1000)); worst[piece] = time(piece.repeat(40000 / piece.length)); }
    return worst;
    """
    pieces = [
        "*",
        "_",
        "`",
        "[",
        "![",
        "**a ",
        "[1](",
        "`a``b```",
        "\\",
        "- ",
        "> ",
        "1. ",
        "#",
        "```\n",
        " - a\n",
        "\n",
    ]
    pieces += ["- a\n\n", "[1,", "*a _b ", "**a* ", "~~~", "  " * 20 + "- x\n"]
    slow = {piece: taken for piece, taken in run_node(body, *pieces).items() if taken > 2000}
    assert slow == {}  # a quadratic step takes minutes here


@settings(max_examples=1, deadline=None)
@given(st.data())
def test_events_are_the_same_however_the_stream_is_cut(data):
    events = data.draw(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20), min_size=5))
    events = [event for event in events if event] or ["x"]
    stream = ": ping\n\n" + "".join(f"data: {event}\r\n\r\n" for event in events[:2])
    stream += "".join(f"id: 1\ndata: {event}\n\n" for event in events[2:]) + "data:a\ndata: b\n\ndata: unfinished"
    body = """
    const { EventReader } = await import_("events.js"), [stream] = values;
    return Array.from({ length: 40 }, (_, step) => {
      const reader = new EventReader(), found = [], size = step + 1;
      for (let at = 0; at < stream.length; at += size) found.push(...reader.read(stream.slice(at, at + size)));
      return found;
    });
    """
    for found in run_node(body, stream):
        assert found == [*events, "a\nb"]


SOURCE = {"number": 1, "location": "a.md:3", "score": 0.5, "id": "a", "text": "T", "title": "A", "source": "a.md"}
SOURCE |= {"start": 3, "end": 4, "unit": "line", "meta": {"year": 1932}, "injection": None}


def test_an_exported_chat_is_one_that_parley_loads(tmp_path):
    verdict = {"flagged": True, "action": "warn", "scores": {"insult": 0.8}, "labels": ["insult"], "error": None}
    body = """
    const { newChat, newExchange, toRecord } = await import_("chats.js");
    const chat = newChat(), [sources, verdicts] = values;
    chat.exchanges.push(Object.assign(newExchange("Q 1"), { answer: "A 1", state: "done", sources, verdicts }));
    chat.exchanges.push(Object.assign(newExchange("Q 2"), { state: "failed" }));
    return toRecord(chat);
    """
    record = run_node(body, [SOURCE], {"input": verdict})
    (tmp_path / "chat.json").write_text(json.dumps(record) + "\n", encoding="utf-8")
    (conversation,) = load_conversations(tmp_path / "chat.json")
    assert conversation.to_dicts() == [
        {"role": "user", "content": "Q 1"},
        {"role": "assistant", "content": "A 1"},
        {"role": "user", "content": "Q 2"},
    ]
    (passage,) = conversation.messages[0].passages
    assert (passage.location, passage.meta, passage.text) == ("a.md:3", {"year": 1932}, "T")
    assert dict(conversation.messages[1].verdicts)["input"].labels == ("insult",)


def test_blocked_and_unanswered_exchanges_are_not_sent_again():
    body = """
    const { newChat, newExchange, messagesFor } = await import_("chats.js");
    const chat = newChat();
    const add = (question, rest) => chat.exchanges.push(Object.assign(newExchange(question), rest));
    add("fine", { answer: "yes", state: "done" });
    add("bad", { answer: "refused", state: "done", finish: "content_filter" });
    add("lost", { state: "failed" });
    add("cut", { answer: "half", state: "stopped" });
    add("now", {});
    add("later", { answer: "no", state: "done" });
    return messagesFor(chat, chat.exchanges[4]).map((each) => each.content);
    """
    assert run_node(body) == ["fine", "yes", "cut", "half", "now"]


def test_a_saved_chat_is_read_with_care():
    good = {"id": "x", "created": "c", "updated": "u", "exchanges": [{"question": "Q", "answer": "A", "state": "done"}]}
    odd = {
        "id": "y",
        "exchanges": [
            {"question": "Q", "answer": 7, "sources": [None, SOURCE], "notices": "text", "state": "?", "verdicts": []},
            {"question": "half", "answer": "ha", "state": "writing"},
            {"question": "none", "state": "waiting"},
            {"question": 7},
            None,
        ],
    }
    texts = [json.dumps(good), json.dumps(odd), "{", "null", "[]", '{"id": 1, "exchanges": []}']
    body = 'const { fromJson } = await import_("chats.js"); return values.map(fromJson);'
    first, second, *rest = run_node(body, *texts)
    assert rest == [None, None, None, None]
    assert first["exchanges"][0] | good["exchanges"][0] == first["exchanges"][0]
    assert (first["created"], first["updated"]) == ("c", "u")
    states = [(each["question"], each["answer"], each["state"]) for each in second["exchanges"]]
    assert states == [("Q", "", "done"), ("half", "ha", "broken"), ("none", "", "failed")]
    assert second["exchanges"][0]["sources"] == [SOURCE]
    assert (second["exchanges"][0]["notices"], second["exchanges"][0]["verdicts"]) == ([], {})


def test_notices_are_said_plainly():
    texts = {
        "moderation: your message: warn (insult 0.82, threat 1.00)": (
            "Moderation flagged your message: insult 82%, threat 100%."
        ),
        "moderation: passage a.md:3: block (injection 0.97)": (
            "Moderation blocked passage a.md:3: injection 97%. The model was not shown it."
        ),
        "moderation of the answer failed: it is away": "Moderation of the answer failed: it is away.",
        "left out: 2 messages": "Left out: 2 messages.",
    }
    body = 'const { plainly } = await import_("notes.js"); return values.map(plainly);'
    assert run_node(body, *texts) == list(texts.values())


def test_places_in_documents():
    places = {
        ("line", 3, 3): "line 3",
        ("line", 3, 5): "lines 3–5",
        ("page", 1, 2): "pages 1–2",
        ("record", 7, 7): "record 7",
    }
    values = [{"unit": unit, "start": start, "end": end} for unit, start, end in places]
    body = 'const { place } = await import_("sources.js"); return values.map(place);'
    assert run_node(body, *values) == list(places.values())

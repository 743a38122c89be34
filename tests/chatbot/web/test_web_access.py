"""The page for everybody, in a real Chromium: keyboard, screen reader, dark and light, phones, little motion."""

from __future__ import annotations

import itertools

import pytest
from page_browser import Reader
from page_fakes import Answer, source

KEYS = {"tab": "\ue004", "enter": "\ue007", "escape": "\ue00c", "shift": "\ue008", "space": " "}
CONTROLS = {"button", "link", "textbox", "checkbox", "switch", "combobox", "spinbutton", "dialog", "group", "form"}
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3


def a_full_page(reader: Reader) -> None:
    """Answers with everything that can stand under one."""
    bad = source(1, title="Notes", text=LONG, injection=0.9)
    reader.api.script = [
        Answer(
            pieces=(
                f"# Title\n\n{LONG} [1]\n\n- a `{LONG}`\n\n```\n{LONG} {LONG}\n```\n\n[x](https://x.example/{LONG})",
            ),
            sources=[source(1, title=LONG, source=f"library/{LONG}.md", meta={"author": LONG}), source(2)],
            withheld=[bad],
            notices=[f"moderation: passage {LONG[:200]}: block (injection 0.97)", f"left out: {LONG}"],
        ),
        Answer(pieces=("No.",), finish="content_filter"),
        Answer(status=429, error=f"busy: {LONG}", headers={"Retry-After": "30"}),
    ]
    for question in (f"first {LONG}", "second", "third"):
        reader.ask(question)
    for number in range(3):
        reader.click(".exchange .chip", number)


def focused(reader: Reader) -> str:
    """The name of what has the focus."""
    script = """
    const element = document.activeElement;
    return element.getAttribute("aria-label") || element.labels?.[0]?.textContent.trim() || element.textContent.trim()
    """
    return " ".join(reader.js(script).split())


def tree(reader: Reader) -> list[dict]:
    """The accessibility tree's nodes that are not ignored: {role, name}, and more."""
    nodes = reader.command("Accessibility.getFullAXTree")["nodes"]
    return [
        {"role": node["role"]["value"], "name": node.get("name", {}).get("value", "").strip()}
        for node in nodes
        if not node.get("ignored")
    ]


# Keyboard ------------------------------------------------------------------------------------------------------------


def test_everything_by_keyboard_in_a_sensible_order(reader):
    reader.api.script = [Answer(sources=[source(1)])]
    assert focused(reader) == "Your question"
    reader.keys("one")
    reader.one("#question").send_keys(KEYS["shift"], KEYS["enter"])
    reader.keys("two", KEYS["enter"])
    reader.until(lambda: len(reader.answers()) == 1 and reader.all(".chip"))
    assert reader.api.requests[0]["messages"][0]["content"] == "one\ntwo"
    assert focused(reader) == "Your question"
    reader.js("document.querySelector('.skip').focus()")
    order = [focused(reader)]
    while order[-1] != "Send the question" and len(order) < 40:
        reader.keys(KEYS["tab"])
        order.append(focused(reader))
    expected = [
        *("Skip to the question box", "New chat", "one two", "Delete the chat “one two”", "Export all", "Delete all"),
        *("Export this chat", "Dark theme", "API key", "Settings", "Edit the question", "Source 1: The harbour"),
        *(
            "Source 1The harbourlines 3–5",
            "Copy the answer",
            "Answer again",
            "Edit the answer",
            "Good answer",
            "Bad answer",
        ),
        *("Your question", "Answer from the documents", "Send the question"),
    ]
    assert [name.replace("Source 1 The", "Source 1The") for name in order] == expected


def test_a_source_opens_and_a_dialog_closes_by_keyboard(reader):
    reader.ask("first")
    reader.js("document.querySelector('.cite').focus()")
    reader.keys(KEYS["enter"])
    assert reader.one(".passage").is_displayed()
    reader.js("document.querySelector('.chip').focus()")
    reader.keys(KEYS["space"])
    assert not reader.all(".passage")
    reader.js("document.querySelector('#settings').focus()")
    reader.keys(KEYS["enter"])
    assert focused(reader) == "Passages to answer from"
    reader.keys(KEYS["escape"])
    assert not reader.all("dialog")
    assert focused(reader) == "Settings"


def test_focus_is_seen_wherever_it_is(reader):
    a_full_page(reader)
    reader.js("document.querySelector('.skip').focus()")
    unseen, count = [], 0
    script = """
    const element = document.activeElement, style = getComputedStyle(element.closest("#composer") && element.id ===
      "question" ? element.closest("#composer") : element);
    const box = element.getBoundingClientRect();
    const there = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return [parseFloat(style.outlineWidth), style.outlineStyle, element.contains(there) || there?.contains(element)]
    """
    while focused(reader) != "Send the question" and (count := count + 1) < 60:
        reader.keys(KEYS["tab"])
        width, style, inside = reader.js(script)
        if width < 1 or style == "none" or not inside:
            unseen.append((focused(reader), width, style, inside))
    assert unseen == []
    assert 25 < count < 60


# Screen reader -------------------------------------------------------------------------------------------------------


def test_every_control_has_a_name_and_the_page_its_landmarks(reader):
    a_full_page(reader)
    reader.click('[aria-label="Edit the question"]')
    nodes = tree(reader)
    nameless = [node for node in nodes if node["role"] in CONTROLS and not node["name"]]
    assert nameless == []
    roles = {node["role"] for node in nodes}
    assert {"navigation", "banner", "main", "form", "article", "heading", "switch", "status"} <= roles
    assert [node["name"] for node in nodes if node["role"] == "article"] == [f"Exchange {n}" for n in (1, 2, 3)]
    headings = [node["name"] for node in nodes if node["role"] == "heading"]
    assert headings == ["Chats", "Conversation", *itertools.chain(*((f"Question {n}", "Answer") for n in (1, 2, 3)))]
    for opener, closer in (("#settings", "Cancel"), ("#key-button", "Cancel"), ("#remove-all", "Cancel")):
        reader.click(opener)
        inside = [node for node in tree(reader) if node["role"] in CONTROLS]
        assert [node for node in inside if not node["name"]] == []
        assert closer in [node["name"] for node in inside]
        reader.keys(KEYS["escape"])
        reader.until(lambda: not reader.all("dialog"))


def test_an_answer_is_announced_at_its_end_and_not_by_the_word(reader):
    reader.js("""
    window.said = [];
    const live = document.querySelectorAll('[aria-live], [role="status"], [role="log"], [role="alert"]');
    for (const element of live) {
      new MutationObserver(() => element.textContent && said.push(element.textContent))
        .observe(element, { childList: true, characterData: true, subtree: true });
    }
    """)
    reader.api.script = [
        Answer(pieces=tuple(f"word{number} " for number in range(30)), delay=0.01, sources=[source(1)])
    ]
    reader.ask("first")
    words = "".join(f"word{number} " for number in range(30))
    said = reader.until(lambda: len(found := reader.js("return said")) >= 2 and found)
    assert said == ["Asked; the answer is being made.", f"{words} One source."]
    assert not reader.js("return document.querySelector('#exchanges').closest('[aria-live], [role=log]')")


# What it looks like --------------------------------------------------------------------------------------------------

LUMINANCE = """
const parse = (color) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
  .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
  .reduce((sum, each, place) => sum + each * [0.2126, 0.7152, 0.0722][place], 0);
const behind = (element) => {
  for (let at = element; at; at = at.parentElement) {
    const color = parse(getComputedStyle(at).backgroundColor);
    if (color[3] === 255) return color;
  }
  return [255, 255, 255];
};
"""


def background(reader: Reader) -> float:
    """Luminance of the page, 0 to 1."""
    return float(reader.js(LUMINANCE + "return light(parse(getComputedStyle(document.body).backgroundColor))"))


def test_dark_and_light_follow_the_system_and_the_button(reader):
    assert background(reader) > 0.8
    reader.media("dark")
    assert background(reader) < 0.1
    assert reader.one("#theme").get_attribute("aria-pressed") == "true"
    reader.click("#theme")
    assert background(reader) > 0.8
    reader.open()
    assert background(reader) > 0.8  # the choice is kept
    reader.click("#theme")
    reader.media("light")
    assert background(reader) > 0.8  # what the system has too is no choice: the page follows it again
    assert reader.js("return localStorage.getItem('parley.theme')") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(reader, scheme):
    reader.media(scheme)
    a_full_page(reader)
    # WCAG 2.2, 1.4.3: 4.5 to 1.
    weak = reader.js(
        LUMINANCE
        + """
    const weak = [];
    for (const element of document.querySelectorAll("body *")) {
      const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!own || !element.checkVisibility() || element.closest(":disabled")) continue;
      const [one, two] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
      const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
      if (ratio < 4.5) weak.push([element.className || element.tagName, element.textContent.slice(0, 30), ratio]);
    }
    return weak;
    """
    )
    assert weak == []


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_no_width_needs_sideways_scrolling(reader, width):
    reader.size(width, 640, touch=width < 700)
    reader.open()
    a_full_page(reader)
    page, body, seen = reader.js(
        "const { scrollWidth, clientWidth } = document.documentElement;"
        "return [scrollWidth, document.body.scrollWidth, clientWidth]"
    )
    assert page <= seen <= width
    assert body <= seen
    wide = """
    const end = document.documentElement.clientWidth + 0.5;
    const hidden = (element) => element.closest("pre, .unseen, #side, .chip, .chat, #title, #model-name, .citations");
    return [...document.querySelectorAll("main *, .bottom *, .top *")].filter((each) => !hidden(each))
      .filter((each) => each.checkVisibility() && each.getBoundingClientRect().right > end)
      .map((each) => each.className || each.tagName);
    """
    assert reader.js(wide) == []


def test_on_a_phone_targets_are_large_and_the_chats_come_in_from_the_side(reader):
    reader.size(320, 640, touch=True)
    reader.open()
    reader.ask("first")
    small = """
    return [...document.querySelectorAll("button, input, textarea, .switch")]
      .filter((each) => each.checkVisibility({ visibilityProperty: true }) && !each.closest(".switch input"))
      .map((each) => [each.ariaLabel || each.textContent, each.getBoundingClientRect()])
      .filter(([, box]) => Math.min(box.width, box.height) < 43.9)
      .map(([name, box]) => [name, box.width, box.height]);
    """
    assert [each for each in reader.js(small) if each[0] != ""] == []
    assert not [each for each in reader.all(".chat") if each.is_displayed() and each.rect["x"] >= 0]
    reader.click("#show-chats")
    reader.until(lambda: reader.one("#side").rect["x"] == 0)
    assert focused(reader) == "Close the list of chats"
    assert reader.js("return document.querySelector('main').inert")
    assert reader.js(small) == []
    reader.keys(KEYS["escape"])
    assert focused(reader) == "Chats"
    assert reader.js("return [document.querySelector('main').inert, document.querySelector('#side').inert]") == [
        False,
        True,
    ]
    reader.click("#show-chats")
    reader.until(lambda: reader.one("#side").rect["x"] == 0)
    reader.click(".chat")
    reader.until(lambda: not reader.js("return document.querySelector('main').inert"))


def test_nothing_moves_for_those_who_want_it_still(reader):
    reader.media(motion="reduce")
    reader.api.script = [Answer(pieces=(), hold=False, delay=0), Answer(hold=True)]
    moving = """
    return [...document.querySelectorAll("*")].filter((each) => ["", "::before", "::after"].some((part) => {
      const style = getComputedStyle(each, part || null);
      return style.animationName !== "none" || parseFloat(style.transitionDuration) > 0;
    })).map((each) => each.className || each.tagName)
    """
    reader.ask("first")
    reader.ask("second", wait=False)
    assert reader.js(moving) == []
    reader.media()
    assert reader.js(moving) != []


def test_the_page_follows_the_answer_only_at_its_end(reader):
    reader.size(800, 500)
    lines = tuple(f"Line {number}\n\n" for number in range(120))
    reader.api.script = [Answer(pieces=lines, delay=0.01), Answer(pieces=lines, delay=0.015)]
    distance = "return document.documentElement.scrollHeight - innerHeight - scrollY"
    reader.ask("first")
    assert reader.js("return scrollY") > 1000
    assert reader.js(distance) < 60
    reader.ask("second", wait=False)
    reader.until(lambda: "Line 10\n" in reader.answers()[-1])
    reader.js("scrollTo(0, 100)")
    reader.ended()
    assert reader.js("return scrollY") == 100
    reader.click("#to-end")
    assert reader.js(distance) < 60
    assert not reader.all("#to-end")

"""Documents and answers cannot act on the page: in a real Chromium, with text made to try."""

from __future__ import annotations

import json

import pytest
from page_browser import Reader
from page_fakes import Answer, source

ATTACKS = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    "<img src='https://evil.example/pixel.png'>",
    "<svg onload='window.hacked = 3'><iframe srcdoc='<script>parent.hacked = 4</script>'></iframe></svg>",
    "[click](javascript:window.hacked=5) ![pixel](https://evil.example/p.png)",
    "<a href='javascript:window.hacked=6'>here</a><style>*{display:none}</style>",
    '"><script src=https://evil.example/x.js></script>{{constructor.constructor("window.hacked=7")()}}',
    "<form action=https://evil.example><button>Send</button></form>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "```html\n<script>window.hacked = 8</script>\n```",
)
ALL = "\n\n".join(ATTACKS)


def assert_nothing_happened(reader: Reader) -> None:
    assert reader.js("return window.hacked") is None
    assert reader.driver.current_url == f"{reader.url}/"
    asked = [address for address in reader.addresses_asked() if not address.startswith(reader.url + "/")]
    assert asked == []
    made = (
        "main :is(script, img, iframe, object, embed, style, link, form:not(.why, .editor), base, meta, video, audio)"
    )
    assert reader.js("return document.querySelectorAll(arguments[0]).length", made) == 0
    assert reader.js("return document.querySelectorAll('iframe, object, embed, base').length") == 0
    links = reader.js("return [...document.querySelectorAll('a')].map((each) => each.getAttribute('href'))")
    assert all(link.startswith("#") for link in links)
    handlers = "return [...document.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())"
    assert not [name for name in reader.js(handlers) if name.startswith("on") or name in {"style", "srcdoc"}]
    assert len(reader.js("return [...document.scripts].map((each) => each.src)")) == 2


def test_hostile_text_stays_text_wherever_it_stands(reader):
    bad = source(1, title=ALL, text=ALL, source=ALL, location=ALL, unit=ALL, meta={ALL: ALL})
    reader.api.script = [
        Answer(
            pieces=(*(f"{attack}\n\n" for attack in ATTACKS), "See [1]."),
            sources=[bad],
            withheld=[bad],
            notices=[ALL, f"moderation: {ALL[:200]}: block (x 0.50)"],
        ),
        Answer(status=400, error=ALL),
    ]
    reader.ask("<script>window.hacked = 9</script>")
    for number in range(2):
        reader.click(".chip", number)
    reader.click(".cite")
    for said in ATTACKS[:4]:
        assert said in reader.text(".exchange .text")
        assert said in reader.text(".passage blockquote")
        assert said in reader.text(".passage-title")
    assert "here (javascript" not in reader.text(".text")
    assert "click (javascript:window.hacked=5)" in reader.text(".exchange .text")
    assert "image, not shown: pixel (https://evil.example/p.png)" in reader.text(".exchange .text")
    reader.ask("and this")
    reader.click('[aria-label="Edit the question"]')
    assert_nothing_happened(reader)
    reader.open()
    reader.click(".chat")
    assert reader.text(".said") == "<script>window.hacked = 9</script>"
    assert reader.text(".chat").startswith("<script>")
    assert_nothing_happened(reader)


def test_a_damaged_or_hostile_storage_does_no_harm(reader):
    exchange = {"question": ALL, "answer": ALL, "state": "done", "sources": [{"title": ALL, "text": ALL}], "id": ALL}
    chat = {"id": "x", "created": ALL, "updated": ALL, "exchanges": [exchange]}
    reader.js("localStorage.setItem('parley.chat.x', arguments[0])", json.dumps(chat))
    reader.js("localStorage.setItem('parley.theme', arguments[0])", ALL)
    reader.open()
    reader.click(".chat")
    reader.click(".chip")
    assert_nothing_happened(reader)


@pytest.mark.parametrize(
    "attempt",
    [
        "document.body.innerHTML = '<b>x</b>'",
        "document.body.insertAdjacentHTML('beforeend', '<b>x</b>')",
        "document.createElement('script').text = '1'",
        "document.body.setAttribute('onclick', '1')",
    ],
)
def test_the_browser_itself_would_refuse(reader, attempt):
    from selenium.common.exceptions import JavascriptException

    with pytest.raises(JavascriptException, match="Trusted"):
        reader.js(attempt)


def test_what_the_policy_forbids_is_not_fetched(reader):
    reader.js(
        "const image = new Image(); image.src = 'https://evil.example/x.png'; document.body.append(image);"
        "const frame = document.createElement('iframe');"
        "frame.src = 'https://evil.example/'; document.body.append(frame);"
        "fetch('https://evil.example/').catch(() => {}); document.querySelector('#message').textContent = 'tried';"
    )
    reader.until(lambda: "evil.example" in json.dumps(reader.driver.get_log("browser")))
    events = [json.loads(entry["message"])["message"] for entry in reader.driver.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.responseReceived"]
    assert not [event for event in sent if "evil" in event["params"]["response"]["url"]]


def test_using_the_page_asks_nobody_else(reader):
    reader.ask("first")
    reader.click(".chip")
    reader.click('[aria-label="Good answer"]')
    reader.click("#theme")
    reader.click("#new-chat")
    reader.click(".chat")
    asked = reader.addresses_asked()
    assert asked
    assert {address[: len(reader.url)] for address in asked} == {reader.url}
    messages = [entry["message"] for entry in reader.driver.get_log("browser")]
    assert messages == []

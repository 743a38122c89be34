"""The page's files without a browser: how they are served, and what is in them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from page_fakes import FakeApi

from chatbot.web import CONTENT_TYPES, page_files

pytest.importorskip("fastapi", reason="needs the `server` extra")

ROOT = Path(__file__).resolve().parents[3]
STATIC = ROOT / "chatbot" / "web" / "static"
SCRIPTS = sorted(STATIC.glob("*.js"))


# How the files are served --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    from starlette.testclient import TestClient

    with TestClient(FakeApi().app()) as client:
        yield client


def address(name: str) -> str:
    return "/" if name == "index.html" else f"/static/{name}"


@pytest.mark.parametrize("path", sorted(STATIC.iterdir()), ids=lambda path: path.name)
def test_every_file_is_served_as_it_is(client, path):
    answer = client.get(address(path.name))
    assert answer.status_code == 200
    assert answer.content == path.read_bytes()
    assert answer.headers["content-type"] == CONTENT_TYPES[path.suffix]


@pytest.mark.parametrize("name", ["index.html", "app.js", "style.css", "favicon.svg"])
def test_nothing_but_the_page_itself_may_be_loaded_or_run(client, name):
    headers = client.get(address(name)).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    own = {name: policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")}
    assert set(own.values()) == {"'self'"}
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("form-action", "base-uri", "frame-ancestors")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


def test_what_the_browser_has_is_not_sent_again(client):
    first = client.get("/static/app.js")
    assert first.headers["cache-control"] == "no-cache"
    tag = first.headers["etag"]
    for known in (tag, f'"other", W/{tag}'):
        again = client.get("/static/app.js", headers={"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert "content-security-policy" in again.headers
    assert client.get("/static/app.js", headers={"If-None-Match": '"other"'}).status_code == 200
    assert client.get("/", headers={"If-None-Match": tag}).status_code == 200


def test_head_and_what_is_not_there(client):
    head = client.head("/")
    assert (head.status_code, head.content) == (200, b"")
    assert int(head.headers["content-length"]) == len(page_files()["index.html"])
    for wrong in ("/static/", "/static/nothing.js", "/static/../__init__.py", "/static/%2e%2e/__init__.py"):
        assert client.get(wrong).status_code == 404
    assert client.post("/static/app.js").status_code == 405


def test_the_servers_own_app_has_the_page_and_its_schema_does_not():
    from fastapi import FastAPI

    from chatbot.web import mount

    app = FastAPI()
    mount(app)
    assert app.openapi()["paths"] == {}


def test_the_package_carries_the_files():
    assert '\n"chatbot.web" = ["static/*"]\n' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert set(page_files()) == {path.name for path in STATIC.iterdir()}


# What is in the files ------------------------------------------------------------------------------------------------


def test_no_file_names_another_server():
    names = {"http://www.w3.org/2000/svg"}  # what SVG elements are called; nothing is fetched from there
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text)) <= names, path.name
        assert not re.search(r"@import|\burl\(|data:image", text), path.name


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_of_text(path):
    text = path.read_text(encoding="utf-8")
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|setHTML"
    assert re.findall(ways, text) == []
    assert re.findall(r"\beval\(|new Function|setTimeout\(\s*[\"'`]|import\(", text) == []
    assert len(text.splitlines()) <= 300
    assert max(map(len, text.splitlines())) <= 120


class Page(HTMLParser):
    """All start tags of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_loads_files_that_are_there_and_runs_nothing_inline():
    page = Page(page_files()["index.html"].decode())
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on") or name == "style"], tag
        for name in ("src", "href"):
            target = attributes.get(name)
            assert target is None or target.startswith("#") or target.removeprefix("static/") in page_files()
        if tag == "script":
            assert "src" in attributes
        assert tag not in {"style", "base", "iframe", "object", "embed", "form"} or attributes.get("action") is None
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    scripts = "".join(path.read_text(encoding="utf-8") for path in SCRIPTS)
    assert set(re.findall(r'byId\("([^"]+)"\)', scripts)) <= set(ids)
    for _, attributes in page.tags:
        for name in ("for", "aria-controls"):
            assert attributes.get(name) is None or attributes[name] in ids


def test_every_script_is_reached_from_the_page():
    reached, waiting = {"theme.js"}, ["app.js"]
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += re.findall(r'from "\./([\w-]+\.js)"', (STATIC / name).read_text(encoding="utf-8"))
    assert reached == {path.name for path in SCRIPTS}

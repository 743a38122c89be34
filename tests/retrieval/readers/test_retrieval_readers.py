"""The readers of plain text, Markdown and HTML: text -> title and blocks with their lines."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable
from html.parser import HTMLParser
from itertools import groupby

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retrieval.readers.markdown import clean, read_markdown
from retrieval.readers.outline import Outline
from retrieval.readers.plain import read_plain
from retrieval.readers.tags import tokens
from retrieval.readers.web import read_html
from retrieval.types import Block

Reader = Callable[[str], tuple[str, list[Block]]]


def lines(text: str) -> str:
    """The text of a test without its indentation and its first line break."""
    return textwrap.dedent(text).removeprefix("\n")


def test_plain_text() -> None:
    title, blocks = read_plain("\nA short title\n\nFirst paragraph\n  goes on.\n \t\n\nSecond.\n")
    assert title == "A short title"
    assert blocks == [Block("First paragraph goes on.", 4, 5), Block("Second.", 8, 8)]


@pytest.mark.parametrize(
    "first", ["It ends like a sentence.", "Why?", "The following:", "x" * 101, "Two lines\nof text"]
)
def test_a_first_paragraph_that_is_no_title_stays_text(first: str) -> None:
    title, blocks = read_plain(f"{first}\n\nText.")
    assert title == ""
    assert [block.text for block in blocks] == [first.replace("\n", " "), "Text."]


def test_a_lone_line_is_text_not_title() -> None:
    assert read_plain("Only this") == ("", [Block("Only this", 1, 1)])


MARKDOWN = lines("""
    ---
    title: "From the front matter"
    ---
    Before any heading.

    # The *title* #

    Hard-wrapped
    paragraph with [a link](http://x.org/a_(b)) and **bold _text_**.
    ## Setup
    - first item
      goes on
    - second item

    1. step one
    2. step two
    ### Windows
    > quoted
    > text

    ```python
    def f():

        return "# no heading"
    ```

    | a | b |
    |:--|----------:|
    | `x` | **2** |

    After<!-- a comment
    # over lines
    -->wards.
    ![an image](x.png)

    Second chapter
    ==============
    text

    Part
    ----
    more
    ***
    the end is > 1
""")


def test_markdown() -> None:
    title, blocks = read_markdown(MARKDOWN)
    assert title == "The title"
    assert blocks == [
        Block("Before any heading.", 4, 4),
        Block("Hard-wrapped paragraph with a link and bold text.", 8, 9),
        Block("- first item goes on", 11, 12, "Setup"),
        Block("- second item", 13, 13, "Setup"),
        Block("1. step one", 15, 15, "Setup"),
        Block("2. step two", 16, 16, "Setup"),
        Block("quoted text", 18, 19, "Setup > Windows"),
        Block('def f():\n\n    return "# no heading"', 22, 24, "Setup > Windows"),
        Block("| a | b |\n|:---|---:|\n| `x` | 2 |", 27, 29, "Setup > Windows"),
        Block("After", 31, 31, "Setup > Windows"),
        Block("wards.", 33, 34, "Setup > Windows"),
        Block("text", 38, 38, "Second chapter"),
        Block("more", 42, 42, "Second chapter > Part"),
        Block("the end is > 1", 44, 44, "Second chapter > Part"),
    ]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: From here\ntags: [a]\n---\n\n## Two\ntext", "From here"),
        ("---\ntitle: From here\n---\n# One\ntext", "One"),
        ("---\n\nA rule, not front matter\n\n---\n", ""),
        ("---\nNote: a rule that nothing closes\n", ""),
        ("Setext\n===\ntext", "Setext"),
        ("## Only level two\ntext", ""),
        ("# C# #\ntext", "C#"),
        ("# C#\ntext", "C#"),
        ("#hashtag\n", ""),
    ],
)
def test_markdown_titles(text: str, title: str) -> None:
    assert read_markdown(text)[0] == title


def test_markdown_never_swallows_text_that_only_looks_like_markup() -> None:
    text = lines("""
        An arrow <!-- that nothing closes.

        A paragraph of
        two lines
        ---
        | not a table

        ~~~
        code to the end
    """)
    assert [block.text for block in read_markdown(text)[1]] == [
        "An arrow <!-- that nothing closes.",
        "A paragraph of two lines",
        "| not a table",
        "code to the end",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**bold** and *it* and ***both***", "bold and it and both"),
        ("**bold *nested* text**", "bold nested text"),
        ("__init__ and snake_case_name and _it_", "init and snake_case_name and it"),
        ("2 * 3 * 4 and a*b", "2 * 3 * 4 and a*b"),
        ("`a * b * c` and `__init__`", "`a * b * c` and `__init__`"),
        (r"\*not emphasis\* and C:\path", r"*not emphasis* and C:\path"),
        ("[text](url 'title') [![badge](a.svg)](b) [ref][1] [1]", "text [ref][1] [1]"),
        ("  spaces\t and\u00a0more  ", "spaces and more"),
    ],
)
def test_markdown_inline(text: str, expected: str) -> None:
    assert clean(text) == expected


HTML = lines("""
    <!doctype html>
    <html><head>
    <meta charset="utf-8"><title>The &lt;title&gt;
    page</title>
    <style>p { color: red }</style><script>var a = "<p>no</p>";</script>
    </head><body>
    <h1>The &lt;title&gt; page</h1>
    <p>First <b>bold</b>er
    line.<br>Second&nbsp;line &amp; more.
    <h2>Setup<a href="#setup">¶</a></h2>
    <ul><li>one<li>two
    <ul><li>inner</ul></ul>
    <noscript><p>no</p></noscript><template><p>no</p></template>
    <h3>Windows</h3>
    <table><tr><th>Name</th><th>Age</th></tr>
    <tr><td>Ann</td><td></td><td><p>42</p><p>years</p></td></tr>
    </table>
    <pre>
    def f():

        return 1
    </pre>
    <blockquote>said</blockquote>
    <h2>Last</h2><div>outer<div>inner</div>rest</div>
    tail
    </body></html>
""")


def test_html() -> None:
    title, blocks = read_html(HTML)
    assert title == "The <title> page"
    assert blocks == [
        Block("First bolder line. Second line & more.", 8, 9),
        Block("one", 11, 11, "Setup"),
        Block("two", 11, 11, "Setup"),
        Block("inner", 12, 12, "Setup"),
        Block("Name | Age", 15, 15, "Setup > Windows"),
        Block("Ann | | 42 years", 16, 16, "Setup > Windows"),
        Block("def f():\n\n    return 1", 19, 21, "Setup > Windows"),
        Block("said", 23, 23, "Setup > Windows"),
        Block("outer", 24, 24, "Last"),
        Block("inner", 24, 24, "Last"),
        Block("rest", 24, 24, "Last"),
        Block("tail", 25, 25, "Last"),
    ]


def test_html_title_falls_back_to_the_first_h1() -> None:
    assert read_html("<h1>One</h1><p>a</p><h1>Two</h1><p>b</p>") == (
        "One",
        [Block("a", 1, 1), Block("b", 1, 1, "Two")],
    )
    assert read_html("<title>Page</title><h1>One</h1><p>a</p>") == ("Page", [Block("a", 1, 1, "One")])


@pytest.mark.parametrize(
    "text",
    ["<p>word", "word", "<p>word<div", "</p></p>word", "<![if x]>word", "<![CDATA[x]]>word", "<h2>a<p>word", "word<"],
)
def test_broken_html_keeps_its_text(text: str) -> None:
    assert any("word" in block.text for block in read_html(text)[1])


def test_deeply_nested_html() -> None:
    depth = 20_000
    _, blocks = read_html("<div><table><tr><td>" * depth + "deep" + "</td></tr></table></div>" * depth)
    assert [block.text for block in blocks] == ["deep"]


@pytest.mark.parametrize("reader", [read_markdown, read_plain])
@pytest.mark.parametrize(
    "piece", ["[", "[a](", "**a ", "_a ", "*", "`", "~", "# ", "- ", ">", "|", "<!-- ", "\\", "![", "\n", "|\n|-|\n"]
)
def test_reading_time_grows_with_the_length_only(reader: Reader, piece: str) -> None:
    started = time.process_time()
    reader(piece * (50_000 // len(piece)))
    assert time.process_time() - started < 5


HTML_PIECES = (
    *("<", "<a ", "</", "</a", "<!", "<!--", '<a b="', "<a b='", '<a =">"', '="', "<?", "<title>", "<textarea>", "= "),
    *(
        "<script>",
        "<svg></style>",
        "<svg>",
        "</svg>",
        "&",
        "&amp",
        "&#",
        "<p>",
        "<h1>x",
        "<td>",
        "<pre>\n",
        "<![CDATA[",
    ),
)


@pytest.mark.parametrize("piece", HTML_PIECES)
@pytest.mark.parametrize("end", ["", ">", "-->", "\"'>"])
def test_reading_time_of_html_grows_with_the_length_only(piece: str, end: str) -> None:
    started = time.process_time()
    read_html(piece * (100_000 // len(piece)) + end)
    assert time.process_time() - started < 2  # a quadratic reader takes minutes


def test_a_comment_on_every_word_of_a_long_line_takes_linear_time() -> None:
    started = time.process_time()
    _, blocks = read_markdown("a<!--b-->" * 100_000)
    assert time.process_time() - started < 5
    assert blocks == [Block("a" * 100_000, 1, 1)]


class _Standard(HTMLParser):
    """What html.parser makes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self.found: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.found.append(("start", tag))

    def handle_endtag(self, tag: str) -> None:
        self.found.append(("end", tag))

    def handle_data(self, data: str) -> None:
        self.found.append(("text", data))


NAMES = st.sampled_from(["p", "DIV", "h1", "br", "x-y", "script", "b"])
VALUES = st.sampled_from(["", " a", " a=b", ' a="x > y"', " a='<b>'", ' a = "\n"', " a=b c='\"'", ' a="x"b="y"'])
MARKUP = st.one_of(
    st.tuples(NAMES, VALUES).map(lambda pair: f"<{pair[0]}{pair[1]}>"),
    NAMES.map(lambda name: f"</{name}>"),
    st.sampled_from(["<!-- a > b -->", "<!doctype html>", "text", " 1 < 2 ", "\n", "a<b>c"]),
)


@given(st.lists(MARKUP, max_size=12))
def test_sound_markup_is_cut_as_the_standard_library_does(parts: list[str]) -> None:
    text = "".join(parts) + "<p>"
    if "<script" in text and "</script>" not in text[text.rfind("<script") :]:
        text += "</script>"  # without it, versions of the standard library differ
    assert merged((token.kind, token.value) for token in tokens(text)) == merged(_Standard(text).found)
    for token in tokens(text):
        if token.kind == "text":
            assert text.startswith(token.value, token.position)
        else:
            assert text[token.position] == "<"


def merged(found: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Neighbouring texts as one."""
    groups = groupby(found, key=lambda pair: pair if pair[0] != "text" else "text")
    return [
        ("text", "".join(text for _, text in group)) if key == "text" else pair
        for key, grouped in groups
        for group in [list(grouped)]
        for pair in (group if key != "text" else group[:1])
    ]


def test_headings_are_kept_short() -> None:
    outline = Outline()
    outline.enter(1, "x" * 5000)
    outline.enter(2, "y")
    assert len(outline.path) == 200 + len(" > y")
    assert outline.path is outline.path  # one string for all blocks


# Documents of known words on known lines, in every dress a line can wear.
WORDS = st.integers(0, 10**6).map(lambda number: f"word{number}")
MARKDOWN_DRESS = st.sampled_from(
    ["{}", "  {}", "- {}", "1. {}", "> {}", "**{}**", "see {} now", "{}\n", "\n{}\n", "{} <!-- x\n\ny -->", "`{}`"]
)
MARKDOWN_BLOCK = st.sampled_from(
    ["[{}](http://x)", "```\n{}\n```", "a | b\n--|--\n{} | c\n", "## x\n{}", "***\n{}", "1 > 0\n{}"]
)
HTML_DRESS = st.sampled_from(
    ["{}", "<p>{}", "<p>\n{}\n</p>", "<ul><li>{}</ul>", "<b>{}</b>", "<div>{}</div>", "<!--\n-->{}", "<h2>x</h2>{}"]
)
HTML_BLOCK = st.sampled_from(
    ["<table><tr><td>\n{}<td>x</table>", "<pre>\n\n{}\n</pre>", "<script>\nno\n</script>{}", "a&amp;\n{}", "<br>{}<br>"]
)


@given(
    st.lists(st.tuples(WORDS, MARKDOWN_DRESS | MARKDOWN_BLOCK), min_size=1, max_size=12, unique_by=lambda pair: pair[0])
)
@settings(deadline=None)
def test_markdown_words_stand_on_their_lines(parts: list[tuple[str, str]]) -> None:
    check_lines(read_markdown, parts)


@given(st.lists(st.tuples(WORDS, HTML_DRESS | HTML_BLOCK), min_size=1, max_size=12, unique_by=lambda pair: pair[0]))
@settings(deadline=None)
def test_html_words_stand_on_their_lines(parts: list[tuple[str, str]]) -> None:
    check_lines(read_html, parts)


@given(st.lists(st.tuples(WORDS, st.sampled_from(["{}", "\n{}", "{}\n\n\n", " {} b"])), min_size=1, max_size=12))
@settings(deadline=None)
def test_plain_words_stand_on_their_lines(parts: list[tuple[str, str]]) -> None:
    check_lines(lambda text: read_plain("A sentence.\n\n" + text), parts, first_line=3)


def check_lines(reader: Reader, parts: list[tuple[str, str]], first_line: int = 1) -> None:
    """Each word is in a block, and one that has it covers the word's line; where lines are kept, exactly there."""
    source = "\n".join(dress.format(word) for word, dress in parts)
    _, blocks = reader(source)
    for line, content in enumerate(source.split("\n"), start=first_line):
        for word in {
            word for word, _ in parts if word in content.replace("|", " ").split(" ") or f">{word}" in content
        }:
            holding = [block for block in blocks if word in block.text]
            assert any(block.start <= line <= block.end for block in holding), (word, line, source, blocks)
            for block in holding:
                if "\n" in block.text and block.start <= line <= block.end:
                    assert word in block.text.split("\n")[line - block.start]

"""A source -> typed rows and a report: conversions, skipped rows, strictness, and the real data where it is."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chatbot.conversation import Conversation, save_conversations
from retrieval.types import Passage
from training.data.mixture import Source
from training.data.reading import Report, read_rows
from training.data.rows import (
    ChatRow,
    LabelledRow,
    PairRow,
    PreferenceRow,
    PromptRow,
    RankedRow,
    RatedRow,
    Row,
    TextRow,
)

DATA = Path(__file__).parents[4] / "shared" / "data" / "training"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason="needs the training data in ../shared/data, which is not there"
)
SFT = (ChatRow, PairRow)


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows_of(path: Path, wanted: Sequence[type[Row]], report: Report | None = None, **more: Any) -> list[Row]:
    strict = more.pop("strict", True)
    return [row for _, row in read_rows(Source(str(path), **more), wanted, report, strict)]


def asked(text: str = "q") -> Conversation:
    return Conversation().add("user", text)


PREFERENCE = {"prompt": "q", "chosen": "r", "rejected": "s"}
RANKED = {"prompt": "q", "responses": ["r", "s", "t", "u"], "scores": [0.1, 0.9, 0.9, None]}


@pytest.mark.parametrize(
    ("raw", "wanted", "expected"),
    [
        (PREFERENCE, (PreferenceRow, ChatRow), [PreferenceRow(asked(), "r", "s")]),
        (PREFERENCE, SFT, [ChatRow(asked().add("assistant", "r"))]),
        (PREFERENCE, (RankedRow,), [RankedRow(asked(), ("r", "s"), (1.0, 0.0))]),
        (PREFERENCE, (RatedRow,), [RatedRow(asked(), "r", True), RatedRow(asked(), "s", False)]),
        (PREFERENCE, (PromptRow,), [PromptRow(asked())]),
        (RANKED, SFT, [ChatRow(asked().add("assistant", "s"))]),  # of equals the first, as by hand
        (RANKED, (PromptRow,), [PromptRow(asked())]),
        ({"user_input": "q", "completion": "r", "score": None}, SFT, [ChatRow(asked().add("assistant", "r"))]),
        ({"prompt": "q", "completion": "r", "label": True}, SFT, [ChatRow(asked().add("assistant", "r"))]),
        ({"prompt": "q", "completion": "r", "label": False}, (PromptRow,), [PromptRow(asked())]),
        ({"messages": asked().add("assistant", "r").to_dicts()}, (PromptRow,), [PromptRow(asked())]),
        ({"messages": asked().to_dicts()}, (PromptRow,), [PromptRow(asked())]),
        ({"text": "q"}, (PromptRow,), [PromptRow(asked())]),
        ({"text": "t", "label": 1}, (TextRow,), [TextRow("t")]),
        ({"prompt": "a ", "completion": "b"}, (TextRow, LabelledRow), [TextRow("a b")]),
    ],
)
def test_rows_become_what_is_wanted(tmp_path, raw, wanted, expected):
    report = Report()
    assert rows_of(write(tmp_path / "a.jsonl", [raw]), wanted, report) == expected
    num = 0 if wanted[0] is PreferenceRow else len(expected)  # all but the first become something else
    assert sum(report.converted.values()) == num


@pytest.mark.parametrize(
    ("raw", "wanted", "reason"),
    [
        ({"text": "t", "label": 1}, SFT, "labelled rows cannot be used where chat or pair rows are needed"),
        ({"prompt": "q"}, SFT, "prompt rows cannot be used where chat or pair rows are needed"),
        ({"chosen": "a", "rejected": "b"}, SFT, "its texts are whole: which part is the prompt is not known"),
        ({"responses": ["a", "b"], "scores": [1, 2]}, SFT, "its texts are whole"),
        ({"prompt": "q", "responses": ["a", "b"], "scores": [None, None]}, SFT, "no answer has a score"),
        ({"messages": asked().to_dicts()}, SFT, "no turn of the assistant"),
    ],
)
def test_rows_that_cannot_become_it(tmp_path, raw, wanted, reason):
    path = write(tmp_path / "a.jsonl", [raw])
    with pytest.raises(ValueError, match=f"a.jsonl:1: {reason}.*; mend it, or set data.on_bad_row=skip"):
        rows_of(path, wanted)
    with pytest.raises(ValueError, match=rf"a.jsonl: no row can be used \(1 x {reason}"):
        rows_of(path, wanted, strict=False)


def test_a_broken_row_stops_or_is_counted(tmp_path):
    good = {"messages": asked().add("assistant", "r").to_dicts()}
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(good)] * 20
    for number in range(7):
        lines[2 + 2 * number] = '{"messages": ['
    lines[17] = json.dumps({"messages": [*good["messages"], {"role": "tool", "content": "x"}]})
    path.write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"a.jsonl:3: not a line of JSON \(Expecting value, character 15\); mend it"):
        rows_of(path, SFT)
    report = Report()
    assert len(rows_of(path, SFT, report, strict=False)) == report.num_given == 12
    assert (report.num_read, sum(report.skipped().values())) == (20, 8)
    text = "\n".join(report.lines())
    assert f"{path}: 20 rows read (messages), 12 rows given" in text
    places = ", ".join(f"{path}:{number}" for number in (3, 5, 7, 9, 11))
    assert f"  7 left out: not a line of JSON (Expecting value, character 15) ({places}, ...)" in text
    assert "  1 left out: turn 3: unknown role 'tool'" in text
    assert json.loads(json.dumps(report.to_dict()))["skipped"][0]["count"] == 7


def test_reasons_that_differ_in_numbers_are_one_and_there_are_not_too_many():
    report = Report()
    for i in range(10):
        report.skip(f"turn {i} is empty", f"a:{i}")
    assert report.skipped() == {"turn 0 is empty": 10}
    for i in range(100):
        report.skip("role " + "x" * i, "a:1")
    assert len(report.skipped()) == 51
    assert report.skipped()["other reasons"] == 51


def test_changes_are_counted(tmp_path):
    talk = [{"role": role, "content": "x"} for role in ("assistant", "user", "user", "assistant", "user")]
    report = Report()
    (row,) = rows_of(write(tmp_path / "a.jsonl", [{"messages": talk}]), SFT, report)
    assert row == ChatRow(asked("x\n\nx").add("assistant", "x"))
    assert dict(report.changed) == {
        "an assistant's turn at the beginning left out": 1,
        "turns of one role in a row joined": 1,
        "turns after the assistant's last left out": 1,
    }


def test_bad_answers_are_left_out_by_rule_and_not_as_mistakes(tmp_path):
    rows = [{"prompt": "q", "completion": "r", "label": label} for label in (True, False)]
    report = Report()
    assert len(rows_of(write(tmp_path / "a.jsonl", rows), SFT, report)) == 1  # strict, and no error
    assert report.skipped() == {"answers rated bad are no examples": 1}


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_an_empty_source_is_an_error(tmp_path, suffix):
    (tmp_path / f"a{suffix}").write_text("")
    with pytest.raises(ValueError, match=rf"a{suffix}: no row can be used \(it is empty\)"):
        rows_of(tmp_path / f"a{suffix}", SFT)
    (tmp_path / "b.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"b.txt: 'text' is empty"):
        rows_of(tmp_path / "b.txt", (TextRow,))


def test_what_is_not_rows_at_all(tmp_path):
    (tmp_path / "a.json").write_text("[1, 2]")
    with pytest.raises(ValueError, match=r"a.json row 1: neither an object, a text, a list of two texts"):
        rows_of(tmp_path / "a.json", SFT)
    write(tmp_path / "b.jsonl", [{"x": 1}])
    with pytest.raises(ValueError, match=r"b.jsonl: the rows are of no known format \(columns: x\)"):
        rows_of(tmp_path / "b.jsonl", SFT)
    with pytest.raises(ValueError, match="unknown format 'yaml'"):
        rows_of(tmp_path / "b.jsonl", SFT, format="yaml")


def test_a_chosen_format_and_other_columns(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("question,answer\nq,r\n")
    columns = {"question": "prompt"}
    assert rows_of(path, SFT, columns=columns) == [PairRow("q", "r")]
    assert rows_of(path, SFT, columns=columns, format="chat-pairs") == [ChatRow(asked().add("assistant", "r"))]
    text = tmp_path / "prompts.txt"
    text.write_text("one\n\ntwo\n")
    assert rows_of(text, (PromptRow,), format="lines") == [PromptRow(asked("one")), PromptRow(asked("two"))]


def test_a_folder_of_several_formats(tmp_path):
    write(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "r"}])
    write(tmp_path / "b.jsonl", [{"text": "<human>: q\n<bot>: r"}])
    (tmp_path / "README.md").write_text("About the data.")
    report = Report()
    places = [place for place, _ in read_rows(Source(str(tmp_path)), SFT, report)]
    assert places == [f"{tmp_path}/a.jsonl:1", f"{tmp_path}/b.jsonl:1"]
    assert dict(report.formats) == {"prompt-completion": 1, "oig": 1}
    assert "1 files are no data" in "\n".join(report.lines())
    assert report.files_left_out == [f"{tmp_path}/README.md"]


def test_chats_that_the_bot_saved(tmp_path):
    passage = Passage("d#0", "text", "title", "d.txt", 1, 2)
    said = Conversation().add("user", "q", [passage]).add("assistant", "r")
    save_conversations(tmp_path / "a.jsonl", [said])
    assert rows_of(tmp_path / "a.jsonl", SFT) == [ChatRow(said)]


def test_the_last_rating_of_an_answer_counts(tmp_path):
    def rating(id_: str, rating: str, edit: str | None = None) -> dict[str, Any]:
        said = {"messages": asked().to_dicts(), "prompt": "p", "answer": "r", "passages": [], "reason": ""}
        return {"id": id_, "rating": rating, "edit": edit, **said}

    rows = [rating("1", "bad"), rating("2", "good"), rating("1", "edit", "s")]
    path, report = write(tmp_path / "feedback.jsonl", rows), Report()
    assert rows_of(path, (PreferenceRow, RatedRow), report) == [
        PreferenceRow(asked(), "s", "r"),
        RatedRow(asked(), "r", True),
    ]
    assert rows_of(path, SFT) == [ChatRow(asked().add("assistant", text)) for text in "sr"]
    assert report.skipped() == {"an earlier rating of the same answer": 1}
    assert report.num_read == 3


def test_the_sum_is_in_the_report(tmp_path):
    path, report = write(tmp_path / "a.jsonl", [{"text": "a"}]), Report()
    sum_ = report.fingerprint(Source(str(path)))
    assert report.to_dict()["sha256"] == sum_
    assert (report.num_files, report.num_bytes) == (1, path.stat().st_size)
    path.write_text('{"text": "b"}\n')
    assert Report().fingerprint(Source(str(path))) != sum_


def test_nothing_heavy_is_loaded_for_plain_files(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"text": "a"}])
    code = (
        "import sys; from training.data.reading import *; from training.data.rows import TextRow\n"
        "list(read_rows(Source(sys.argv[1]), (TextRow,))); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "datasets", "pyarrow", "zstandard", "pandas", "numpy", "httpx"}
    assert set(done.stdout.split()) & heavy == set()


# Real data ------------------------------------------------------------------------------------------------------


@needs_data
def test_seed_tasks():
    raws = [json.loads(line) for line in (DATA / "seed_tasks.jsonl").read_text().splitlines()]
    rows = rows_of(DATA / "seed_tasks.jsonl", SFT)
    assert len(rows) == 175
    for raw, row in zip(raws, rows, strict=True):
        (instance,) = raw["instances"]
        question, answer = row.conversation.messages
        assert answer.content == instance["output"]
        assert question.content == "\n\n".join(filter(None, [raw["instruction"], instance["input"]]))


@needs_data
def test_hh_rlhf():
    path, report = DATA / "hh_harmless_pairs.jsonl.gz", Report()
    with pytest.raises(ValueError, match=r"pairs.jsonl.gz:\d+: the answers are not to the same prompt.*; mend it"):
        rows_of(path, (PreferenceRow,))
    rows = rows_of(path, (PreferenceRow,), report, strict=False)
    with gzip.open(path, "rt") as file:
        raws = [json.loads(line) for line in file]
    expected = []
    for raw in raws:
        (before, _, chosen), (other, _, rejected) = (
            raw[key].rpartition("\n\nAssistant:") for key in ("chosen", "rejected")
        )
        if before == other and chosen.strip() and rejected.strip():
            expected.append(
                (before.count("\n\nHuman:") + before.count("\n\nAssistant:"), chosen.strip(), rejected.strip())
            )
    assert (len(raws), len(rows)) == (1500, len(expected))
    assert [(row.chosen, row.rejected) for row in rows] == [each[1:] for each in expected]
    num_fewer = sum(len(row.prompt) < num for row, (num, _, _) in zip(rows, expected, strict=True))
    assert num_fewer == report.changed["turns of one role in a row joined"]
    assert num_fewer < 10
    assert all(row.prompt.last.role == "user" for row in rows)


@needs_data
@pytest.mark.parametrize(("name", "num"), [("hh_helpful_scored.json", 470), ("webgpt_scored.json.gz", 855)])
def test_scored_answers(name, num):
    read = gzip.open if name.endswith(".gz") else open
    with read(DATA / name, "rt") as file:
        raws = json.load(file)
    report = Report()
    rows = {
        int(place.rpartition(" ")[2]) - 1: row
        for place, row in read_rows(Source(str(DATA / name)), (RankedRow,), report, False)
    }
    assert report.num_read == len(raws) == num
    assert len(rows) > 0.98 * num
    for number, row in rows.items():
        assert row.scores == tuple(raws[number]["score"])
        for text, response in zip(raws[number]["text"], row.responses, strict=True):
            assert text.rstrip().endswith(response)
            asked_in_it = [each.content in text for each in row.prompt]
            assert all(asked_in_it) or report.changed
    chats = rows_of(DATA / name, SFT, strict=False)
    assert len(chats) == len(rows)


def test_a_row_of_no_format_is_told_by_its_place_and_does_not_hide_that_of_the_others(tmp_path: Path) -> None:
    good = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}
    path = write(tmp_path / "a.jsonl", [good, {"messages": 3}, {"x": 1}])
    with pytest.raises(ValueError, match=r"a\.jsonl:2: 'messages' must be a list"):
        rows_of(path, SFT)
    report = Report()
    assert len(rows_of(path, SFT, report, strict=False)) == 1
    assert sum(report.skipped().values()) == 2

"""The sets that tools/prepare_data.py knows by name, and what their rows become where training does not read them as
they are."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class KnownData:
    """A data set of the hub: which of its files are taken (`patterns`), and what for (`use`, with the folder as {0}
    and the name as {1}).

    `convert` makes a row of ours of one of theirs, and raises ValueError with the reason for one that is left out;
    without it files stay as they are. `by_split` puts what ends in `/train.json` or the like under `train/`.
    """

    repo: str
    patterns: tuple[str, ...]
    about: str
    use: str
    convert: Callable[[Row], Row] | None = None
    by_split: bool = False


def known_data(name: str) -> KnownData | None:
    """The set of this name, None where there is none."""
    if found := re.fullmatch(r"wikipedia-([a-z][a-z-]*)", name):
        return KnownData(
            "wikimedia/wikipedia",
            (f"20231101.{found[1]}/*.parquet",),
            "articles of a Wikipedia, by its language: wikipedia-en, wikipedia-simple, ...",
            _INDEX,
            document,
        )
    return KNOWN_DATA.get({"oig-small-chip2": "oig-chip2"}.get(name, name))


def document(row: Row) -> Row:
    """An article of Wikipedia as a document for the index: `id`, `title`, `text`, its address as metadata."""
    text = _text(row, "text")
    return {"id": str(row.get("id", "")), "title": str(row.get("title") or ""), "text": text} | {
        "metadata": {"url": row["url"]} if row.get("url") else {}
    }


def question(row: Row) -> Row:
    """A question of Natural Questions and the first of its short answers, as a conversation."""
    given = row.get("answer")
    answers = [each for each in given if isinstance(each, str) and each.strip()] if isinstance(given, list) else []
    if not answers:
        raise ValueError("no answer")
    return {
        "messages": [
            {"role": "user", "content": _text(row, "question")},
            {"role": "assistant", "content": answers[0]},
        ]
    }


def moderated(row: Row) -> Row:
    """What a user said and its tags, as `text` and `label`, a list: several hold at once (`needs caution | hate`).

    The tags are in a column, in the metadata, or, as in what GPT-JT-Moderation was trained on, after `Output:` in the
    text itself.
    """
    text = next((row[key] for key in ("text", "prompt", "instruction", "user") if isinstance(row.get(key), str)), "")
    about = row.get("metadata")
    columns = {**(about if isinstance(about, Mapping) else {}), **row}
    tags = next((columns[key] for key in ("labels", "label", "tags", "safety_label") if columns.get(key)), None)
    if tags is None and (found := re.fullmatch(r"\s*Input:(.*)\nOutput:(.*)", text, re.DOTALL)):
        text, tags = found[1], found[2]
    listed = tags.split("|") if isinstance(tags, str) else tags if isinstance(tags, Sequence) else []
    labels = [tag.strip().lower() for tag in listed if isinstance(tag, str) and tag.strip()]
    said = re.sub(r"\A\s*(<human>|User|Human):|\s*(<bot>|Assistant):\s*\Z", "", text).strip()
    if not said or not labels:
        raise ValueError("no tag" if said else "no text")
    return {"text": said, "label": labels}


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no {key}")
    return value


_CHAT = "python training/main.py method=sft model=MODEL data={0}"
_INDEX = "python -m retrieval build {0} --index indexes/{1}"
_LONG = "togethercomputer/Long-Data-Collections"

KNOWN_DATA = {
    "oig": KnownData(
        "laion/OIG",
        ("*.jsonl", "*.jsonl.gz"),
        "the 44 million instructions of OpenChatKit's models; --only 'unified_ni*' takes some of its files",
        "python training/main.py method=sft model=MODEL data='[{{location: {0}, format: oig}}]' data.on_bad_row=skip",
    ),
    "oig-chip2": KnownData(
        "laion/OIG", ("unified_chip2.jsonl*",), "its small, better part: 210,000 instructions (OIG-small-chip2)", _CHAT
    ),
    "oig-moderation": KnownData(
        "ontocord/OIG-moderation",
        ("OIG_safety_v0.2.jsonl*",),
        "134,530 things that users say, tagged from casual to needs intervention",
        "python training/main.py method=classification model=MODEL data={0}",
        moderated,
    ),
    "long-data-collections": KnownData(
        _LONG,
        ("*.jsonl.zst",),
        "81 GB of long texts",
        "python training/main.py method=ntp model=MODEL data={0}/pretrain",
    ),
    "booksum": KnownData(_LONG, ("fine-tune/booksum.jsonl.zst",), "chapters of books and their summaries", _CHAT),
    "natural-questions": KnownData(
        _LONG,
        ("fine-tune/natural_questions_10_200_docs.jsonl.zst",),
        "questions with 10 to 200 documents, of which one has the answer (multi-document QA)",
        _CHAT,
    ),
    "nq-open": KnownData(
        "google-research-datasets/nq_open",
        ("nq_open/train-*.parquet", "nq_open/validation-*.parquet"),
        "87,925 questions with short answers, without documents",
        _CHAT + "/train data.eval={0}/validation",
        question,
        by_split=True,
    ),
    "shp": KnownData(
        "stanfordnlp/SHP",
        ("*/train.json", "*/validation.json", "*/test.json"),
        "385,000 preferences between comments, of 18 subjects",
        "python training/main.py method=reward model=MODEL data={0}/train data.eval={0}/validation",
        by_split=True,
    ),
    "hh-rlhf": KnownData(
        "Anthropic/hh-rlhf",
        ("h*/train.jsonl.gz", "h*/test.jsonl.gz"),
        "170,000 preferences between answers of an assistant",
        "python training/main.py method=dpo model=MODEL data={0}/train data.eval={0}/test",
        by_split=True,
    ),
}


def name_by_split(name: str) -> str:
    """`askbaking/train.json` -> `train/askbaking.jsonl` (it is JSON Lines), `x/validation-00000-of-1.parquet` ->
    `validation/x-00000-of-1.parquet`. Raises ValueError for a name without a split."""
    found = re.fullmatch(r"(?:.*/)?([^/]+)/(train|validation|test)(-[^/.]*)?\.([\w.]+)", name)
    if found is None:
        raise ValueError(f"'{name}' does not say of which split it is")
    return f"{found[2]}/{found[1]}{found[3] or ''}.{'jsonl' if found[4] == 'json' else found[4]}"

"""Rows made from templates.yaml: harmful and harmless fillers in the same frames, the same rows on every machine."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

import yaml

from moderation.head.data import LABELS, Row

# Thresholds are set on sources of harmless texts alone: on the groups marked `ordinary`. What is made to look harmful
# stands with what is: to hold 1% there as well would miss most harmful requests.
SOURCE, BENIGN_SOURCE = "templates", "templates_harmless"
# Verbs of one syllable that double their last letter, and those that no rule gets right.
DOUBLED = (
    "abet beg bet cram cut dig drop fit get hit hug jam knit nap pin plan put rig rob run scam scrap set shop sit skim "
    "skip slap spin stab stop strip swat swim trap trim win "
    "chop drag dub fan flip gag grab hop jog log mop mug nod rip sic skin slit snap spit tag tap throb wrap zip"
)
IRREGULAR = {"lie": "lying", "die": "dying", "tie": "tying", "dye": "dyeing", "3D": "3D", "DJ": "DJing"}
IRREGULAR |= {"traffic": "trafficking", "dox": "doxxing", "kidnap": "kidnapping", "smuggle": "smuggling"}


def template_rows(seed: int = 1) -> list[Row]:
    """Every filler in `each` frames of its kind; `split` is test for every seventh filler, calib for another, else
    train.

    `group` is the name of the group in the file. A filler is wholly in one split.
    """
    spec = yaml.safe_load(resources.files("moderation.head").joinpath("templates.yaml").read_text(encoding="utf-8"))
    rows: list[Row] = []
    for group in spec["groups"]:
        rows += _rows_of(group, spec["frames"], seed)
    return list({row.text: row for row in rows}.values())


def _rows_of(group: Mapping[str, Any], frames: Mapping[str, list[str]], seed: int) -> Iterator[Row]:
    harmful = list(group.get("labels", []))
    labels = dict.fromkeys(LABELS, 0) | dict.fromkeys(harmful, 1)
    labels["unsafe"] = int(bool(harmful) or group.get("unsafe", False))
    for label in group.get("unknown", []):
        del labels[label]
    ask = group["frames"] in ("ask", "red")
    source = BENIGN_SOURCE if group.get("ordinary") else SOURCE
    for i, filler in enumerate(str(group["fillers"]).split(" | ")):
        split = {3: "test", 5: "calib"}.get(i % 7, "train") if len(frames[group["frames"]]) > 1 else "train"
        draw = random.Random(f"{seed} {group['name']} {filler}")  # noqa: S311  # a reproducible choice, no secret
        for frame in draw.sample(frames[group["frames"]], group["each"]):
            yield Row(fill(frame, filler), labels, split, source, group["name"])
        if ask and harmful and "self-harm" not in harmful:  # the deed as a topic: harmless
            safe = dict.fromkeys(LABELS, 0)
            for frame in draw.sample(frames["about"], 3):
                yield Row(fill(frame, filler), safe, split, SOURCE, f"about {group['name']}")


def fill(frame: str, filler: str) -> str:
    """The frame with its slot filled: {x} and {act} by the filler, {ing} by its -ing form; a capital at the start."""
    text = frame.replace("{x}", filler).replace("{act}", filler).replace("{ing}", gerund(filler))
    return text if frame[0] != "{" or len(frame) < 4 else text[0].upper() + text[1:]


def gerund(phrase: str) -> str:
    """"make a bomb" -> "making a bomb"."""  # fmt: skip
    verb, space, rest = phrase.partition(" ")
    if verb == "3D":  # "3D print a ..."
        return verb + space + gerund(rest)
    if verb in IRREGULAR:
        return IRREGULAR[verb] + space + rest
    if verb in DOUBLED.split():
        stem = verb + verb[-1]
    elif verb.endswith("e") and not verb.endswith(("ee", "oe", "ye")):
        stem = verb[:-1]
    else:
        stem = verb
    return f"{stem}ing{space}{rest}"

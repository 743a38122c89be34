"""Classifiers: texts -> a probability for each label. One file each, a registry line each.

`open_classifier` opens them by name. Importing this loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Protocol, cast

from common.files import expand
from moderation.classifiers.composite import JOININGS, CompositeClassifier
from moderation.classifiers.keyword import KeywordClassifier
from moderation.classifiers.transformers_classifier import LabelMap, TransformersClassifier
from moderation.labels import load_label_map
from moderation.types import Classifier

__all__ = [
    "CompositeClassifier",
    "KeywordClassifier",
    "TransformersClassifier",
    "kind_of",
    "members_of",
    "open_classifier",
]

# kind -> module:function that takes (name, device, label map) and returns a Classifier
CLASSIFIERS = {
    "head": "moderation.classifiers.embedded:open_head",
    "guard": "moderation.classifiers.generative:open_guard",
    "openai": "moderation.classifiers.openai_endpoint:open_openai",
    "composite": "moderation.classifiers.composite:open_composite",
    "transformers": "moderation.classifiers.transformers_classifier:open_transformers",
}


class _Opener(Protocol):
    def __call__(self, name: str, device: str | None, label_map: LabelMap) -> Classifier: ...


def kind_of(name: str) -> str:
    """The kind of classifier, a key of CLASSIFIERS, that `name` stands for.

    `default` and a directory with head.json are heads; `openai`, `openai:MODEL` and `openai+URL#MODEL` a moderation
    service; `guard:FORMAT:MODEL` a generative guard; `strictest:A,B` and `average:A,B` a composite; anything else is
    a Hugging Face sequence classifier. A path that begins with `./` or `/` is never more than a path.
    """
    prefix = re.split("[:+]", name, maxsplit=1)[0]
    if prefix in JOININGS:
        return "composite"
    if prefix in ("guard", "openai"):
        return prefix
    is_head = name == "default" or (name.strip() and (expand(name) / "head.json").is_file())
    return "head" if is_head else "transformers"


def open_classifier(
    name: str = "default", device: str | None = None, label_map: str | Path | None = None
) -> Classifier:
    """The classifier that `name` stands for (see `kind_of`), on the torch device of that name if it runs here.

    `label_map` is a file that gives the labels of a sequence classifier our names, see `moderation.labels`. Raises
    ValueError where the classifier cannot be opened, and for a label map without a sequence classifier.
    """
    if label_map is not None and "transformers" not in map(kind_of, members_of(name)):
        raise ValueError(f"a label map is for Hugging Face sequence classifiers, and '{name}' is none; leave it out")
    return open_with(name, device, load_label_map(label_map) if label_map is not None else {})


def open_with(name: str, device: str | None, label_map: LabelMap) -> Classifier:
    """The same with a label map that is loaded: for the sequence classifiers that `name` stands for."""
    module, function = CLASSIFIERS[kind_of(name)].split(":")
    opener = cast(_Opener, getattr(importlib.import_module(module), function))
    return opener(name, device, label_map)


def members_of(name: str) -> list[str]:
    """The names that a composite's name joins; of any other classifier its own."""
    return [part.strip() for part in name.partition(":")[2].split(",")] if kind_of(name) == "composite" else [name]

"""The gate: bounds on figures, from YAML, and whether a new model passes them.

figure: {min: 0.7, max: 0.9, gain: 0.05, loss: 10%}

`min` and `max` bound the new model's figure as it was measured. `gain`: the new model must surely be better than the
old one by more than so much; `loss`: surely not worse by more than so much. Surely means the whole 95 % interval of the
paired difference (figures.py), so that noise does not let a model through.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import read_text
from tools.improving.figures import FIGURES, Compared

DEFAULT = Path(__file__).with_name("gate.yaml")
BOUNDS = ("min", "max", "gain", "loss")


@dataclass(frozen=True)
class Line:
    """One bound on one figure. `is_share`: `value` is a share of the old model's figure."""

    figure: str
    bound: str
    value: float
    is_share: bool = False

    def __str__(self) -> str:
        return f"{self.figure} {self.bound} " + (f"{self.value:.0%}" if self.is_share else f"{self.value:g}")


@dataclass(frozen=True)
class Verdict:
    """Whether a line is kept, and why, in figures."""

    line: Line
    passed: bool
    reason: str


def read_gate(path: Path = DEFAULT) -> tuple[Line, ...]:
    """The lines of a gate file. Raises ValueError, which names the line, for what is no bound on a figure."""
    import yaml

    text = read_text(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{line}: not YAML: {getattr(error, 'problem', None) or error}") from None
    except (RecursionError, ValueError) as error:  # YAML's own dates and numbers can be impossible
        raise ValueError(f"{path}: not YAML that can be read: {error}") from None
    if not isinstance(content, dict) or not isinstance(node, yaml.MappingNode) or not content:
        raise ValueError(f"{path}: must be lines of `figure: {{bound: value}}`; the figures are: {', '.join(FIGURES)}")
    lines: list[Line] = []
    for key, value in node.value:
        place = f"{path}:{key.start_mark.line + 1}"
        name = key.value if isinstance(key.value, str) else "?"
        if any(line.figure == name for line in lines):
            raise ValueError(f"{place}: {name} has a line already; put its bounds into one")
        lines += _lines(place, name, yaml.SafeLoader(""), value)
    return tuple(lines)


def _lines(place: str, name: str, loader: Any, node: Any) -> list[Line]:
    if name not in FIGURES:
        near = difflib.get_close_matches(name, FIGURES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{place}: unknown figure '{name}'; {meant}The figures are: {', '.join(FIGURES)}")
    bounds = loader.construct_document(node)
    if not isinstance(bounds, dict) or not bounds:
        raise ValueError(f"{place}: {name} needs bounds, such as {{gain: 0.05}}; the bounds are: {', '.join(BOUNDS)}")
    if len(bounds) < len(node.value):
        raise ValueError(f"{place}: {name} has a bound twice; give it once")
    found = [_line(place, name, bound, value) for bound, value in bounds.items()]
    values = {line.bound: line.value for line in found}
    if values.get("min", -math.inf) > values.get("max", math.inf):
        raise ValueError(f"{place}: {name} can never be at least {values['min']:g} and at most {values['max']:g}")
    return found


def _line(place: str, name: str, bound: Any, value: Any) -> Line:
    if bound not in BOUNDS:
        raise ValueError(f"{place}: unknown bound '{bound}' of {name}; the bounds are: {', '.join(BOUNDS)}")
    relative = bound in ("gain", "loss")
    is_share = relative and isinstance(value, str) and value.strip().endswith("%")
    try:
        number = float(value.strip()[:-1]) / 100 if is_share else value
    except ValueError:
        number = value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        kinds = "a number, or as '25%' a share of the old figure" if relative else "a number"
        raise ValueError(f"{place}: {name} {bound}: {value!r} is not {kinds}")
    if number < 0:
        raise ValueError(f"{place}: {name} {bound}: {value!r} must be 0 or more; {bound} says the direction by itself")
    return Line(name, bound, float(number), is_share)


def judge(lines: tuple[Line, ...], compared: Mapping[str, Compared]) -> list[Verdict]:
    """What becomes of each line. A model passes where all do."""
    return [Verdict(line, *_judged(line, compared[line.figure])) for line in lines]


def _judged(line: Line, found: Compared) -> tuple[bool, str]:
    if line.bound in ("min", "max"):
        if found.new is None:
            return False, "nothing to measure it on among the questions and replies"
        kept = found.new >= line.value if line.bound == "min" else found.new <= line.value
        return kept, f"it is {found.new:.3f}"
    if found.old is None and line.bound == "loss":
        return True, "the old model has none to lose"
    if found.gain is None or found.gain_interval is None or found.old is None:
        return False, "nothing to compare among the questions and replies"
    wanted = line.value * found.old if line.is_share else line.value
    low, high = found.gain_interval
    told = f"gain {found.gain:+.3f} ({low:+.3f} to {high:+.3f})"
    if line.bound == "gain":
        return low > wanted, told
    return low >= -wanted, told

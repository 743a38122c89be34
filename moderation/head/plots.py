"""Plots as SVG, drawn here: lines in a unit square, and bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

SIDE, MARGIN, LEGEND = 320, 48, 150  # pixels
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")

Points = Sequence[tuple[float, float]]


def lines(title: str, across: str, up: str, curves: Mapping[str, Points], diagonal: bool = False) -> str:
    """An SVG image of named curves; both axes go from 0 to 1, and points outside are drawn at the edge."""
    left, bottom = MARGIN, MARGIN + SIDE
    parts = [_text(left + SIDE / 2, 24, title, "middle"), _text(left + SIDE / 2, bottom + 38, across, "middle")]
    parts.append(f'<g transform="rotate(-90 14 {MARGIN + SIDE / 2})">{_text(14, MARGIN + SIDE / 2, up, "middle")}</g>')
    parts.append(f'<rect x="{left}" y="{MARGIN}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>')
    for tick in (0.0, 0.5, 1.0):
        parts.append(_text(left + tick * SIDE, bottom + 16, f"{tick:g}", "middle"))
        parts.append(_text(left - 6, bottom - tick * SIDE + 4, f"{tick:g}", "end"))
    if diagonal:
        parts.append(f'<path d="{_path([(0, 0), (1, 1)])}" stroke="#888" stroke-dasharray="4" fill="none"/>')
    for number, (name, points) in enumerate(curves.items()):
        colour = COLOURS[number % len(COLOURS)]
        parts.append(f'<path d="{_path(points)}" stroke="{colour}" stroke-width="1.5" fill="none"/>')
        parts.append(_text(left + SIDE + 12, MARGIN + 14 + 16 * number, name, "start", colour))
    return _image(left + SIDE + LEGEND, bottom + MARGIN, parts)


def bars(title: str, values: Mapping[str, float]) -> str:
    """An SVG image of one bar for each name; values are shares, shown as percentages, the longest fills the width."""
    top = max(values.values(), default=0) or 1
    parts = [_text(LEGEND, 24, title, "start")]
    for number, (name, value) in enumerate(values.items()):
        y = MARGIN + 22 * number
        parts.append(_text(LEGEND - 6, y + 12, name, "end"))
        parts.append(f'<rect x="{LEGEND}" y="{y}" width="{value / top * SIDE:.1f}" height="14" fill="{COLOURS[0]}"/>')
        parts.append(_text(LEGEND + value / top * SIDE + 6, y + 12, f"{value:.2%}", "start"))
    return _image(LEGEND + SIDE + 80, MARGIN + 22 * len(values) + 10, parts)


def _path(points: Points) -> str:
    inside = ((min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for x, y in points)
    drawn = [f"{MARGIN + x * SIDE:.1f} {MARGIN + (1 - y) * SIDE:.1f}" for x, y in inside]
    return "M" + " L".join(drawn) if drawn else ""


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _image(width: float, height: float, parts: Sequence[str]) -> str:
    size = f'width="{width:.0f}" height="{height:.0f}"'
    style = 'font-family="sans-serif" font-size="12"'
    inner = "\n".join(parts)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="white"/>\n{inner}\n</svg>\n'

"""Charts as inline SVG, whose colors the page's style decides, so that light and dark are one drawing.

Lengths are in the drawing's own units, about px at full size.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 520, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 34, 34  # margins of the plotted area
DASHES = ("", "11 4", "5 2", "12 3 3 3")  # lines differ in more than their color
NUM_COLORS = 6
MARK_PX, CHARACTER_PX = 12, 5.6  # rows of labels over the plot, and about the width of one character


class Series(NamedTuple):
    """One line; `level` is drawn dotted in its color, and `note` says in the legend what it is."""

    name: str
    places: Sequence[float]
    values: Sequence[float]
    level: float | None = None
    note: str = ""


class Level(NamedTuple):
    """A horizontal line of its own."""

    value: float
    label: str


def line_chart(
    title: str, series: Sequence[Series], *, place_name: str, marks: Sequence[tuple[float, str]] = (),
    levels: Sequence[Level] = (), percent: bool = False, least: float | None = None,
    extent: tuple[float, float] | None = None,
) -> str:
    """A figure with lines over `place_name`, dashed `marks` (place, label) across them, and a legend of last values.

    Values that are not finite are gaps. `percent`: values are shares, from 0 to 1. `least`: a value that the axis
    reaches down to. `extent`: first and last place, where other charts reach further than these lines.
    """
    drawn = [one for one in series if any(map(math.isfinite, one.values))]
    values = [value for one in drawn for value in one.values if math.isfinite(value)]
    values += [one.level for one in drawn if one.level is not None] + [level.value for level in levels]
    values += [] if least is None else [least]
    places = [place for one in drawn for place in one.places] + list(extent or ())
    x = Axis(min(places), max(places), LEFT, WIDTH - RIGHT, whole=True)
    y = Axis(min(values), max(values), HEIGHT - BOTTOM, TOP, padded=True)
    shown = [mark for mark in marks if x.low <= mark[0] <= x.high]

    parts = [axes(x, y, place_name, percent)]
    parts += [across(level.value, y) for level in levels]
    parts += draw_marks(shown, x)
    for index, one in enumerate(drawn):
        color = f"c{index % NUM_COLORS}"
        if one.level is not None:
            parts.append(across(one.level, y, color))
        dash = dash_of(index, len(drawn))
        parts += [f'<polyline class="line {color}" stroke-dasharray="{dash}" points="{run}"/>'
                  for run in runs_of(one, x, y)]
        if len(one.places) == 1:
            parts.append(f'<circle class="{color}" cx="{x(one.places[0]):.1f}" cy="{y(one.values[0]):.1f}" r="3"/>')
    said = "; ".join(f"{one.name} from {as_text(one.values[0], percent)} to {as_text(one.values[-1], percent)}"
                     for one in drawn)
    return figure(title, f"{title} over {place_name}s: {said}", parts, legend(drawn, levels, percent))


def bar_chart(title: str, counts: Sequence[float], *, place_name: str, level: Level | None = None) -> str:
    """A figure with a bar for each count, in the order given."""
    x = Axis(0, len(counts), LEFT, WIDTH - RIGHT, whole=True)
    y = Axis(0, max([*counts, level.value if level else 0]), HEIGHT - BOTTOM, TOP)
    parts = [axes(x, y, place_name, percent=False)]
    width = max((WIDTH - LEFT - RIGHT) / len(counts) - 1, 0.5)
    parts += [f'<rect class="bar" x="{x(i) + 0.5:.2f}" y="{y(count):.1f}" width="{width:.2f}" '
              f'height="{HEIGHT - BOTTOM - y(count):.1f}"/>' for i, count in enumerate(counts) if count]
    if level:
        parts.append(across(level.value, y))
    return figure(title, f"{title}: from {max(counts):g} down to {min(counts):g}", parts,
                  legend([], [level] if level else [], percent=False))


class Axis:
    """Values to positions, and the round values to name along the way."""

    def __init__(self, low: float, high: float, start: float, end: float, *, whole: bool = False,
                 padded: bool = False) -> None:
        if low == high:
            low, high = (low - 0.5, high + 0.5) if whole or not low else (low - abs(low) / 2, high + abs(high) / 2)
        room = 0.06 * (high - low) if padded else 0
        # A quantity that is never negative is not drawn as if it could be.
        self.low, self.high = max(low - room, 0) if low >= 0 else low - room, high + room
        self.start, self.end = start, end
        rough = (self.high - self.low) / (8 if whole else 5)
        magnitude = 10.0 ** math.floor(math.log10(rough))
        step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= rough)
        self.step = max(step, 1) if whole else step
        first, last = math.ceil(self.low / self.step - 1e-9), math.floor(self.high / self.step + 1e-9)
        self.ticks = [index * self.step for index in range(first, last + 1)]

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def across(value: float, y: Axis, color: str = "") -> str:
    """A dotted line at a value."""
    return (f'<line class="{f"level {color}".strip()}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" '
            f'y2="{y(value):.1f}"/>')


def axes(x: Axis, y: Axis, place_name: str, percent: bool) -> str:
    """Grid lines, their values, and the name of the places."""
    bottom = HEIGHT - BOTTOM
    parts = []
    for tick in y.ticks:
        at = y(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
                     f'<text x="{LEFT - 6}" y="{at + 3.5:.1f}" text-anchor="end">'
                     f'{as_text(tick, percent, y.step)}</text>')
    for tick in x.ticks:
        at = x(tick)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
                     f'<text x="{at:.1f}" y="{bottom + 15}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
                 f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">'
                 f'{escape(place_name)}</text>')
    return "".join(parts)


def draw_marks(marks: Sequence[tuple[float, str]], x: Axis) -> list[str]:
    """Vertical lines with their labels above the plot, in as many of two rows as it takes that none covers another."""
    parts, free_from = [], [0.0, 0.0]
    for place, label in sorted(marks):
        at, width = x(place), CHARACTER_PX * len(label)
        anchor, left = ("start", at) if at + width < WIDTH else ("end", at - width)
        row = 0 if left >= free_from[0] else 1
        free_from[row] = left + width + 6
        foot = TOP - 6 - MARK_PX * row
        parts.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{foot - 6}" y2="{HEIGHT - BOTTOM}"/>'
                     f'<text class="mark" x="{at + (3 if anchor == "start" else -3):.1f}" y="{foot}" '
                     f'text-anchor="{anchor}">{escape(label)}</text>')
    return parts


def runs_of(one: Series, x: Axis, y: Axis) -> list[str]:
    """The points of each unbroken stretch of finite values."""
    runs: list[list[str]] = [[]]
    for place, value in zip(one.places, one.values):
        if math.isfinite(value):
            runs[-1].append(f"{x(place):.1f},{y(value):.1f}")
        else:
            runs.append([])
    return [" ".join(points) for points in runs if points]


def as_text(value: float, percent: bool, step: float | None = None) -> str:
    """A value as text; with `step`, the distance to the next one, in as many digits as tell them apart."""
    scaled = 100 * value if percent else value
    if step is not None:
        text = f"{scaled:.{max(0, -math.floor(math.log10((100 if percent else 1) * step) + 1e-9))}f}"
        text = f"{scaled:.2g}" if step < 1e-3 and not percent else text
    else:
        text = f"{scaled:.1f}" if percent else f"{scaled:.3g}"
    return text + (" %" if percent else "")


def legend(series: Sequence[Series], levels: Sequence[Level], percent: bool) -> str:
    """A list of the lines: how each is drawn, its name, its last value."""
    items = []
    for index, one in enumerate(series):
        dash = dash_of(index, len(series))
        note = f' <span class="note">{escape(one.note)}</span>' if one.note else ""
        items.append(f'<li>{swatch(f"line c{index % NUM_COLORS}", dash)} {escape(one.name)} '
                     f'<b>{as_text(one.values[-1], percent)}</b>{note}</li>')
    items += [f'<li>{swatch("level", "")} <span class="note">{escape(level.label)}</span></li>' for level in levels]
    return f'<ul class="legend">{"".join(items)}</ul>' if items else ""


def dash_of(index: int, num_lines: int) -> str:
    """The dashes of a line; where colors are used twice, they tell the two apart."""
    return DASHES[(index // NUM_COLORS if num_lines > NUM_COLORS else index) % len(DASHES)]


def swatch(classes: str, dash: str) -> str:
    """A short piece of a line."""
    return ('<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true">'
            f'<line class="{classes}" x1="0" x2="26" y1="4" y2="4" stroke-dasharray="{dash}"/></svg>')


def figure(title: str, description: str, parts: Sequence[str], below: str) -> str:
    """The drawing under its title, the legend under it."""
    return (f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(description)}">{"".join(parts)}</svg>'
            f'{below}</figure>')

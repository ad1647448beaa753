"""Charts: where lines are drawn, gaps, marks; what becomes of them on the page."""
from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from visualization.curves import schedule_marks
from visualization.report.figures import COLORS, ChartLine, draw_lines, format_value, line_chart


def drawing(chart) -> ElementTree.Element:
    namespace = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    return ElementTree.fromstring(f"<svg {namespace}>{chart.svg}</svg>")


def paths_of(chart, color: str) -> list[np.ndarray]:
    """Points [P, 2] of each path drawn in a color of the page's style."""
    found = []
    for path in drawing(chart).iter("path"):
        if f"stroke: var(--{color})" in path.attrib["style"] or f"fill: var(--{color})" in path.attrib["style"]:
            found.append(np.array(re.findall(r"[\d.]+", path.attrib["d"]), float).reshape(-1, 2))
    return found


def test_lines_are_where_their_values_are():
    places, values = [1, 2, 3, 4, 9], [5.0, 1.0, math.nan, 3.0, 2.0]
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_lines(axes, [ChartLine("a", places, values, chance=4.0, note="n")], [(2.5, "on")])
    line, chance, mark = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), places)
    np.testing.assert_array_equal(line.get_ydata(), values)
    assert list(chance.get_ydata()) == [4, 4] and chance.get_color() == line.get_color()
    assert list(mark.get_xdata()) == [2.5, 2.5]
    assert line.get_label() == "a  2 (n)"


def test_a_gap_and_the_scale_arrive_on_the_page():
    places, values = [1, 2, 3, 4, 9], [5.0, 1.0, math.nan, 3.0, 2.0]
    line, chance, *_ = paths_of(line_chart("t", [ChartLine("a", places, values, 4.0)], "epoch", from_zero=False), "c0")
    assert len(line) == 4
    x, y = line.T
    np.testing.assert_allclose((x - x[0]) / (x[-1] - x[0]), [0, 1 / 8, 3 / 8, 1], atol=1e-3)
    np.testing.assert_allclose((y - y[0]) / (y[1] - y[0]), [0, 1, 0.5, 0.75], atol=2e-3)
    assert y[1] > y[0], "up is more"
    np.testing.assert_allclose(chance[:, 1], y[0] + (y[1] - y[0]) / 4, atol=0.11)


def test_changes_lie_between_two_epochs():
    flags = {"epochs": 12, "graph_start_epoch": 6, "queue_start_epoch": 0, "lr_decay_epoch": 12}
    assert schedule_marks(flags) == [(6.5, "graph on (--split)")], "6 epochs without it, the 7th with it"
    assert schedule_marks({"epochs": 12, "graph_start_epoch": 20}) == []


def test_marks_outside_are_left_out_and_labels_do_not_meet():
    marks = [(2.5, "graph on (--split)"), (3.0, "queue on"), (40, "lr / 10")]
    chart = line_chart("t", [ChartLine("a", range(1, 21), range(20))], "epoch", marks=marks)
    texts = {text.text: text for text in drawing(chart).iter("text")}
    assert "lr / 10" not in texts
    assert texts["graph on (--split)"].attrib["y"] != texts["queue on"].attrib["y"]


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 1.0], [1e-5, 1e-3], [0, 12345.0]])
def test_any_values_fit(values):
    chart = line_chart("<t>", [ChartLine("<a> $x$ & _b", range(1, len(values) + 1), values)], "epoch")
    for points in paths_of(chart, "c0"):
        assert (points >= 0).all() and (points <= (chart.width, chart.height)).all()
    assert "<a>" not in chart.svg and any("<a> $x$ & _b" in (text.text or "") for text in drawing(chart).iter("text"))


@pytest.mark.parametrize(("low", "high"), [(1, 12), (1, 300), (0, 2), (5, 5)])
def test_epochs_have_whole_ticks(low, high):
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_lines(axes, [ChartLine("a", [low, high], [0, 1])], [])
    ticks = axes.get_xticks()
    assert 1 <= len(ticks) <= 11 and all(tick == int(tick) for tick in ticks)


def test_numbers():
    assert format_value(0.2357, percent=True) == "23.6 %" and format_value(2.1412, percent=False) == "2.14"


def test_a_level_is_inside_the_chart():
    chart = line_chart("t", [ChartLine("a", [1, 2, 3], [8, 4, 0])], "p", level=(16, "twice the most"))
    [[first, _, last], *_], [level, *_] = paths_of(chart, "c0"), paths_of(chart, "soft")
    assert last[1] - level[0, 1] == pytest.approx(2 * (last[1] - first[1]), abs=0.3) and level.min() >= 0
    assert "twice the most" in [text.text for text in drawing(chart).iter("text")]


def test_colors_of_the_page_are_used_alone():
    chart = line_chart("t", [ChartLine(f"a{n}", [1, 2], [n, n]) for n in range(8)], "epoch", marks=[(1.5, "m")])
    assert not any(color in chart.svg for color in COLORS.values())
    assert "url(" not in chart.svg and "font" not in chart.svg and ' id="' not in chart.svg

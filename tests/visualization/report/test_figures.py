"""Charts: where lines are drawn, gaps, marks; what becomes of them on the page."""
from __future__ import annotations

import base64
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure

from visualization.curves import schedule_marks
from visualization.report.figures import ChartLine, draw_lines, format_value, line_chart


def drawing(chart) -> str:
    return base64.b64decode(chart["uri"].removeprefix("data:image/svg+xml;base64,")).decode()


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


def test_changes_lie_between_two_epochs():
    flags = {"graph_start_epoch": 6, "queue_start_epoch": 0, "lr_decay_epoch": 12}
    assert schedule_marks(flags, 12) == [(6.5, "graph on (--split)")], "6 epochs without it, the 7th with it"
    assert schedule_marks({"graph_start_epoch": 20}, 12) == []


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 1.0], [1e-5, 1e-3], [0, 12345.0]])
def test_any_values_and_names_fit(values):
    chart = line_chart("<t>", [ChartLine("<a> $x$ & _b", range(1, len(values) + 1), values)], "epoch", level=(16, "most"))
    texts = [text.text for text in ElementTree.fromstring(drawing(chart)).iter("{http://www.w3.org/2000/svg}text")]
    assert any("<a> $x$ & _b" in text for text in texts) and "most" in texts


@pytest.mark.parametrize(("low", "high"), [(1, 12), (1, 300), (0, 2), (5, 5)])
def test_epochs_have_whole_ticks(low, high):
    axes = Figure().add_axes((0, 0, 1, 1))
    draw_lines(axes, [ChartLine("a", [low, high], [0, 1])], [])
    ticks = axes.get_xticks()
    assert 1 <= len(ticks) <= 11 and all(tick == int(tick) for tick in ticks)


def test_numbers():
    assert format_value(0.2357, percent=True) == "23.6 %" and format_value(2.1412, percent=False) == "2.14"

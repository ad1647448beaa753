"""Charts: where lines are drawn, gaps, marks, ticks."""
from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from visualization.curves import schedule_marks
from visualization.report.charts import HEIGHT, LEFT, RIGHT, WIDTH, Axis, Level, Series, as_text, bar_chart, line_chart


def drawing(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.search("<svg viewBox.*?</svg>", figure)[0])


def points_of(line: ElementTree.Element) -> list[tuple[float, float]]:
    return [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]


def test_lines_are_where_their_values_are():
    places, values = [1, 2, 3, 4, 9], [5.0, 1.0, math.nan, 3.0, 2.0]
    figure = line_chart("t", [Series("a", places, values, level=4.0, note="n")], place_name="epoch")
    before, after = map(points_of, drawing(figure).iter("polyline"))
    drawn = dict(zip([1, 2, 4, 9], before + after))
    assert drawn[1][0] == LEFT and drawn[9][0] == WIDTH - RIGHT
    for place, (x, _) in drawn.items():
        assert x == pytest.approx(LEFT + (place - 1) / 8 * (WIDTH - RIGHT - LEFT), abs=0.06)
    heights = {value: drawn[place][1] for place, value in zip(places, values) if place in drawn}
    per_unit = (heights[1.0] - heights[5.0]) / 4
    assert per_unit > 0, "up is more"
    assert heights[2.0] == pytest.approx(heights[1.0] - per_unit, abs=0.11)
    [level] = [line for line in drawing(figure).iter("line") if "level" in line.attrib["class"]]
    assert float(level.attrib["y1"]) == pytest.approx(heights[1.0] - 3 * per_unit, abs=0.11)


def test_changes_lie_between_two_epochs():
    flags = {"epochs": 12, "graph_start_epoch": 6, "queue_start_epoch": 0, "lr_decay_epoch": 12}
    assert schedule_marks(flags) == [(6.5, "graph on (--split)")], "6 epochs without it, the 7th with it"
    assert schedule_marks({"epochs": 12, "graph_start_epoch": 20}) == []


def test_marks_outside_are_left_out_and_labels_do_not_meet():
    marks = [(2.5, "graph on (--split)"), (3.0, "queue on"), (40, "lr / 10")]
    figure = line_chart("t", [Series("a", range(1, 21), range(20))], place_name="epoch", marks=marks)
    texts = [text for text in drawing(figure).iter("text") if text.attrib.get("class") == "mark"]
    assert [text.text for text in texts] == ["graph on (--split)", "queue on"]
    assert texts[0].attrib["y"] != texts[1].attrib["y"]


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0, 0.0], [-1.0, 1.0], [1e-5, 1e-3], [0, 12345.0]])
def test_any_values_fit(values):
    figure = line_chart("<t>", [Series("<a>", range(1, len(values) + 1), values)], place_name="epoch", least=0)
    for line in drawing(figure).iter("polyline"):
        for x, y in points_of(line):
            assert LEFT <= x <= WIDTH - RIGHT and 0 <= y <= HEIGHT
    assert "<t>" not in figure and "<a>" not in figure


@pytest.mark.parametrize(("low", "high"), [(1, 12), (1, 300), (0, 2), (5, 5)])
def test_epochs_have_whole_ticks(low, high):
    ticks = Axis(low, high, 0, 100, whole=True).ticks
    assert 1 <= len(ticks) <= 11 and all(tick == int(tick) for tick in ticks)


def test_numbers():
    assert as_text(0.2357, percent=True) == "23.6 %" and as_text(2.1412, percent=False) == "2.14"
    assert [as_text(tick, False, 0.5) for tick in (0.0, 1.5)] == ["0.0", "1.5"]
    assert [as_text(tick, True, 0.2) for tick in (0.0, 0.2)] == ["0 %", "20 %"]
    assert as_text(0.0005, False, 0.0005) == "0.0005"


def test_bars_are_as_high_as_their_counts():
    figure = bar_chart("t", [8, 4, 0], place_name="p", level=Level(4, "half"))
    first, second = drawing(figure).iter("rect")
    assert float(first.attrib["height"]) == pytest.approx(2 * float(second.attrib["height"]), abs=0.11)
    assert float(second.attrib["y"]) == pytest.approx(float(
        [line for line in drawing(figure).iter("line") if line.attrib["class"] == "level"][0].attrib["y1"]), abs=0.11)

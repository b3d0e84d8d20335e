"""Axes and lines."""

import re
from itertools import pairwise

import pytest

from lorasmith.report.axis import nice_ticks
from lorasmith.report.chart import HEIGHT, MOST_POINTS, WIDTH, Chart, Line, smoothed
from lorasmith.report.words import count, duration, short, size


@pytest.mark.parametrize(("low", "high"), [(0, 1), (3.49, 5.42), (-2e-5, 1.9e-4), (0, 8.5e8), (7, 7), (0, 0)])
def test_ticks_enclose_the_values_in_a_few_equal_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-12 and high - 1e-9 * abs(high) <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    gaps = [second - first for first, second in pairwise(ticks)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps))


def points_of(html):
    numbers = re.search(r'points="([^"]+)"', html).group(1)
    return [tuple(float(part) for part in pair.split(",")) for pair in numbers.split()]


def test_a_line_stays_inside_the_drawing_and_rises_with_the_values():
    drawn = points_of(Chart("rise", [Line("rise", [(step, step**2) for step in range(1, 50)])]).html())
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in drawn)
    assert [y for _, y in drawn] == sorted((y for _, y in drawn), reverse=True)


def test_a_long_run_is_thinned_and_keeps_its_ends():
    chart = Chart("long", [Line("long", [(step, 0.0 if step < 99_999 else 1.0) for step in range(100_000)])])
    drawn = points_of(chart.html())
    assert len(drawn) <= MOST_POINTS + 1
    assert drawn[-1][1] < drawn[0][1]


def test_one_point_is_a_dot():
    assert "<circle" in Chart("one", [Line("one", [(1, 2.0)])]).html()


def test_a_chart_without_points_is_nothing():
    assert Chart("none", [Line("none", [])]).html() == ""


def test_a_single_spike_does_not_bend_the_smoothed_line():
    points = [(float(step), 1.0) for step in range(100)]
    points[50] = (50.0, 1000.0)
    assert {value for _, value in smoothed(points)} == {1.0}


def test_numbers_are_short():
    assert [short(value) for value in (0.0, 3.5631, 1650.3, 2e-4, -0.5)] == ["0", "3.563", "1,650", "2e-4", "\u22120.5"]
    assert [size(value) for value in (512, 1.5 * 2**20, 1.18 * 2**30)] == ["512 B", "1.5 MiB", "1.18 GiB"]
    assert [count(value) for value in (6, 4608, 1.1e9)] == ["6", "4.61 k", "1.1 B"]
    assert [duration(value) for value in (2.345, 327.4, 7384)] == ["2.35 s", "5 min 27 s", "2 h 3 min"]

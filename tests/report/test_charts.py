"""Scales, ticks and charts: what is drawn is where it should be, valid XML, and readable without colour."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from prospect.report import svg
from prospect.report.charts import POINTS, smooth
from prospect.report.evidence import ends, rise
from prospect.report.svg import Bar, Canvas, Figure, Line, labels, minus, padded, ticks

SVG = "{http://www.w3.org/2000/svg}"


def parse(figure: Figure) -> ElementTree.Element:
    root = ElementTree.fromstring(figure.svg)
    assert root.tag == f"{SVG}svg"
    assert "nan" not in re.sub(r">[^<]*<", "><", figure.svg)
    return root


def words(root: ElementTree.Element) -> list[str]:
    return [t.text or "" for t in root.iter(f"{SVG}text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-6.3, 0.4, [-6.0, -4.0, -2.0, 0.0]),
        (1, 128, [50, 100]),
        (0, 0.0021, [0, 0.0005, 0.001, 0.0015, 0.002]),
        (5.0, 5.0, [5.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_labels_share_their_decimals_and_have_a_real_minus() -> None:
    assert labels([-0.5, 0.0, 0.5]) == ["−0.5", "0.0", "0.5"]
    assert labels([0, 1000, 2000]) == ["0", "1,000", "2,000"]
    assert labels([1e-5, 2e-5]) == ["1e−05", "2e−05"]
    assert minus("-0.00") == "0.00"


def test_ranges_have_air_but_none_below_zero() -> None:
    assert padded([1.0, 2.0], share=0.1) == pytest.approx((0.9, 2.1))
    assert padded([1.0, 2.0], include=[0])[0] == 0.0
    assert padded([3.0, 3.0]) == pytest.approx((2.7, 3.3))
    assert padded([0.0, 0.0]) == (-1.0, 1.0)
    assert padded([math.nan]) == pytest.approx((0.0, 1.06))


def test_the_canvas_maps_data_to_places() -> None:
    canvas = Canvas(200, 100, (0, 10), (-1, 1), left=50, right=50, top=10, bottom=10)
    assert (canvas.px(0), canvas.px(10), canvas.px(5)) == (50, 150, 100)
    assert (canvas.py(1), canvas.py(-1), canvas.py(0)) == (10, 90, 50)


def test_lines_have_title_description_labels_and_legend() -> None:
    series = [Line("desirable", "good", [1, 2, 3], [0.0, 1.0, 2.0]), Line("undesirable", "bad", [1, 2, 3], [0, -1, -2])]
    root = parse(svg.lines("x", "Rewards", "How they part", series, "step", "reward (nats)"))
    assert root.get("role") == "img"
    named = {element.get("id"): element.text for element in root if element.get("id")}
    assert [named[i] for i in str(root.get("aria-labelledby")).split()] == ["Rewards", "How they part"]
    assert {"step", "reward (nats)", "desirable", "undesirable"} <= set(words(root))
    tips = [title.text for circle in root.iter(f"{SVG}circle") for title in circle]
    assert "undesirable: −2 at 3" in tips


def test_a_gap_breaks_the_line() -> None:
    root = parse(svg.lines("x", "t", "d", [Line("", "main", [1, 2, 3, 4], [1, math.nan, 3, 4])], "x", "y"))
    path = next(p for p in root.iter(f"{SVG}path") if "line" in str(p.get("class")))
    assert str(path.get("d")).count("M") == 2


def test_bands_break_at_gaps_and_stay_inside() -> None:
    y = [1.0, 2.0, 3.0, 4.0, 5.0]
    low, high = [0.0, 1.0, math.nan, 3.0, 4.0], [2.0, 3.0, math.nan, 5.0, 6.0]
    root = parse(svg.lines("x", "t", "d", [Line("", "main", y, y, (low, high))], "x", "y"))
    assert sum("band" in str(p.get("class")) for p in root.iter(f"{SVG}path")) == 2


@pytest.mark.parametrize("y", [[], [math.nan], [2.0], [0.0, 0.0]])
def test_degenerate_series_draw(y: list[float]) -> None:
    parse(svg.lines("x", "t", "d", [Line("a", "main", range(len(y)), y)], "x", "y"))


def test_histogram_puts_the_classes_on_two_sides() -> None:
    root = parse(svg.histogram("h", "t", "d", [0.0, 1.0, 2.0], [1, 3], [4, 0], "reward", mark=0.5))
    bars = [r for r in root.iter(f"{SVG}rect") if "fill" in str(r.get("class"))]
    good = [r for r in bars if "good" in str(r.get("class"))]
    bad = [r for r in bars if "bad" in str(r.get("class"))]
    assert (len(good), len(bad)) == (2, 1)
    axis = float(bad[0].get("y") or 0)
    assert all(float(r.get("y") or 0) + float(r.get("height") or 0) == pytest.approx(axis, abs=0.2) for r in good)
    # 3 of 4 desirable answers: three times the height of 1 of 4
    heights = sorted(float(r.get("height") or 0) for r in good)
    assert heights[1] == pytest.approx(3 * heights[0], rel=0.01)
    assert {"▲ desirable (4)", "▼ undesirable (4)", "z0 = 0.5"} <= set(words(root))


def test_histogram_of_nothing_draws() -> None:
    parse(svg.histogram("h", "t", "d", [0.0, 1.0], [0], [0], "reward"))


def test_calibration_says_n_for_every_bin() -> None:
    bins = [
        {"low": 0.1, "high": 0.2, "mean": 0.15, "rate": 0.3, "n": 17},
        {"low": 0.9, "high": 1.0, "mean": 0.95, "rate": 0.8, "n": 4},
    ]
    root = parse(svg.calibration("c", "t", "d", [("before", "base", bins[:1]), ("after", "main", bins)]))
    assert [w for w in words(root) if w in ("17", "4")] == ["17", "17", "4"]
    assert {"n before", "n after"} <= set(words(root))


def test_bars_show_value_and_interval() -> None:
    rows = [Bar("before", 0.391, 0.36, 0.42, "base"), Bar("after", 0.5, math.nan, math.nan), Bar("sure", 0.5, 0.5, 0.5)]
    root = parse(svg.bars("b", "t", "d", rows, "desirable", percent=True, filled=True, reference=0.5))
    assert {"39.1 %", "36.0 % – 42.0 %", "before", "after", "50.0 %"} <= set(words(root))
    assert sum("whisker" in str(e.get("class")) for e in root.iter(f"{SVG}line")) == 6


def test_text_from_data_is_escaped() -> None:
    evil = '<script>alert("1")</script> & "x"\x00\x0b'
    for figure in (
        svg.lines(evil, evil, evil, [Line(evil, "main", [1, 2], [1, 2])] * 2, evil, evil),
        svg.bars(evil, evil, evil, [Bar(evil, 0.5, 0.4, 0.6)], evil),
    ):
        assert "<script" not in figure.svg
        assert any("<script>" in word for word in words(parse(figure)))


def test_short_series_stay_as_they_are() -> None:
    curve = smooth([1, 2, 3], [4, math.nan, 6])
    assert (curve.x, curve.y, curve.band) == ([1, 3], [4, 6], None)


def test_long_series_are_thinned_and_averaged() -> None:
    x = list(range(5000))
    curve = smooth(x, [k % 2 for k in x])
    assert len(curve.x) == POINTS
    assert (curve.x[0], curve.x[-1]) == (0, 4999)
    assert all(0.45 < y < 0.55 for y in curve.y)
    assert curve.band is not None
    assert all(high - low == pytest.approx(1.0, abs=0.02) for low, high in zip(*curve.band, strict=True))
    straight = smooth(x, x, exact=True)
    assert straight.x == straight.y
    assert len(straight.x) == POINTS


def test_ends_average_the_first_and_the_last_tenth() -> None:
    assert ends([1.0] * 50 + [3.0] * 50) == (1.0, 3.0)
    assert rise([0.0, 1.0]).value == 1.0
    assert math.isnan(rise([0.0, 1.0]).low)  # two values have no noise to measure
    found = rise([1.0, 2.0, 3.0, 5.0, 6.0, 7.0])  # 4 +- t(4) * sqrt(2 / 3)
    assert found.value == 4.0 and found.high - 4 == pytest.approx(2.776445 * math.sqrt(2 / 3), abs=1e-5)
    assert rise([2.0] * 8).low == rise([2.0] * 8).high == 0.0
    assert ends([1.0, 2.0]) == (1.0, 2.0)  # no value at both ends
    assert ends([1.0]) == (1.0, 1.0)
    assert all(math.isnan(v) for v in ends([math.nan]))

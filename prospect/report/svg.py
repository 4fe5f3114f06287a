"""Charts as SVG text: lines, histograms of two classes, calibration, bars with intervals.

A chart has a fixed inner size that its page stretches. Colours are classes (see style.css), so that the page's CSS
variables serve light and dark: "good" desirable, "bad" undesirable, "main" the model after training, "base" before it
or a baseline. No meaning hangs on colour alone: lines differ in dash, classes in place, and each carries its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax import saxutils

Range = tuple[float, float]

WIDTH, HEIGHT = 460, 250
DOTS = 40
"""Lines with at most this many points show each point, with its numbers under the pointer."""
FEW = 10
"""A calibration bin with fewer rows says little."""
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""What XML cannot hold, not even escaped."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A chart with its heading and the sentence under it, which screen readers say too; `slug` is unique on a page."""

    slug: str
    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True)
class Line:
    """A named series. `band` are the lower and upper ends of what is shaded around it; NaN leaves a gap."""

    name: str
    kind: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """A named value with its interval; `kind` is its class."""

    label: str
    value: float
    low: float
    high: float
    kind: str = "main"


# ---- charts ----------------------------------------------------------------------------------------------------------


def lines(
    slug: str,
    title: str,
    caption: str,
    series: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    include: Sequence[float] = (),
    y: Range | None = None,
    unit_square: bool = False,
) -> Figure:
    """Series over a common axis. `include` are values that the vertical axis must show, unless `y` is its range; the
    `unit_square` has the diagonal y = x for comparison."""
    if unit_square:
        canvas = Canvas(400, 380, (0.0, 1.0), (0.0, 1.0))
    else:
        values = [value for s in series for value in (*s.y, *(v for side in s.band or () for v in side))]
        steps = padded([v for s in series for v in s.x], share=0)
        canvas = Canvas(WIDTH, HEIGHT, steps, y or padded(values, include=include))
    canvas.axes(x_label, y_label)
    if canvas.y[0] < 0 < canvas.y[1]:
        canvas.line(canvas.x[0], 0, canvas.x[1], 0, "zero")
    if unit_square:
        canvas.line(0, 0, 1, 1, "zero")
    for s in series:
        canvas.band(s.x, *(s.band or ((), ())), s.kind)
    for s in series:
        canvas.path(s.x, s.y, s.kind)
        for x_value, y_value in zip(s.x, s.y, strict=True) if len(s.x) <= DOTS else ():
            if math.isfinite(y_value):
                tip = minus(f"{s.name or 'value'}: {y_value:.4g} at {x_value:.4g}")
                canvas.dot(x_value, y_value, s.kind, tip, 2.2)
    canvas.legend([(s.name, s.kind) for s in series if s.name])
    return canvas.figure(slug, title, caption)


def histogram(
    slug: str,
    title: str,
    caption: str,
    edges: Sequence[float],
    up: Sequence[int],
    down: Sequence[int],
    x_label: str,
    *,
    x: Range | None = None,
    mark: float | None = None,
) -> Figure:
    """Two classes back to back: the shares of desirable counts rise from the axis, those of undesirable ones hang from
    it. `mark` draws a vertical line (z0)."""
    sides = [(counts, [count / (sum(counts) or 1) for count in counts]) for counts in (up, down)]
    most = max((share for _, shares in sides for share in shares), default=0.0) or 1.0
    canvas = Canvas(WIDTH, HEIGHT, x or (edges[0], edges[-1]), (-most * 1.12, most * 1.12))
    levels = [v for v in ticks(0, most, 2) if v]
    names = [f"{name} %" for name in labels([100 * v for v in levels])]
    rows = [(sign * v, name) for v, name in zip(levels, names, strict=True) for sign in (1, -1)]
    canvas.axes(x_label, "share of the answers with that thumb", rows)
    for (counts, shares), kind in zip(sides, ("good", "bad"), strict=True):
        for left, right, count, share in zip(edges, edges[1:], counts, shares, strict=False):
            if share:
                tip = minus(f"{count} between {left:.3g} and {right:.3g}")
                width = max(canvas.px(right) - canvas.px(left) - 0.6, 1.2)
                size = canvas.py(0) - canvas.py(share)
                canvas.box(canvas.px(left), canvas.py(share if kind == "good" else 0), width, size, kind, tip)
    canvas.line(canvas.x[0], 0, canvas.x[1], 0, "axis")
    canvas.text(canvas.left + 8, canvas.top + 12, f"▲ desirable ({sum(up)})", "name good")
    canvas.text(canvas.left + 8, canvas.floor - 6, f"▼ undesirable ({sum(down)})", "name bad")
    if mark is not None and canvas.x[0] <= mark <= canvas.x[1]:
        canvas.line(mark, canvas.y[1], mark, canvas.y[0], "mark")
        place, anchor = (-4, "end") if canvas.px(mark) > 0.8 * canvas.end else (4, "start")
        canvas.text(canvas.px(mark) + place, canvas.top + 12, minus(f"z0 = {mark:.2g}"), "name", anchor)
    return canvas.figure(slug, title, caption)


def calibration(
    slug: str, title: str, caption: str, series: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]]
) -> Figure:
    """Observed rate over predicted probability. `series` are (name, class, bins with "low", "high", "mean", "rate",
    "n"); a row of numbers for each series says n under every bin, and so does the size of its discs."""
    canvas = Canvas(400, 380 + 15 * len(series), (0.0, 1.0), (0.0, 1.0), bottom=44 + 15 * len(series))
    canvas.axes("predicted probability of a thumb up", "observed share of thumbs up")
    canvas.line(0, 0, 1, 1, "zero")
    largest = max((b["n"] for _, _, bins in series for b in bins), default=1)
    for k, (name, kind, bins) in enumerate(series):
        # A bin of a few rows is all noise: it gets its disc, but the line does not follow it.
        large = [b for b in bins if b["n"] >= FEW]
        canvas.path([b["mean"] for b in large], [b["rate"] for b in large], kind)
        y = canvas.floor + 33 + 15 * k
        canvas.text(canvas.left - 7, y, f"n {name}", "n", "end")
        for b in bins:
            tip = f"{name}: {b['n']:.0f} answers, predicted {100 * b['mean']:.0f} %, observed {100 * b['rate']:.0f} %"
            canvas.dot(b["mean"], b["rate"], kind, tip, round(2.5 + 5 * math.sqrt(b["n"] / largest), 1))
            canvas.text(canvas.px((b["low"] + b["high"]) / 2), y, f"{b['n']:.0f}", "n", "middle")
    canvas.legend([(name, kind) for name, kind, _ in series])
    return canvas.figure(slug, title, caption)


def bars(
    slug: str,
    title: str,
    caption: str,
    rows: Sequence[Bar],
    x_label: str,
    *,
    x: Range = (0.0, 1.0),
    reference: float | None = None,
    percent: bool = False,
    filled: bool = False,
) -> Figure:
    """One row per value: its name above a disc with its interval as whiskers, the numbers on the right. `filled` draws
    a bar from the left end; `reference` a vertical line to compare with."""
    depth = 46 * len(rows)  # the vertical unit is that of the drawing, downwards
    canvas = Canvas(WIDTH, 56 + depth, x, (depth, 0), left=14, right=142, top=8, bottom=48)
    at = ticks(*x, 5)
    for value, name in zip(at, labels([100 * v for v in at] if percent else at), strict=True):
        canvas.line(value, 0, value, depth, "grid")
        canvas.text(canvas.px(value), canvas.floor + 17, name + (" %" if percent else ""), "tick", "middle")
    canvas.text(canvas.end, canvas.height - 6, x_label, "label", "end")
    if reference is not None:
        canvas.line(reference, 0, reference, depth, "mark")
    for k, row in enumerate(rows):
        y = 46 * (k + 0.7)
        number, *ends = (f"{100 * v:.1f} %" if percent else f"{v:.3f}" for v in (row.value, row.low, row.high))
        here, low, high = (min(max(v, x[0]), x[1]) for v in (row.value, row.low, row.high))
        has_interval = math.isfinite(row.low) and math.isfinite(row.high)
        tip = f"{row.label}: {number}" + (f", 95 % interval {' to '.join(ends)}" if has_interval else "")
        if filled:
            canvas.box(canvas.left, canvas.py(y) - 9, canvas.px(here) - canvas.left, 18, row.kind, tip)
        if has_interval:
            canvas.line(low, y, high, y, f"whisker {row.kind}")
            for end in (low, high):
                canvas.line(end, y - 5, end, y + 5, f"whisker {row.kind}")
            if row.low < row.high:
                canvas.text(canvas.end + 14, canvas.py(y) + 6, " – ".join(ends), "tick")
        canvas.dot(here, y, row.kind, tip, 4.5)
        canvas.text(canvas.left, canvas.py(y) - 15, row.label, "name")
        canvas.text(canvas.end + 14, canvas.py(y) - 10, number, "value")
    return canvas.figure(slug, title, caption)


# ---- what a chart is drawn on ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Canvas:
    """A chart of `width` x `height` with the data ranges that its plotting area shows. Lines, dots and paths are drawn
    at data values, boxes and texts at places of the drawing."""

    width: int
    height: int
    x: Range
    y: Range
    left: int = 52
    right: int = 14
    top: int = 30
    bottom: int = 40
    parts: list[str] = field(default_factory=list)

    def px(self, x: float) -> float:
        """Horizontal place of a data value."""
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        """Vertical place of a data value; SVG counts downwards."""
        return self.floor - (y - self.y[0]) / (self.y[1] - self.y[0]) * (self.floor - self.top)

    @property
    def floor(self) -> int:
        """Vertical place of the horizontal axis."""
        return self.height - self.bottom

    @property
    def end(self) -> int:
        """Horizontal place where the plotting area ends."""
        return self.width - self.right

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self._line(self.px(x1), self.py(y1), self.px(x2), self.py(y2), kind)

    def dot(self, x: float, y: float, kind: str, tip: str, radius: float) -> None:
        """A disc; `tip` shows under the pointer."""
        hint = element("title", escape(tip))
        self.parts.append(element("circle", hint, cx=self.px(x), cy=self.py(y), r=f"{radius:g}", class_=f"dot {kind}"))

    def path(self, x: Sequence[float], y: Sequence[float], kind: str) -> None:
        """A line, broken by NaN. A point between two breaks is drawn as a short stroke."""
        if strokes := _runs(x, y):
            d = "".join(
                "L".join([f"M{self._at(*first)}h.1", *(self._at(*p) for p in rest)]) for first, *rest in strokes
            )
            self.parts.append(element("path", d=d, class_=f"line {kind}"))

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], kind: str) -> None:
        """What lies between two lines, where both are known."""
        for run in _runs(x, low, high):
            outline = [self._at(x, b) for x, _, b in run] + [self._at(x, a) for x, a, _ in reversed(run)]
            self.parts.append(element("path", d=f"M{'L'.join(outline)}Z", class_=f"band {kind}"))

    def box(self, x: float, y: float, width: float, height: float, kind: str, tip: str) -> None:
        """A filled rectangle; `tip` shows under the pointer. Negative sizes are drawn as 0."""
        hint = element("title", escape(tip))
        size = {"width": max(width, 0), "height": max(height, 0)}
        self.parts.append(element("rect", hint, x=x, y=y, **size, class_=f"fill {kind}"))

    def text(self, x: float, y: float, words: str, kind: str, anchor: str = "start") -> None:
        self.parts.append(element("text", escape(words), x=x, y=y, class_=kind, text_anchor=anchor))

    def axes(self, x_label: str, y_label: str, rows: Sequence[tuple[float, str]] | None = None) -> None:
        """Grid, numbers at the ticks, and both labels; the vertical one stands level above its axis. `rows` are the
        vertical ticks with their names, round numbers by default."""
        xs, ys = ticks(*self.x, 6), ticks(*self.y, 5)
        for value, name in rows if rows is not None else zip(ys, labels(ys), strict=True):
            self.line(self.x[0], value, self.x[1], value, "grid")
            self.text(self.left - 7, self.py(value) + 4, name, "tick", "end")
        for value, name in zip(xs, labels(xs), strict=True):
            self._line(self.px(value), self.floor, self.px(value), self.floor + 4, "axis")
            self.text(self.px(value), self.floor + 17, name, "tick", "middle")
        self._line(self.left, self.floor, self.end, self.floor, "axis")
        self.text(self.end, self.height - 5, x_label, "label", "end")
        self.text(2, 12, y_label, "label")

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """(name, class) of several lines, on the right above the plotting area, each with a stroke of its own dash."""
        x = float(self.end)
        for name, kind in reversed(entries) if len(entries) > 1 else ():
            self.text(x, 12, name, "name", "end")
            # No browser measures text for us: 6.8 units per letter is a generous guess at this size.
            x -= 6.8 * len(name) + 6
            self._line(x - 20, 8, x, 8, f"line {kind}")
            x -= 34

    def figure(self, slug: str, title: str, caption: str) -> Figure:
        """The whole chart."""
        head = element("title", escape(title), id=f"{slug}-t") + element("desc", escape(caption), id=f"{slug}-d")
        svg = element(
            "svg",
            head + "".join(self.parts),
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {self.width} {self.height}",
            role="img",
            class_="chart",
            aria_labelledby=f"{slug}-t {slug}-d",
        )
        return Figure(slug, title, caption, svg)

    def _line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.parts.append(element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind))

    def _at(self, x: float, y: float) -> str:
        return f"{self.px(x):.1f} {self.py(y):.1f}"


def _runs(*columns: Sequence[float]) -> list[list[tuple[float, ...]]]:
    """The unbroken stretches of points without NaN."""
    runs: list[list[tuple[float, ...]]] = [[]]
    for point in zip(*columns, strict=False):
        if all(map(math.isfinite, point)):
            runs[-1].append(point)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def element(name: str, content: str | None = None, **attributes: float | str) -> str:
    """An SVG element with escaped attributes; `content` is SVG."""
    texts = (f"{v:.1f}" if isinstance(v, int | float) else FORBIDDEN.sub("\ufffd", v) for v in attributes.values())
    names = (key.rstrip("_").replace("_", "-") for key in attributes)
    head = f"<{name}" + "".join(f" {k}={saxutils.quoteattr(v)}" for k, v in zip(names, texts, strict=True))
    return f"{head}/>" if content is None else f"{head}>{content}</{name}>"


def escape(words: str) -> str:
    return saxutils.escape(FORBIDDEN.sub("\ufffd", words))


# ---- scales and numbers ----------------------------------------------------------------------------------------------


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers, about `count` of them, inside [low, high]; steps are 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / max(1, count)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def labels(values: Sequence[float]) -> list[str]:
    """The ticks as text, all with the same number of decimals; huge and tiny ones in powers of ten."""
    largest = max((abs(v) for v in values), default=0.0)
    if largest and not 1e-3 <= largest < 1e6:
        return [minus(f"{v:.3g}") for v in values]
    decimals = next((d for d in range(8) if all(abs(v - round(v, d)) < 1e-9 * max(1, largest) for v in values)), 8)
    return [minus(f"{v:,.{decimals}f}") for v in values]


def minus(number: str) -> str:
    """A number with a real minus sign, and no sign on a zero."""
    stripped = number.lstrip("-")
    return stripped if not stripped.strip("0.,") else number.replace("-", "−")


def padded(values: Sequence[float], *, share: float = 0.06, include: Sequence[float] = ()) -> Range:
    """A range that holds every finite value and `include`, with some air, but none beyond 0 for what is never negative
    (or never positive); a range of its own for equal values."""
    finite = [v for v in (*values, *include) if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        air = abs(high) * 0.1 or 1.0
        return low - air, high + air
    air = share * (high - low)
    return (low - air if low else low), (high + air if high else high)

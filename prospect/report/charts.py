"""The charts of the report: lines, histograms of two classes, calibration, bars with intervals. Each returns SVG text.

Classes (see style.css): "good" desirable, "bad" undesirable, "main" the model after training, "base" before it or a
baseline, "raw" a noisy series behind its average.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prospect.report.svg import (
    Frame,
    Range,
    area,
    box,
    document,
    dot,
    labels,
    legend,
    line,
    minus,
    padded,
    path,
    text,
    ticks,
)

WIDTH, HEIGHT = 460, 250
DOTS = 40
"""Lines with at most this many points show each point, with its numbers under the pointer."""
FEW = 10
"""A calibration bin with fewer rows says little."""


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


def lines(
    slug: str,
    title: str,
    description: str,
    series: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    include: Sequence[float] = (),
    x: Range | None = None,
    y: Range | None = None,
    diagonal: bool = False,
    square: bool = False,
) -> str:
    """Series over a common axis. `include` are values the vertical axis must show; `diagonal` draws y = x for
    comparison."""
    shown = [value for s in series for value in (*s.y, *(v for side in s.band or () for v in side))]
    height = 380 if square else HEIGHT
    x = x or padded([v for s in series for v in s.x], share=0)
    frame = Frame(WIDTH if not square else 400, height, x, y or padded(shown, include=include))
    parts = [frame.axes(x_label, y_label)]
    if frame.y[0] < 0 < frame.y[1]:
        parts.append(line(frame.left, frame.py(0), frame.end, frame.py(0), "zero"))
    if diagonal:
        parts.append(line(frame.px(x[0]), frame.py(x[0]), frame.px(x[1]), frame.py(x[1]), "zero"))
    parts += [_band(frame, s) for s in series]
    parts += [_line(frame, s) for s in series]
    named = [(s.name, s.kind) for s in series if s.name]
    if len(named) > 1:
        parts.append(legend(frame, named))
    return document(frame, slug, title, description, "".join(parts))


def _band(frame: Frame, series: Line) -> str:
    if series.band is None:
        return ""
    low, high = series.band
    runs: list[list[tuple[float, float, float]]] = [[]]
    for x, a, b in zip(series.x, low, high, strict=True):
        if math.isfinite(a) and math.isfinite(b):
            runs[-1].append((x, a, b))
        elif runs[-1]:
            runs.append([])
    return "".join(
        area(
            [(frame.px(x), frame.py(b)) for x, _, b in run],
            [(frame.px(x), frame.py(a)) for x, a, _ in run],
            f"band {series.kind}",
        )
        for run in runs
    )


def _line(frame: Frame, series: Line) -> str:
    points = list(zip(series.x, series.y, strict=True))
    drawn = path([(frame.px(x), frame.py(y)) if math.isfinite(y) else None for x, y in points], f"line {series.kind}")
    if len(points) > DOTS:
        return drawn
    dots = [
        dot(frame.px(x), frame.py(y), f"dot {series.kind}", minus(f"{series.name or 'value'}: {y:.4g} at {x:.4g}"), 2.2)
        for x, y in points
        if math.isfinite(y)
    ]
    return drawn + "".join(dots)


def histogram(
    slug: str,
    title: str,
    description: str,
    edges: Sequence[float],
    up: Sequence[int],
    down: Sequence[int],
    x_label: str,
    *,
    x: Range | None = None,
    mark: float | None = None,
    most: float | None = None,
) -> str:
    """Two classes back to back: desirable counts rise from the axis, undesirable ones hang from it. `mark` draws a
    vertical line (z0); `most` is the share of its class that the vertical axis must hold, to make two histograms
    comparable."""
    shares = [(_share(up), "good"), (_share(down), "bad")]
    most = most or max((max(s, default=0.0) for s, _ in shares), default=0.0) or 1.0
    frame = Frame(WIDTH, HEIGHT, x or (edges[0], edges[-1]), (-most * 1.12, most * 1.12))
    parts = [_mirror_axes(frame, x_label, most)]
    for (share, kind), counts, sign in zip(shares, (up, down), (1, -1), strict=True):
        for k, part in enumerate(share):
            left, right = frame.px(edges[k]), frame.px(edges[k + 1])
            top = frame.py(max(0.0, sign * part))
            tip = minus(f"{counts[k]} between {edges[k]:.3g} and {edges[k + 1]:.3g}")
            if part:
                size = abs(frame.py(part) - frame.py(0))
                parts.append(box(left, top, max(right - left - 0.6, 1.2), size, f"fill {kind}", tip))
    parts.append(line(frame.left, frame.py(0), frame.end, frame.py(0), "axis"))
    parts.append(text(frame.left + 8, frame.top + 12, f"▲ desirable ({sum(up)})", "name good"))
    parts.append(text(frame.left + 8, frame.floor - 6, f"▼ undesirable ({sum(down)})", "name bad"))
    if mark is not None and frame.x[0] <= mark <= frame.x[1]:
        parts.append(line(frame.px(mark), frame.top, frame.px(mark), frame.floor, "mark"))
        late = frame.px(mark) > 0.8 * frame.end
        parts.append(
            text(
                frame.px(mark) + (-4 if late else 4),
                frame.top + 12,
                minus(f"z0 = {mark:.2g}"),
                "name",
                "end" if late else "start",
            )
        )
    return document(frame, slug, title, description, "".join(parts))


def _share(counts: Sequence[int]) -> list[float]:
    total = sum(counts)
    return [count / total for count in counts] if total else [0.0 for _ in counts]


def _mirror_axes(frame: Frame, x_label: str, most: float) -> str:
    """Axes of a back-to-back histogram: percentages grow both ways."""
    parts = []
    levels = [v for v in ticks(0, most, 2) if v]
    for value, name in zip(levels, labels([100 * v for v in levels]), strict=True):
        for y in (frame.py(value), frame.py(-value)):
            parts.append(line(frame.left, y, frame.end, y, "grid"))
            parts.append(text(frame.left - 7, y + 4, name + " %", "tick", "end"))
    xs = ticks(*frame.x, 6)
    for value, name in zip(xs, labels(xs), strict=True):
        parts.append(line(frame.px(value), frame.floor, frame.px(value), frame.floor + 4, "axis"))
        parts.append(text(frame.px(value), frame.floor + 17, name, "tick", "middle"))
    parts.append(line(frame.left, frame.floor, frame.end, frame.floor, "axis"))
    parts.append(text(frame.end, frame.height - 5, x_label, "label", "end"))
    parts.append(text(2, 12, "share of the answers with that thumb", "label"))
    return "".join(parts)


def calibration(
    slug: str, title: str, description: str, series: Sequence[tuple[str, str, Sequence[Mapping[str, float]]]]
) -> str:
    """Observed rate over predicted probability. `series` are (name, class, bins with "low", "high", "mean", "rate",
    "n"); a row of numbers for each series says n under every bin, and so does the size of its discs."""
    frame = Frame(400, 380 + 15 * len(series), (0.0, 1.0), (0.0, 1.0), bottom=44 + 15 * len(series))
    parts = [frame.axes("predicted probability of a thumb up", "observed share of thumbs up")]
    parts.append(line(frame.px(0), frame.py(0), frame.px(1), frame.py(1), "zero"))
    largest = max((found["n"] for _, _, bins in series for found in bins), default=1)
    for k, (name, kind, bins) in enumerate(series):
        # A bin of a few rows is all noise: it gets its disc, but the line does not follow it.
        solid = [b for b in bins if b["n"] >= FEW]
        parts.append(path([(frame.px(b["mean"]), frame.py(b["rate"])) for b in solid], f"line {kind}"))
        y = frame.floor + 33 + 15 * k
        parts.append(text(frame.left - 7, y, f"n {name}", "n", "end"))
        for b in bins:
            tip = f"{name}: {b['n']:.0f} answers, predicted {100 * b['mean']:.0f} %, observed {100 * b['rate']:.0f} %"
            radius = round(2.5 + 5 * math.sqrt(b["n"] / largest), 1)
            parts.append(dot(frame.px(b["mean"]), frame.py(b["rate"]), f"dot {kind}", tip, radius))
            parts.append(text(frame.px((b["low"] + b["high"]) / 2), y, f"{b['n']:.0f}", "n", "middle"))
    if len(series) > 1:
        parts.append(legend(frame, [(name, kind) for name, kind, _ in series]))
    return document(frame, slug, title, description, "".join(parts))


def bars(
    slug: str,
    title: str,
    description: str,
    rows: Sequence[Bar],
    x_label: str,
    *,
    x: Range = (0.0, 1.0),
    reference: float | None = None,
    percent: bool = False,
    filled: bool = False,
) -> str:
    """One row per value: its name above a disc with its interval as whiskers, the numbers on the right. `filled` draws
    a bar from the left end; `reference` a vertical line to compare with."""
    step = 46
    frame = Frame(WIDTH, 56 + step * len(rows), x, (0.0, 1.0), left=14, right=142, top=8, bottom=48)
    parts = []
    at = ticks(*x, 5)
    for value, name in zip(at, labels([100 * v for v in at] if percent else at), strict=True):
        parts.append(line(frame.px(value), frame.top, frame.px(value), frame.floor, "grid"))
        parts.append(text(frame.px(value), frame.floor + 17, name + (" %" if percent else ""), "tick", "middle"))
    parts.append(text(frame.end, frame.height - 6, x_label, "label", "end"))
    if reference is not None:
        parts.append(line(frame.px(reference), frame.top, frame.px(reference), frame.floor, "mark"))
    parts += [_bar(frame, row, frame.top + step * (k + 0.7), percent, filled) for k, row in enumerate(rows)]
    return document(frame, slug, title, description, "".join(parts))


def _bar(frame: Frame, row: Bar, y: float, percent: bool, filled: bool) -> str:
    """One row of `bars` at height y."""
    number, low, high = (f"{100 * v:.1f} %" if percent else f"{v:.3f}" for v in (row.value, row.low, row.high))
    here, *ends = (frame.px(min(max(v, frame.x[0]), frame.x[1])) for v in (row.value, row.low, row.high))
    known = math.isfinite(row.low) and math.isfinite(row.high)
    tip = f"{row.label}: {number}" + (f", 95 % interval {low} to {high}" if known else "")
    parts = [box(frame.left, y - 9, here - frame.left, 18, f"fill {row.kind}", tip)] if filled else []
    if known:
        parts.append(line(ends[0], y, ends[1], y, f"whisker {row.kind}"))
        parts += [line(end, y - 5, end, y + 5, f"whisker {row.kind}") for end in ends]
    if known and row.low < row.high:
        parts.append(text(frame.end + 14, y + 6, f"{low} – {high}", "tick"))
    parts.append(dot(here, y, f"dot {row.kind}", tip, 4.5))
    parts.append(text(frame.left, y - 15, row.label, "name"))
    parts.append(text(frame.end + 14, y - 10, number, "value"))
    return "".join(parts)

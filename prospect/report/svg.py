"""The ground a chart stands on: scales, ticks, axes, text. What is drawn on it is in `charts.py`.

A chart is one SVG string of fixed inner size that its page stretches. Colours are classes, so that the page's CSS
variables serve light and dark; no meaning hangs on colour alone: lines differ in dash, classes in place, and each
carries its name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax import saxutils

Range = tuple[float, float]

FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
"""What XML cannot hold, not even escaped."""


@dataclass(frozen=True, slots=True)
class Frame:
    """The plotting area inside a chart of `width` x `height`, and the data ranges it shows."""

    width: int
    height: int
    x: Range
    y: Range
    left: int = 52
    right: int = 14
    top: int = 30
    bottom: int = 40

    def px(self, x: float) -> float:
        """Horizontal place of a data value."""
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.width - self.left - self.right)

    def py(self, y: float) -> float:
        """Vertical place of a data value; SVG counts downwards."""
        return self.height - self.bottom - (y - self.y[0]) / (self.y[1] - self.y[0]) * self.inner

    @property
    def inner(self) -> int:
        """Height of the plotting area."""
        return self.height - self.top - self.bottom

    @property
    def floor(self) -> int:
        """Vertical place of the horizontal axis."""
        return self.height - self.bottom

    @property
    def end(self) -> int:
        """Horizontal place where the plotting area ends."""
        return self.width - self.right

    def axes(self, x_label: str, y_label: str, *, x_ticks: int = 6, y_ticks: int = 5) -> str:
        """Grid, numbers at the ticks, and both labels; the vertical one stands level above its axis."""
        parts = []
        xs, ys = ticks(*self.x, x_ticks), ticks(*self.y, y_ticks)
        for value, name in zip(ys, labels(ys), strict=True):
            y = self.py(value)
            parts.append(line(self.left, y, self.end, y, "grid"))
            parts.append(text(self.left - 7, y + 4, name, "tick", "end"))
        for value, name in zip(xs, labels(xs), strict=True):
            x = self.px(value)
            parts.append(line(x, self.floor, x, self.floor + 4, "axis"))
            parts.append(text(x, self.floor + 17, name, "tick", "middle"))
        parts.append(line(self.left, self.floor, self.end, self.floor, "axis"))
        parts.append(text(self.end, self.height - 5, x_label, "label", "end"))
        parts.append(text(2, 12, y_label, "label"))
        return "".join(parts)


def document(frame: Frame, slug: str, title: str, description: str, body: str) -> str:
    """A whole chart. `slug` is unique on its page; screen readers say title and description."""
    both, first, second = (_attribute(name) for name in (f"{slug}-t {slug}-d", f"{slug}-t", f"{slug}-d"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" role="img" class="chart" '
        f"aria-labelledby={both}><title id={first}>{_escape(title)}</title>"
        f"<desc id={second}>{_escape(description)}</desc>{body}</svg>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line of one class."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class={_attribute(kind)}/>'


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    """Text at a place; `anchor` start, middle or end."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class={_attribute(kind)} text-anchor="{anchor}">{_escape(content)}</text>'


def box(x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> str:
    """A rectangle of one class; `tip` shows under the pointer. Negative sizes are drawn as 0."""
    hint = f"<title>{_escape(tip)}</title>" if tip else ""
    size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" {size} class={_attribute(kind)}>{hint}</rect>'


def dot(x: float, y: float, kind: str, tip: str = "", radius: float = 3.0) -> str:
    """A small disc of one class; `tip` shows under the pointer."""
    hint = f"<title>{_escape(tip)}</title>" if tip else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class={_attribute(kind)}>{hint}</circle>'


def path(points: Sequence[tuple[float, float] | None], kind: str) -> str:
    """A line through points; None breaks it. A point between two breaks is drawn as a short stroke."""
    commands: list[str] = []
    pen = "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        commands.append(f"{pen}{point[0]:.1f} {point[1]:.1f}" + ("h.1" if pen == "M" else ""))
        pen = "L"
    return f'<path d="{"".join(commands)}" class={_attribute(kind)}/>' if commands else ""


def area(upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], kind: str) -> str:
    """The filled band between two lines."""
    outline = [*upper, *reversed(lower)]
    return (
        f'<path d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in outline)}Z" class={_attribute(kind)}/>' if outline else ""
    )


def legend(frame: Frame, entries: Sequence[tuple[str, str]]) -> str:
    """(name, class) of each line, on the right above the plotting area, each with a stroke of its own dash."""
    parts = []
    x = float(frame.end)
    for name, kind in reversed(entries):
        parts.append(text(x, 12, name, "name", "end"))
        # No browser measures text for us: 6.8 units per letter is a generous guess at this size.
        x -= 6.8 * len(name) + 6
        parts.append(line(x - 20, 8, x, 8, f"line {kind}"))
        x -= 34
    return "".join(parts)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers, about `wanted` of them, inside [low, high]; steps are 1, 2, 2.5 or 5 times a power of ten."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    rough = span / max(1, wanted)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [k * step for k in range(first, last + 1)]


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
    known = [v for v in (*values, *include) if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if high - low <= 1e-12 * max(1.0, abs(high)):
        air = abs(high) * 0.1 or 1.0
        return low - air, high + air
    air = share * (high - low)
    return (low - air if low else low), (high + air if high else high)


def _escape(words: str) -> str:
    return saxutils.escape(FORBIDDEN.sub("\ufffd", words))


def _attribute(words: str) -> str:
    return saxutils.quoteattr(FORBIDDEN.sub("\ufffd", words))

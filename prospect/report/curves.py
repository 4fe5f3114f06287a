"""Long noisy series made fit for the eye: thinned to a few hundred points, averaged, with their spread.

A step's loss is a mean over a few rows, so a curve of thousands of steps is mostly noise and a large file. What is
drawn is the average over a window of neighbouring steps, in a band of one standard deviation of that window to either
side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from prospect.evaluate.statistics import Interval

POINTS = 240
"""Most points of a drawn line."""
WINDOWS = 25
"""A series of more than twice as many values is averaged over a 25th of its length, so that its course shows."""


@dataclass(frozen=True, slots=True)
class Curve:
    """`x` and `y`, with the band from `low` to `high`; the band is empty where nothing was averaged."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


def smooth(x: Sequence[float], y: Sequence[float]) -> Curve:
    """A series (same lengths, NaN where unknown) as a curve: as it is where short, thinned and averaged where long.

    At the ends the window is cut to what exists.
    """
    known = _known(x, y)
    n = len(known)
    if n <= 2 * WINDOWS:
        return Curve(tuple(a for a, _ in known), tuple(b for _, b in known))
    half = max(1, n // WINDOWS // 2)
    centres = _thinned(n)
    means, spreads = [], []
    for centre in centres:
        near = [b for _, b in known[max(0, centre - half) : centre + half + 1]]
        mean = math.fsum(near) / len(near)
        means.append(mean)
        spreads.append(math.sqrt(math.fsum((b - mean) ** 2 for b in near) / len(near)))
    pairs = list(zip(means, spreads, strict=True))
    return Curve(
        tuple(known[c][0] for c in centres),
        tuple(means),
        tuple(m - s for m, s in pairs),
        tuple(m + s for m, s in pairs),
    )


def thin(x: Sequence[float], y: Sequence[float]) -> Curve:
    """A series without noise, such as a learning rate: fewer points, nothing averaged."""
    known = _known(x, y)
    kept = [known[c] for c in _thinned(len(known))]
    return Curve(tuple(a for a, _ in kept), tuple(b for _, b in kept))


def ends(y: Sequence[float]) -> tuple[float, float]:
    """Averages of the beginning and the end of a series (see `_ends`); NaN where it is empty."""
    first, last = _ends(y)
    return _mean(first), _mean(last)


def rise(y: Sequence[float]) -> Interval:
    """By how much the end of a series lies above its beginning, with the 95 % interval of the difference of two means
    (Welch's t); its ends are NaN below two values at either end, which have no noise to measure."""
    first, last = _ends(y)
    gain, k = _mean(last) - _mean(first), len(first)
    if k < 2:
        return Interval(gain, math.nan, math.nan)
    a, b = (math.fsum((v - _mean(side)) ** 2 for v in side) / (k - 1) / k for side in (first, last))
    freedom = (k - 1) * (a + b) ** 2 / (a * a + b * b) if a + b > 0 else k - 1
    half = math.sqrt(a + b) * float(stdtrit(freedom, 0.975))
    return Interval(gain, gain - half, gain + half)


def _ends(y: Sequence[float]) -> tuple[list[float], list[float]]:
    """The first and the last tenth of a series, at least three values each, and no value in both."""
    known = [v for v in y if math.isfinite(v)]
    k = min(max(1, len(known) // 2), max(3, round(0.1 * len(known))))
    return known[:k], known[-k:]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _known(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    return [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(b)]


def _thinned(n: int) -> list[int]:
    """Indices of at most POINTS of n values, evenly spread, first and last included."""
    return sorted({round(k * (n - 1) / (POINTS - 1)) for k in range(POINTS)}) if n > POINTS else list(range(n))

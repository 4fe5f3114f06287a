"""The statistics of an evaluation, each with an interval: a number without one is no result.

Rows that share a prompt are alike, so counting them as independent makes every interval too narrow (Miller 2024,
arXiv 2411.00640, section 2.2). Intervals here resample whole prompts. Every statistic takes row weights, one set per
resample, so that a thousand resamples are a few matrix operations and not a thousand passes:

    weight (B, N) float64: how often each of the N rows occurs in each of B resamples  ->  (B,) values
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.integer[Any]]
Statistic = Callable[[Floats], Floats]
"""weight (B, N) -> (B,); NaN where a resample leaves the statistic undefined (AUC without one of the classes)."""

CHUNK = 2_000_000
"""Most numbers in one block of resample weights (16 MB), whatever the number of rows."""
FEW = 20
"""Fewer clusters than this make intervals that are too narrow."""
NEWTON = 20
"""Most steps of Newton's method from a slope of 0: the logistic likelihood is concave, and few need more than eight."""
CLOSE = 1e-10
"""A step of Newton's method that is smaller than this was the last."""


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate and the ends of its confidence interval, in the unit of the estimate."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Bin:
    """Rows whose predicted probability lies in [low, high): `n` of them, with mean prediction `mean` and observed
    `rate`."""

    low: float
    high: float
    mean: float
    rate: float
    n: int


def wilson(k: float, n: int, level: float = 0.95) -> Interval:
    """A proportion k/n with Wilson's score interval (JASA 22, 1927), for n > 0 independent trials. Where `k` is no
    whole number, the interval covers those of both its neighbours.

    Unlike the textbook p +- 1.96 s it stays inside [0, 1] and has width where k is 0 or n.
    """
    from scipy.stats import binomtest  # half a second, for the few who need it

    assert 0 <= k <= n > 0, f"a proportion of {k} in {n}"
    counts = math.floor(k + 1e-9), math.ceil(k - 1e-9)
    below, above = (binomtest(count, n).proportion_ci(level, method="wilson") for count in counts)
    return Interval(k / n, float(below.low), float(above.high))


def auc(score: Floats, label: Bools, weight: Floats | None = None) -> Floats:
    """P(score of a True row > score of a False row), ties counting one half: the area under the ROC curve.

    That the area is this probability, the Mann-Whitney statistic: Hanley and McNeil, Radiology 143 (1982). `score` and
    `label` are (N,), `weight` (B, N); returns (B,), or (1,) without weights. NaN where a class has no weight. O(B N)
    after one sort: each True row is above all False weight that sorts before it, and half above what ties with it.
    """
    weight = np.ones((1, len(score))) if weight is None else weight
    if not len(score):
        return np.full(len(weight), np.nan)
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    weight, label = weight[:, order], label[order]
    up = np.add.reduceat(weight * label, starts, axis=1)
    down = np.add.reduceat(weight * ~label, starts, axis=1)
    below = np.cumsum(down, axis=1) - down / 2
    total = up.sum(axis=1) * down.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        area: Floats = np.where(total > 0, (up * below).sum(axis=1) / total, np.nan)
    return area


def clustered_auc(score: Floats, label: Bools, cluster: Ints) -> Interval:
    """`auc` with the 95 % interval that it has where rows of a cluster depend on each other; (N,) each, both classes
    present. A formula where `bootstrap` would take a thousand resamples.

    Obuchowski, Biometrics 53 (1997), p. 567: each row's placement among the other class minus the AUC, summed within
    clusters. With clusters of one row this is DeLong's variance.
    """
    up, down = np.sort(score[label]), np.sort(score[~label])

    def below(values: Floats, others: Floats) -> Floats:
        wins = np.searchsorted(others, values, "left") + np.searchsorted(others, values, "right")
        return np.asarray(wins / (2 * len(others)), np.float64)

    value = float(auc(score, label)[0])
    placement = np.where(label, below(score, down), 1 - below(score, up))
    influence = (placement - value) / np.where(label, len(up), len(down))
    sums = np.bincount(np.unique(cluster, return_inverse=True)[1], influence)
    error = float(np.sqrt(len(sums) / max(1, len(sums) - 1) * np.sum(sums**2)))
    return Interval(value, max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error))


def roc(score: Floats, label: Bools, most: int = 200) -> list[tuple[float, float]]:
    """(false, true positive rate) as the threshold falls from above every score to below every one; (0,0) ... (1,1).

    Tied scores make one step, drawn as a slope. Thinned to about `most` points. Empty where a class is missing.
    """
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return []
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    ends = np.flatnonzero(np.concatenate((ordered[1:] != ordered[:-1], [True])))
    true = np.cumsum(label[order])[ends] / positives
    false = np.cumsum(~label[order])[ends] / negatives
    keep = np.unique(np.linspace(0, len(ends) - 1, min(most, len(ends))).round().astype(int))
    return [(0.0, 0.0), *((float(false[i]), float(true[i])) for i in keep)]


def calibration(probability: Floats, label: Bools, bins: int = 10) -> list[Bin]:
    """The reliability diagram: non-empty bins of equal width over [0, 1] (Guo et al. 2017, arXiv 1706.04599)."""
    place = np.minimum((probability * bins).astype(np.int64), bins - 1)  # 1.0 belongs to the last
    diagram: list[Bin] = []
    for k in np.unique(place).tolist():
        here = place == k
        mean, rate = float(probability[here].mean()), float(label[here].mean())
        diagram.append(Bin(k / bins, (k + 1) / bins, mean, rate, int(here.sum())))
    return diagram


def calibration_slope(logit: Floats, label: Bools, weight: Floats | None = None) -> Floats:
    """The slope b of the logistic regression of `label` on a + b * `logit`: 1 where sigmoid(logit) is calibrated, below
    1 where it is too extreme, above 1 where it is too timid (Cox, Biometrika 45, 1958).

    A regular statistic, unlike the binned calibration error, which chance alone keeps above 0 and whose intervals
    therefore miss the 0 of a calibrated model. (B,) for `weight` (B, N). NaN where the logits are equal, and where they
    separate the labels, which no slope is steep enough for.
    """
    if not len(logit) or float(auc(logit, label)[0]) in (0.0, 1.0):
        return np.full(1 if weight is None else len(weight), np.nan)
    return logistic(logit, label.astype(np.float64), weight)[1]


def logistic(x: Floats, outcome: Floats, weight: Floats | None = None) -> tuple[Floats, Floats]:
    """The offset a and slope b of the logistic regression of `outcome` in [0, 1] on a + b * x, by Newton's method; a
    fraction counts as so much of a success and the rest of a failure (a tie is 0.5).

    `x` and `outcome` are (N,), the results (B,) for `weight` (B, N). NaN where there is no such line: where x does not
    vary, and where it separates successes from failures, which no slope is steep enough for.
    """
    from scipy.special import expit  # slow to import, and a check needs none of it

    weight = np.ones((1, len(x))) if weight is None else weight
    scale = float(x.std()) if len(x) else 0.0
    if not scale > 0:
        return np.full(len(weight), np.nan), np.full(len(weight), np.nan)
    mean = float(x.mean())
    z = (x - mean) / scale
    success, failure = (weight > 0) & (outcome > 0), (weight > 0) & (outcome < 1)
    apart = (np.where(success, z, np.inf).min(axis=1) >= np.where(failure, z, -np.inf).max(axis=1)) | (
        np.where(success, z, -np.inf).max(axis=1) <= np.where(failure, z, np.inf).min(axis=1)
    )
    offset, slope = np.zeros((2, len(weight), 1))
    with np.errstate(all="ignore"):  # what is set apart runs away, to what is no number
        for _ in range(NEWTON):
            p = expit(offset + slope * z)
            error, curve = weight * (outcome - p), weight * p * (1 - p)
            s0, s1, s2 = curve.sum(axis=1), curve @ z, curve @ (z * z)
            g0, g1 = error.sum(axis=1), error @ z
            determinant = s0 * s2 - s1 * s1
            move, turn = (s2 * g0 - s1 * g1) / determinant, (s0 * g1 - s1 * g0) / determinant
            offset, slope = offset + move[:, None], slope + turn[:, None]
            if np.all(apart | (np.abs(move) + np.abs(turn) < CLOSE)):
                break
        exists = ~apart & np.isfinite(offset[:, 0]) & np.isfinite(slope[:, 0])
        b = np.where(exists, slope[:, 0] / scale, np.nan)
        a = np.where(exists, offset[:, 0], np.nan) - b * mean
    return a, b


def ratio(numerator: Floats, denominator: Floats | None = None, weight: Floats | None = None) -> Floats:
    """sum(w a) / sum(w b), (B,) for `weight` (B, N): a weighted mean where `denominator` is None. NaN where empty."""
    weight = np.ones((1, len(numerator))) if weight is None else weight
    below = weight @ denominator if denominator is not None else weight.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value: Floats = weight @ numerator / below
    return value


def bootstrap(
    statistic: Statistic, cluster: Ints, *, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """A statistic of rows that come in clusters, with its expanded percentile interval; None where it is undefined.

    `cluster` (N,) says which rows belong together (any integers). Each of `n` resamples draws as many clusters as there
    are, with replacement. The interval reaches as far into their distribution as Student's t says for so few clusters
    (Hesterberg, The American Statistician 69, 2015: plain percentiles are too narrow by a factor of
    sqrt((n - 1) / n) and then some); the ends never exclude the estimate itself. Resamples that leave the statistic
    undefined are not counted; where `n` is 0 the ends are NaN. With a single cluster there is nothing to resample but
    its rows, and the interval speaks of that cluster alone.

    Below about FEW clusters such an interval is too narrow; where every resample agrees it has no width (see
    `separated`).
    """
    from scipy.special import ndtr, stdtrit  # slow to import, and a check needs none of it

    value = float(statistic(np.ones((1, len(cluster))))[0]) if len(cluster) else np.nan
    if np.isnan(value):
        return None
    if n == 0:
        return Interval(value, np.nan, np.nan)
    groups, place = np.unique(cluster, return_inverse=True)
    count = len(groups)
    if count == 1:
        place, count = np.arange(len(cluster)), len(cluster)
    rng = np.random.default_rng(seed)
    step = max(1, CHUNK // max(1, len(cluster)))
    draws = []
    for start in range(0, n, step):
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(step, n - start))
        draws.append(statistic(times[:, place].astype(np.float64)))
    sample = np.concatenate(draws)
    sample = np.sort(sample[~np.isnan(sample)])
    if not len(sample):
        return None
    freedom = max(1, count - 1)
    reach = np.sqrt((freedom + 1) / freedom) * float(stdtrit(freedom, 0.5 + level / 2))
    low, high = np.quantile(sample, ndtr([-reach, reach]))
    return Interval(value, min(value, float(low)), max(value, float(high)))


def bootstrap_two_ways(
    statistic: Statistic, first: Ints, second: Ints, *, n: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """`bootstrap` of rows that belong together in two ways, (N,) each: by conversation and by rater, say.

    Variances of estimates add up as V = V_first + V_second - V_both, where "both" are the rows that are together in
    either way (Cameron, Gelbach and Miller, J. Bus. Econ. Stat. 29, 2011, Eq. 2.10), and so do here the squares of the
    distances of either end. Where each cluster of one way lies in one of the other, that is the coarser's V. The
    interval is never narrower than that of one way alone; a way with a single cluster plays no part.
    """
    ways = [way for way in (first, second) if len(np.unique(way)) > 1] or [first]
    both = np.unique(np.stack([first, second]), axis=1, return_inverse=True)[1].reshape(-1)
    if len(ways) == 2 and len(np.unique(both)) > max(len(np.unique(way)) for way in ways):
        ways.append(both)
    parts = [each for way in ways if (each := bootstrap(statistic, way, n=n, seed=seed, level=level)) is not None]
    if len(parts) < 2 or n == 0:
        return parts[0] if parts else None
    reach = np.array([[each.value - each.low, each.high - each.value] for each in parts]) ** 2
    widest = reach[:2].max(axis=0)
    if len(parts) == 3:
        widest = np.maximum(widest, reach[0] + reach[1] - reach[2])
    below, above = np.sqrt(widest).tolist()
    return Interval(parts[0].value, parts[0].value - below, parts[0].value + above)


def separated(interval: Interval | None, trials: int, level: float = 0.95) -> Interval | None:
    """The interval of a rate or an AUC whose resamples all said 0 or all said 1: Wilson's, for so many trials.

    No resample can show an error that the data does not contain, yet ten right answers do not prove a perfect model.
    `trials` is the number of independent comparisons at hand: prompts, or for an AUC the disjoint couples of a
    desirable and an undesirable answer from different prompts. Other intervals are returned as they are.
    """
    if interval is None or trials < 1 or interval.value not in (0.0, 1.0) or interval.low != interval.high:
        return interval
    return wilson(interval.value * trials, trials, level)

"""Is one model's answer preferred to another's? The statistics of a comparison, each with an interval or a p-value.

A *preference* is 1 where A's answer won, 0 where B's did, and 0.5 for a tie. Pairs of answers to one prompt, or in one
conversation, are alike, so they form a *cluster*: intervals resample clusters, and tests count each cluster once, by
the mean of its preferences. With one pair per prompt clusters are pairs.

    preference (N,), cluster (N,)  ->  win_rate, decided_win_rate, sign_test, length_controlled, prompts_needed
    score differences              ->  wilcoxon
    preferences in both orders     ->  position
    a judge's thumbs, people's     ->  kappa
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prospect.evaluate.statistics import Bools, Floats, Interval, Ints, bootstrap, logistic, ratio, separated, wilson

RESAMPLES = 1000
"""Of every bootstrap, unless a caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """How many clusters A has won, lost and tied, by the mean preference of each."""

    wins: int
    losses: int
    ties: int

    @property
    def n(self) -> int:
        """The clusters with a winner."""
        return self.wins + self.losses


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """`win_rate` is what A's would be if both answers of every pair were equally long; `slope` is what one unit of the
    scaled length difference adds to the log-odds of winning: 0 where the judge does not look at length."""

    win_rate: Interval
    slope: Interval


@dataclass(frozen=True, slots=True)
class Position:
    """How much a judge's verdict depends on which answer it reads first.

    `consistency` is the share of pairs that got the same verdict in both orders: 1 is right, a judge that always takes
    the first answer has 0, one that flips a coin 0.5. `first` is the win rate of the answer that stood first: 0.5 is
    right.
    """

    consistency: Interval
    first: Interval


def cluster_means(values: Floats, cluster: Ints) -> Floats:
    """The mean of `values` (N,) in each cluster, (C,) in ascending order of the cluster's number."""
    place = np.unique(cluster, return_inverse=True)[1]
    means: Floats = np.bincount(place, values) / np.bincount(place)
    return means


def win_rate(preference: Floats, cluster: Ints, *, resamples: int = RESAMPLES, seed: int = 0) -> Interval | None:
    """The mean preference, ties by half, with its 95 % cluster bootstrap interval; None without pairs.

    Where A won everything, or nothing, the ends are Wilson's for so many clusters. Where all is tied, a next cluster
    may still be decided, either way: the ends lie half of Wilson's upper end of that share from one half.
    """
    interval = bootstrap(lambda weight: ratio(preference, None, weight), cluster, n=resamples, seed=seed)
    clusters = len(np.unique(cluster))
    if clusters and not (preference != 0.5).any():
        decided = wilson(0, clusters).high
        return Interval(0.5, 0.5 - decided / 2, 0.5 + decided / 2)
    return separated(interval, clusters)


def outcomes(preference: Floats, cluster: Ints) -> Outcomes:
    """The clusters by who won them. A cluster's mean within 1e-9 of one half is a tie."""
    lead = cluster_means(preference, cluster) - 0.5
    wins, losses = int((lead > 1e-9).sum()), int((lead < -1e-9).sum())
    return Outcomes(wins, losses, len(lead) - wins - losses)


def decided_win_rate(counts: Outcomes, level: float = 0.95) -> Interval | None:
    """The share of the decided clusters that A has won, with the exact interval of Clopper and Pearson, Biometrika 26
    (1934); None where every cluster is tied. It covers the truth at least as often as `level` says."""
    from scipy.stats import binomtest  # half a second, for the few who need it

    if not counts.n:
        return None
    ends = binomtest(counts.wins, counts.n).proportion_ci(level, method="exact")
    return Interval(counts.wins / counts.n, float(ends.low), float(ends.high))


def sign_test(counts: Outcomes) -> float:
    """The two-sided p-value of the exact binomial test that A wins half of the decided clusters; 1 where there are
    none. For preferences that come from passing and failing it is McNemar's exact test, see `mcnemar`."""
    from scipy.stats import binomtest

    return float(binomtest(counts.wins, counts.n).pvalue) if counts.n else 1.0


def mcnemar(passed: Bools, other_passed: Bools) -> float:
    """The two-sided p-value that A and B pass equally often, from outcomes of independent pairs, (N,) each: the exact
    binomial test on those where just one has passed (McNemar, Psychometrika 12, 1947)."""
    return sign_test(Outcomes(int((passed & ~other_passed).sum()), int((~passed & other_passed).sum()), 0))


def wilcoxon(difference: Floats, cluster: Ints) -> float:
    """The two-sided p-value that score differences, A's minus B's, (N,), lie symmetrically about 0: Wilcoxon's signed
    rank test on the clusters' means, with zeros ranked as Pratt (JASA 54, 1959) does; 1 where every mean is 0."""
    from scipy import stats

    means = cluster_means(difference, cluster)
    if not np.any(means):
        return 1.0
    return float(stats.wilcoxon(means, zero_method="pratt").pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several comparisons, adjusted so that all of them together are wrong in at most 5 % of cases where
    those at or below 0.05 are believed (Holm, Scandinavian Journal of Statistics 6, 1979); in the order given."""
    n = len(p_values)
    order = sorted(range(n), key=lambda i: p_values[i])
    adjusted = [0.0] * n
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (n - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def scaled_difference(length: Floats, other_length: Floats) -> Floats:
    """tanh((A's length - B's) / its standard deviation), (N,): in (-1, 1), and 0 where both are equally long
    (Dubois et al. 2024, arXiv 2404.04475, Eq. 2)."""
    difference = length - other_length
    scale = float(difference.std())
    scaled: Floats = np.tanh(difference / scale) if scale > 0 else np.zeros(len(difference))
    return scaled


def length_controlled(
    preference: Floats,
    length: Floats,
    other_length: Floats,
    cluster: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> LengthControlled | None:
    """The win rate with the influence of length taken out, with 95 % cluster bootstrap intervals.

    The logistic regression of the preference on an intercept and the scaled length difference, and the sigmoid of its
    intercept: the model of Dubois et al. (arXiv 2404.04475, Eq. 2) without terms for single prompts and without a
    penalty. A tie counts as half a win. All (N,); lengths in any unit. None where the lengths never differ by more or
    less, or where length alone tells who won: no slope is steep enough for that. (`longer_wins` says so then.)
    """
    from scipy.special import expit

    x = scaled_difference(length, other_length)

    def fit(weight: Floats, which: int) -> Floats:
        value: Floats = logistic(x, preference, weight)[which]
        return value

    def rate(weight: Floats) -> Floats:
        value: Floats = expit(fit(weight, 0))
        return value

    if not len(x) or float(x.std()) == 0:
        return None
    controlled = bootstrap(rate, cluster, n=resamples, seed=seed)
    slope = bootstrap(lambda weight: fit(weight, 1), cluster, n=resamples, seed=seed)
    return None if controlled is None or slope is None else LengthControlled(controlled, slope)


def longer_wins(
    preference: Floats,
    length: Floats,
    other_length: Floats,
    cluster: Ints,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The win rate of the longer answer among pairs of unequal length, whoever gave it; None where there are none. A
    judge that only counts words has 1."""
    unequal = length != other_length
    longer = np.where(length > other_length, preference, 1 - preference)
    return win_rate(longer[unequal], cluster[unequal], resamples=resamples, seed=seed)


def position(
    a_first: Floats, b_first: Floats, cluster: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> Position | None:
    """What the order of the answers does to a judge: the preferences for A of the same pairs with A's answer shown
    first and with B's shown first, (N,) each. None without pairs."""
    same = (a_first == b_first).astype(np.float64)
    consistency = win_rate(same, cluster, resamples=resamples, seed=seed)
    first = win_rate((a_first + 1 - b_first) / 2, cluster, resamples=resamples, seed=seed)
    return None if consistency is None or first is None else Position(consistency, first)


def kappa(
    judge: Ints | Bools, human: Ints | Bools, cluster: Ints, *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """Cohen's kappa of two judgements of the same answers, (N,) categories each, with its 95 % cluster bootstrap
    interval: 1 is full agreement, 0 what chance would give (Cohen, Educational and Psychological Measurement 20, 1960).

    None where there are no answers, or both give one and the same category to all of them.
    """
    kinds, place = np.unique(np.concatenate((judge, human)), return_inverse=True)
    here, there = np.eye(len(kinds))[place[: len(judge)]], np.eye(len(kinds))[place[len(judge) :]]
    same = (here * there).sum(axis=1)

    def agreement(weight: Floats) -> Floats:
        total = weight.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            chance = ((weight @ here) * (weight @ there)).sum(axis=1) / total**2
            value: Floats = np.where(chance < 1, (weight @ same / total - chance) / (1 - chance), np.nan)
        return value

    return bootstrap(agreement, cluster, n=resamples, seed=seed)


def prompts_needed(points: float = 3.0, *, variance: float = 0.25, level: float = 0.95, power: float = 0.8) -> int:
    """How many prompts show a win rate of 50 + `points` percent to differ from 50 %, two-sided at `level`, with
    probability `power`: ((z_level + z_power) / (points / 100))^2 * variance (Miller 2024, arXiv 2411.00640, section 5).

    `variance` is that of a prompt's mean preference: 0.25 with one pair per prompt and no ties, less with ties or with
    several samples per prompt; `np.var(cluster_means(...))` measures it.
    """
    from scipy.special import ndtri

    assert points > 0, f"a difference of {points} points"
    reach = float(ndtri(0.5 + level / 2) + ndtri(power))
    return math.ceil((reach / (points / 100)) ** 2 * variance)

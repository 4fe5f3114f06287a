"""Where raters differ, intervals that know the raters cover the truth about other raters, and narrower ones do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from prospect.evaluate.heldout import measure
from prospect.evaluate.statistics import auc, bootstrap, bootstrap_two_ways
from tests.evaluate.test_coverage import intervals

RUNS = 60


def draw(seed: int, raters: int, crossed: bool) -> dict[str, Any]:
    """Judged answers of raters who differ in leniency and in what they value; every rater has conversations of their
    own, or (crossed) all judge answers to common prompts."""
    rng = np.random.default_rng(seed)
    if crossed:
        rater = np.repeat(np.arange(raters), 10)
        group = rng.integers(0, 2 * raters, len(rater))
    else:
        owner = np.repeat(np.arange(raters), rng.integers(6, 12, raters))
        group = np.repeat(np.arange(len(owner)), rng.integers(1, 3, len(owner)))
        rater = owner[group]
    n = len(rater)
    score = rng.normal(0, 0.8, group.max() + 1)[group] + rng.normal(0, 0.8, n)
    value, leniency = 1 + rng.normal(0, 1, raters), rng.normal(0, 1.5, raters)
    liked = rng.random(n) < expit(value[rater] * score + leniency[rater])
    length = rng.integers(4, 30, n) + rng.integers(0, 9, raters)[rater]
    reference = -1.2 * length + rng.normal(0, 4, n)
    return {
        "reward": score, "desirable": liked, "prompt": group, "rater": rater, "length": length,
        "reference_logp": reference, "logp": reference + score / 0.1, "z0": 0.0, "beta": 0.1,
    }  # fmt: skip


@pytest.mark.parametrize("crossed", [False, True])
def test_every_interval_covers_the_truth_about_other_raters(crossed: bool) -> None:
    truth = {k: each.value for k, each in intervals(measure(**draw(99, 6_000, crossed), resamples=0)).items()}
    coverage = {}
    for known in (False, True):
        hits = dict.fromkeys(truth, 0)
        for seed in range(RUNS):
            data = draw(seed, 40, crossed) | ({} if known else {"rater": None})
            for name, each in intervals(measure(**data, seed=seed, resamples=200)).items():
                hits[name] += each.low <= truth[name] <= each.high
        coverage[known] = {name: hit / RUNS for name, hit in hits.items()}
    assert min(coverage[False].values()) < 0.85, coverage[False]
    assert min(coverage[True].values()) >= 0.88, coverage[True]
    assert np.mean(list(coverage[True].values())) < 0.99, coverage[True]


def test_two_ways_of_belonging_together() -> None:
    """One way alone where the other says nothing; and of a mean with effects of both, the variances' sum."""
    rng = np.random.default_rng(0)
    first, second = np.repeat(np.arange(40), 40), np.tile(np.arange(40), 40)
    values = rng.normal(size=40)[first] + rng.normal(size=40)[second] + rng.normal(size=1600)

    def mean(weight: np.ndarray) -> np.ndarray:
        return np.asarray(weight @ values / weight.sum(axis=1))

    one, other = bootstrap(mean, first), bootstrap(mean, second)
    assert bootstrap_two_ways(mean, first, np.zeros(1600, int)) == one
    both = bootstrap_two_ways(mean, first, second)
    assert both is not None and one is not None and other is not None
    deviations = [values.reshape(40, 40).mean(axis=axis).std(ddof=1) for axis in (0, 1)]
    assert both.high - both.low == pytest.approx(2 * 2.02 * np.hypot(*deviations) / np.sqrt(40), rel=0.1)
    rows = bootstrap(mean, np.arange(1600))
    assert rows is not None
    parts = (one.high - one.value) ** 2 + (other.high - other.value) ** 2 - (rows.high - rows.value) ** 2
    assert (both.high - both.value) ** 2 == pytest.approx(parts)
    assert bootstrap_two_ways(mean, first, second, n=0) is not None
    nothing = np.ones(1600, bool)
    assert bootstrap_two_ways(lambda w: auc(values, nothing, w), first, second) is None


def test_unknown_raters_and_one_rater_leave_the_groups() -> None:
    data = draw(3, 30, crossed=False)
    plain = measure(**data | {"rater": None}, resamples=100)
    unknown = measure(**data | {"rater": np.full(len(data["rater"]), -1)}, resamples=100)
    assert intervals(unknown) == intervals(plain) and unknown.notes == plain.notes
    alone = measure(**data | {"rater": np.zeros(len(data["rater"]), int)}, resamples=100)
    assert intervals(alone) == intervals(plain)
    assert alone.notes[-1] == "One rater gave all thumbs whose rater is known: the figures speak of that taste."
    few = measure(**data | {"rater": data["rater"] % 5}, resamples=100)
    assert few.notes[-1] == "Only 5 raters: intervals say little about other people's taste."

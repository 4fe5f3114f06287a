"""Statistics against hand calculations, brute force, and simulated data whose truth is known."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from scipy.special import ndtr

from prospect.evaluate import statistics
from prospect.evaluate.statistics import (
    Interval,
    auc,
    bootstrap,
    calibration,
    calibration_slope,
    clustered_auc,
    ratio,
    roc,
    separated,
    wilson,
)


def brute_auc(score: np.ndarray, label: np.ndarray) -> float:
    """Every desirable row against every undesirable one."""
    up, down = score[label], score[~label]
    return float(np.mean([(a > b) + 0.5 * (a == b) for a in up for b in down]))


def test_wilson_matches_its_closed_form() -> None:
    # z = 1.959964, p = 0.8, n = 10: centre (0.8 + z^2/20) / (1 + z^2/10), half-width z sqrt(.16/10 + z^2/400) / (...)
    found = wilson(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.49016, abs=1e-5)
    assert found.high == pytest.approx(0.94331, abs=1e-5)


@pytest.mark.parametrize(("k", "n", "low", "high"), [(0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0)])
def test_wilson_has_width_at_the_ends(k: int, n: int, low: float, high: float) -> None:
    found = wilson(k, n)
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-5)


def test_wilson_of_a_fraction_covers_both_neighbours() -> None:
    assert (wilson(2.4, 10).low, wilson(2.4, 10).high) == (wilson(2, 10).low, wilson(3, 10).high)
    third = wilson(0.1 * 3 * 10, 10)  # a little above 3
    assert (third.low, third.high) == (wilson(3, 10).low, wilson(3, 10).high)


def test_auc_by_hand() -> None:
    # up 3, 1 against down 2, 1: 3>2, 3>1, 1<2, 1=1 -> (1 + 1 + 0 + 1/2) / 4
    assert auc(np.array([3.0, 1.0, 2.0, 1.0]), np.array([True, True, False, False]))[0] == 0.625


@pytest.mark.parametrize("seed", range(5))
def test_auc_equals_brute_force_with_ties_and_weights(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score = rng.integers(0, 6, 60).astype(float)
    label = rng.random(60) < 0.4
    weight = rng.integers(0, 4, (3, 60)).astype(float)
    assert auc(score, label)[0] == pytest.approx(brute_auc(score, label), abs=1e-12)
    for row, value in zip(weight, auc(score, label, weight), strict=True):
        times = row.astype(int)
        assert value == pytest.approx(brute_auc(np.repeat(score, times), np.repeat(label, times)), abs=1e-12)


def test_auc_of_one_class_or_no_rows_is_unknown() -> None:
    assert np.isnan(auc(np.array([1.0, 2.0]), np.array([True, True]))[0])
    assert np.isnan(auc(np.empty(0), np.empty(0, bool))[0])


def test_clustered_auc_of_single_rows_has_delongs_variance() -> None:
    rng = np.random.default_rng(0)
    label = np.repeat([True, False], [40, 60])
    score = np.round(rng.normal(size=100) + 0.4 * label, 1)
    wins = np.array([[(a > b) + 0.5 * (a == b) for b in score[~label]] for a in score[label]])
    # DeLong et al., Biometrics 44 (1988): the variances of the placements of either class, each over its size.
    variance = wins.mean(1).var() / 40 + wins.mean(0).var() / 60
    area = clustered_auc(score, label, np.arange(100))
    assert area.value == pytest.approx(wins.mean(), abs=1e-12)
    assert area.high - area.value == pytest.approx(1.96 * np.sqrt(variance * 100 / 99), abs=1e-12)


def test_clustered_auc_is_as_wide_as_the_bootstrap_of_clusters() -> None:
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(200), 5)
    label = rng.random(200)[cluster] + 0.3 * rng.random(1000) < 0.65
    score = rng.normal(size=200)[cluster] + rng.normal(size=1000)
    area, resampled = clustered_auc(score, label, cluster), bootstrap(lambda w: auc(score, label, w), cluster)
    assert resampled is not None
    assert area.value == resampled.value
    assert area.high - area.low == pytest.approx(resampled.high - resampled.low, rel=0.1)
    alone = clustered_auc(score, label, np.arange(1000))
    assert area.high - area.low > 1.3 * (alone.high - alone.low)


def test_roc_encloses_the_auc() -> None:
    rng = np.random.default_rng(0)
    label = rng.random(400) < 0.5
    score = np.round(rng.normal(size=400) + label, 1)
    x, y = np.array(roc(score, label, most=10_000)).T
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(auc(score, label)[0], abs=1e-12)
    assert len(roc(score, label, most=20)) <= 21
    assert roc(score, np.ones(400, bool)) == []


def test_calibration_by_hand() -> None:
    probability = np.array([0.15, 0.11, 0.95, 1.0])
    label = np.array([True, False, True, True])
    first, last = calibration(probability, label)
    assert (first.low, first.high, first.n, first.rate) == (0.1, 0.2, 2, 0.5)
    assert (last.low, last.high, last.n, last.rate) == (0.9, 1.0, 2, 1.0)
    assert first.mean == pytest.approx(0.13)


def test_calibration_slope_by_hand() -> None:
    # At logit 0 one of four is True, at logit 2 three of four: the log-odds rise by 2 log 3 over a logit of 2.
    logit = np.repeat([0.0, 2.0], 4)
    label = np.array([True, False, False, False, True, True, True, False])
    assert calibration_slope(logit, label)[0] == pytest.approx(np.log(3), abs=1e-9)
    assert calibration_slope(10 * logit - 3, label)[0] == pytest.approx(np.log(3) / 10, abs=1e-9)
    doubled = calibration_slope(logit, label, np.array([[2.0] * 8, [0, 1, 1, 1, 1, 1, 1, 0]]))
    assert doubled[0] == pytest.approx(np.log(3), abs=1e-9)
    assert not doubled[1] < 5  # a resample that separates the labels asks for a slope without end


def test_calibration_slope_of_equal_or_separating_logits_is_unknown() -> None:
    label = np.array([True, False, True, False])
    for logit in (np.zeros(4), np.where(label, 1.0, -1.0), np.empty(0)):
        assert np.isnan(calibration_slope(logit, label[: len(logit)])[0])


def test_ratio_is_a_weighted_mean() -> None:
    values, sizes = np.array([1.0, 2.0, 6.0]), np.array([1.0, 1.0, 2.0])
    assert ratio(values)[0] == 3.0
    assert ratio(values, sizes)[0] == 9 / 4
    assert ratio(values, sizes, np.array([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])).tolist()[0] == 8 / 3
    assert np.isnan(ratio(values, sizes, np.zeros((1, 3)))[0])


@pytest.mark.parametrize("clusters", [20, 60])
def test_clustered_intervals_cover_the_truth_and_naive_ones_do_not(clusters: int) -> None:
    """Rows of a prompt share an effect as large as their own noise: the truth is 0."""
    rng = np.random.default_rng(0)
    clustered = naive = 0
    for seed in range(200):
        cluster = np.repeat(np.arange(clusters), 5)
        values = rng.normal(size=len(cluster)) + rng.normal(size=clusters)[cluster]
        for rows, by_prompt in ((cluster, True), (np.arange(len(cluster)), False)):
            found = bootstrap(partial(ratio, values, None), rows, n=200, seed=seed)
            assert found is not None
            hit = found.low <= 0 <= found.high
            clustered, naive = clustered + (hit and by_prompt), naive + (hit and not by_prompt)
    assert clustered / 200 > 0.88
    assert naive / 200 < 0.82


def test_bootstrap_is_seeded_and_contains_its_estimate() -> None:
    rng = np.random.default_rng(3)
    probability = rng.random(300)
    label, prompt = rng.random(300) < probability, rng.integers(0, 60, 300)

    def run(seed: int) -> Interval | None:
        return bootstrap(lambda w: auc(probability, label, w), prompt, seed=seed)

    first, again, other = run(0), run(0), run(1)
    assert first == again != other
    assert first is not None
    assert first.low <= first.value <= first.high


def test_bootstrap_of_nothing_and_of_one_cluster() -> None:
    assert bootstrap(lambda w: ratio(np.empty(0), None, w), np.empty(0, int)) is None
    assert bootstrap(lambda w: auc(np.arange(4.0), np.ones(4, bool), w), np.arange(4)) is None
    one = bootstrap(lambda w: ratio(np.arange(30.0), None, w), np.zeros(30, int))
    assert one is not None
    assert one.low < 14.5 < one.high


def test_without_resamples_an_estimate_has_no_interval() -> None:
    found = bootstrap(lambda w: ratio(np.arange(3.0), None, w), np.arange(3), n=0)
    assert found is not None
    assert found.value == 1.0
    assert np.isnan([found.low, found.high]).all()


def test_chunks_of_resamples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    values, prompt = np.arange(50.0), np.arange(50) // 2
    whole = bootstrap(lambda w: ratio(values, None, w), prompt, n=100)
    monkeypatch.setattr(statistics, "CHUNK", 500)
    assert bootstrap(lambda w: ratio(values, None, w), prompt, n=100) == whole


def test_perfect_separation_still_has_an_interval() -> None:
    assert separated(Interval(1.0, 1.0, 1.0), 10) == wilson(10, 10)
    assert separated(Interval(0.0, 0.0, 0.0), 10) == wilson(0, 10)
    assert separated(Interval(0.7, 0.6, 0.8), 10) == Interval(0.7, 0.6, 0.8)
    assert separated(Interval(1.0, 1.0, 1.0), 0) == Interval(1.0, 1.0, 1.0)
    assert separated(None, 10) is None


def test_a_thousand_resamples_of_ten_thousand_rows() -> None:
    rng = np.random.default_rng(0)
    label, prompt = rng.random(10_000) < 0.5, rng.integers(0, 2000, 10_000)
    score = rng.normal(size=10_000) + label
    found = bootstrap(lambda w: auc(score, label, w), prompt)
    assert found is not None
    assert found.low < ndtr(2**-0.5) < found.high

"""The statistics of a comparison: published values, the coverage of every interval, and judges that it must expose."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import beta, binom

from prospect.evaluate.comparison import (
    Outcomes,
    cluster_means,
    decided_win_rate,
    holm,
    kappa,
    length_controlled,
    longer_wins,
    mcnemar,
    outcomes,
    position,
    prompts_needed,
    scaled_difference,
    sign_test,
    wilcoxon,
    win_rate,
)
from prospect.evaluate.statistics import Floats, Interval, Ints, logistic

PREFERENCE = np.array([1, 0, 0.5, 1, 1, 0, 1, 0.5, 0, 1, 1, 0])
LENGTH = np.array([120, 80, 95, 200, 150, 60, 90, 100, 70, 130, 110, 140.0])
OTHER_LENGTH = np.array([100, 90, 95, 120, 160, 100, 60, 120, 90, 100, 130, 90.0])
ALONE = np.arange(12)


def test_ties_alone_do_not_prove_a_tie() -> None:
    """Ten ties of ten: Wilson's 27.8 % may be decided next time, all of them for one side."""
    interval = win_rate(np.full(10, 0.5), np.arange(10))
    assert interval is not None and interval.value == 0.5
    assert (interval.low, interval.high) == pytest.approx((0.5 - 0.2775 / 2, 0.5 + 0.2775 / 2), abs=1e-3)


def test_ties_count_half_and_a_cluster_once() -> None:
    # prompts: (1, 1, 0) won, (0.5, 0.5) tied, (0) lost, (1) won
    preference = np.array([1, 1, 0, 0.5, 0.5, 0, 1])
    cluster = np.array([7, 7, 7, 2, 2, 9, 4])
    assert outcomes(preference, cluster) == Outcomes(wins=2, losses=1, ties=1)
    assert cluster_means(preference, cluster) == pytest.approx([0.5, 1, 2 / 3, 0])
    rate = win_rate(preference, cluster)
    assert rate is not None
    assert rate.value == pytest.approx(4 / 7)


def test_thirds_that_add_up_to_a_half_are_a_tie() -> None:
    assert outcomes(np.array([0.2, 0.7, 0.6]), np.zeros(3, int)) == Outcomes(0, 0, 1)


def test_exact_interval_is_that_of_beta_quantiles_and_of_statsmodels() -> None:
    found = decided_win_rate(Outcomes(13, 7, 5))
    assert found is not None
    # statsmodels 0.15.0: proportion_confint(13, 20, method="beta")
    assert (found.low, found.high) == pytest.approx((0.4078114655, 0.8460907952), abs=1e-9)
    assert (found.low, found.high) == pytest.approx((beta.ppf(0.025, 13, 8), beta.ppf(0.975, 14, 7)))
    none_lost = decided_win_rate(Outcomes(10, 0, 0))
    assert none_lost is not None
    assert (none_lost.low, none_lost.high) == pytest.approx((0.025**0.1, 1.0))
    assert decided_win_rate(Outcomes(0, 0, 4)) is None


def test_sign_test_and_mcnemar_by_hand() -> None:
    # 9 of 10: 2 * (10 + 1) / 1024
    assert sign_test(Outcomes(9, 1, 3)) == pytest.approx(22 / 1024)
    assert sign_test(Outcomes(0, 0, 3)) == 1
    # of 17 pairs on which just one passes, 12 are A's
    passed = np.repeat([True, True, False, False], [30, 12, 5, 40])
    other = np.repeat([True, False, True, False], [30, 12, 5, 40])
    assert mcnemar(passed, other) == pytest.approx(2 * float(binom.cdf(5, 17, 0.5)))
    assert mcnemar(passed, other) == mcnemar(other, passed) == pytest.approx(0.1434631, abs=1e-6)


def test_wilcoxon_on_darwins_maize() -> None:
    """Height differences of crossed and self-fertilised plants: T = 24 of 15, p = 0.0413 (Fisher 1935, tables of
    Wilcoxon 1945)."""
    maize = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48.0])
    assert wilcoxon(maize, np.arange(15)) == pytest.approx(0.041259765625)
    assert wilcoxon(np.repeat(maize, 3), np.repeat(np.arange(15), 3)) == pytest.approx(0.041259765625)
    assert wilcoxon(np.zeros(5), np.arange(5)) == 1


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_logistic_regression_gives_the_numbers_of_statsmodels() -> None:
    """statsmodels 0.15.0: GLM(PREFERENCE, add_constant(x), Binomial()), and with freq_weights."""
    x = scaled_difference(LENGTH, OTHER_LENGTH)
    weight = np.array([[1.0] * 12, [1, 2, 0, 3, 1, 1, 2, 1, 1, 0, 1, 2]])
    offset, slope = logistic(x, PREFERENCE, weight)
    assert offset == pytest.approx([0.30899193, 0.03617997], abs=1e-8)
    assert slope == pytest.approx([1.2931064, 1.18457343], abs=1e-7)


@pytest.mark.parametrize("steep", [0.0, 1.0, 8.0])
def test_logistic_regression_is_at_the_maximum_of_the_likelihood(steep: float) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(50, 9, 400)
    outcome = (rng.random(400) < expit(0.3 + steep * (x - 50) / 9)).astype(float)

    def loss(line: Floats) -> float:
        logit = line[0] + line[1] * (x - 50)
        return float(np.sum(np.logaddexp(0, logit) - outcome * logit))

    best = minimize(loss, np.zeros(2), method="BFGS", options={"gtol": 1e-7}).x
    offset, slope = logistic(x, outcome)
    assert slope[0] == pytest.approx(best[1], rel=1e-4)
    assert offset[0] + 50 * slope[0] == pytest.approx(best[0], abs=1e-4)


def test_no_line_where_length_tells_all() -> None:
    assert np.isnan(logistic(np.array([1, 2, 3, 4.0]), np.array([0, 0, 1, 1.0]))).all()
    assert np.isnan(logistic(np.array([1, 2, 3, 4.0]), np.array([1, 0.5, 0, 0.0]))).all()
    assert np.isnan(logistic(np.ones(4), np.array([0, 1, 0, 1.0]))).all()
    assert (
        length_controlled(np.array([1, 1, 0, 0.0]), np.arange(4.0), np.array([9, 8, 0, 0.0])[::-1], ALONE[:4]) is None
    )


def test_equal_answers_win_half_once_length_is_controlled() -> None:
    """Swapping A and B turns every figure round one half."""
    one = length_controlled(PREFERENCE, LENGTH, OTHER_LENGTH, ALONE, resamples=0)
    other = length_controlled(1 - PREFERENCE, OTHER_LENGTH, LENGTH, ALONE, resamples=0)
    assert one is not None
    assert other is not None
    assert one.win_rate.value == pytest.approx(expit(0.30899193))
    assert one.win_rate.value + other.win_rate.value == pytest.approx(1)
    assert one.slope.value == pytest.approx(other.slope.value)


def test_kappa_of_the_textbook() -> None:
    """Fleiss, Levin and Paik (2003), table 18.1: kappa 0.68 with standard error 0.087; statsmodels 0.15.0 gives
    0.6764706 and 0.0877030."""
    table = np.array([[75, 1, 4], [5, 4, 1], [0, 0, 10]])
    judge, human = (np.repeat(axis, table.ravel()) for axis in np.indices((3, 3)).reshape(2, -1))
    found = kappa(judge, human, np.arange(100), resamples=4000)
    assert found is not None
    assert found.value == pytest.approx(0.23 / 0.34)
    assert (found.high - found.low) / 3.92 == pytest.approx(0.0877030, rel=0.08)
    assert kappa(np.ones(4, int), np.ones(4, int), ALONE[:4]) is None
    chance = kappa(np.array([1, 1, 0, 0]), np.array([1, 0, 1, 0]), ALONE[:4], resamples=0)
    assert chance is not None
    assert chance.value == 0


def test_prompts_for_three_points() -> None:
    # (1.959964 + 0.841621)^2 / 0.03^2 / 4 = 2180.2
    assert prompts_needed() == 2181
    assert prompts_needed(6) == 546
    n, rng = prompts_needed(6), np.random.default_rng(0)
    shown = [sign_test(Outcomes(int(wins), n - int(wins), 0)) < 0.05 for wins in rng.binomial(n, 0.56, 1500)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


RUNS = 600
TRUTH_ROWS = 200_000


def judged(seed: int, prompts: int) -> tuple[Floats, Floats, Floats, Ints]:
    """Preferences, lengths of both answers, and prompts of pairs: a prompt's pairs share what it is good for; a quarter
    are ties; the judge likes the longer answer."""
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), rng.integers(1, 5, prompts))
    n = len(prompt)
    other: Floats = rng.integers(20, 60, n).astype(np.float64)
    length: Floats = other + rng.integers(-15, 21, n)
    lead = 0.25 + rng.normal(0, 0.8, prompts)[prompt] + 0.8 * np.tanh((length - other) / 10.4)
    preference = np.where(rng.random(n) < 0.25, 0.5, (rng.random(n) < expit(lead)).astype(float))
    return preference, length, other, prompt


def both_orders(seed: int, prompts: int) -> tuple[Floats, Floats, Ints]:
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), rng.integers(1, 4, prompts))
    lead = rng.normal(0.2, 1, prompts)[prompt]
    first = [(rng.random(len(prompt)) < expit(lead + tilt)).astype(float) for tilt in (0.5, -0.5)]
    return first[0], first[1], prompt


def thumbs(seed: int, prompts: int) -> tuple[Ints, Ints, Ints]:
    rng = np.random.default_rng(seed)
    prompt = np.repeat(np.arange(prompts), rng.integers(1, 4, prompts))
    quality = rng.normal(0, 1, prompts)[prompt] + rng.normal(0, 0.5, len(prompt))
    judge, human = ((quality + rng.normal(0, 0.7, len(prompt)) > 0).astype(int) for _ in range(2))
    return judge, human, prompt


def pairs_alone(seed: int, n: int) -> Outcomes:
    wins, losses, ties = np.random.default_rng(seed).multinomial(n, [0.48, 0.32, 0.2])
    return Outcomes(int(wins), int(losses), int(ties))


def controlled(seed: int, n: int, resamples: int) -> tuple[Interval | None, Interval | None]:
    found = length_controlled(*judged(seed, n), resamples=resamples, seed=seed)
    return (None, None) if found is None else (found.win_rate, found.slope)


def orders(seed: int, n: int, resamples: int) -> tuple[Interval | None, Interval | None]:
    found = position(*both_orders(seed, n), resamples=resamples, seed=seed)
    return (None, None) if found is None else (found.consistency, found.first)


def longer(seed: int, n: int, resamples: int) -> tuple[Interval | None]:
    return (longer_wins(*judged(seed, n), resamples=resamples, seed=seed),)


def rates(seed: int, n: int, resamples: int) -> tuple[Interval | None]:
    preference, _, _, prompt = judged(seed, n)
    return (win_rate(preference, prompt, resamples=resamples, seed=seed),)


FIGURES: dict[str, Callable[[int, int, int], tuple[Interval | None, ...]]] = {
    "win rate": rates,
    "length-controlled win rate and slope": controlled,
    "longer answers": longer,
    "position": orders,
    "exact": lambda seed, n, _: (decided_win_rate(pairs_alone(seed, 2 * n)),),
    "kappa": lambda seed, n, resamples: (kappa(*thumbs(seed, n), resamples=resamples, seed=seed),),
}


@pytest.mark.parametrize("figure", FIGURES)
def test_every_interval_covers_the_truth(figure: str) -> None:
    measured = FIGURES[figure]
    truth = [0.6] if figure == "exact" else [each.value for each in measured(10**6, TRUTH_ROWS, 0) if each]
    hits = np.zeros(len(truth))
    for seed in range(RUNS):
        found = measured(seed, 80, 200)
        hits += [each is not None and each.low <= value <= each.high for each, value in zip(found, truth, strict=True)]
    coverage = hits / RUNS
    assert ((coverage >= 0.93) & (coverage <= 0.97)).all(), coverage


def answers(n: int = 400) -> tuple[np.random.Generator, Floats, Floats, Floats, Ints]:
    """Of A and B: how much better A's answer is, and the lengths of both; A's are longer on average, and no better."""
    rng = np.random.default_rng(11)
    other = rng.integers(20, 60, n).astype(float)
    return rng, rng.normal(0, 1, n), other + rng.integers(-10, 25, n), other, np.arange(n)


def test_a_judge_that_takes_the_first_answer_is_exposed() -> None:
    rng, better, _, _, prompt = answers()
    # Nine times in ten it says the first.
    a_first = np.where(rng.random(400) < 0.9, 1.0, better > 0)
    b_first = np.where(rng.random(400) < 0.9, 0.0, better > 0)
    found = position(a_first, b_first, prompt)
    assert found is not None
    assert found.first.low > 0.9
    assert found.consistency.high < 0.25
    rate = win_rate((a_first + b_first) / 2, prompt)
    assert rate is not None
    assert rate.low < 0.5 < rate.high  # both orders together cancel it
    fair = position((better > 0) * 1.0, (better > 0) * 1.0, prompt)
    assert fair is not None
    assert fair.first.value == 0.5
    assert fair.consistency.low > 0.98


def test_a_judge_that_likes_length_is_exposed() -> None:
    rng, _, length, other, prompt = answers()
    preference = (rng.random(400) < expit(0.15 * (length - other))).astype(float)
    rate = win_rate(preference, prompt)
    wins, found = longer_wins(preference, length, other, prompt), length_controlled(preference, length, other, prompt)
    assert rate is not None
    assert wins is not None
    assert found is not None
    assert rate.low > 0.6  # what it would make us believe
    assert wins.low > 0.65
    assert found.slope.low > 1
    assert found.win_rate.low < 0.5 < found.win_rate.high
    words = longer_wins((length > other) * 1.0, length, other, prompt)
    assert words is not None
    assert words.value == 1
    assert 0.98 < words.low < 1


def test_a_judge_that_tosses_coins_is_exposed() -> None:
    rng, better, _, _, prompt = answers()
    coins = [(rng.random(400) < 0.5).astype(float) for _ in range(2)]
    found, agreement = position(*coins, prompt), kappa(coins[0] > 0.5, better > 0, prompt)
    fair = kappa(better + rng.normal(0, 0.5, 400) > 0, better > 0, prompt)
    assert found is not None
    assert agreement is not None
    assert fair is not None
    assert found.consistency.low < 0.5 < found.consistency.high
    assert agreement.low < 0 < agreement.high < 0.15
    assert fair.low > 0.5


def test_tests_are_right_about_no_difference_in_one_of_twenty_cases() -> None:
    """Under the null, with several pairs per prompt that are alike, p-values below 0.05 are at most about 5 %."""
    rng = np.random.default_rng(5)
    prompt = np.repeat(np.arange(80), 4)
    alarms = np.zeros(3)
    for _ in range(600):
        difference = rng.normal(0, 1, 80)[prompt] + rng.normal(0, 0.5, 320)
        preference = (difference > 0).astype(float)
        of_pairs = sign_test(outcomes(preference, np.arange(320)))
        alarms += [p < 0.05 for p in (sign_test(outcomes(preference, prompt)), wilcoxon(difference, prompt), of_pairs)]
    assert (alarms[:2] / 600 < 0.07).all(), alarms / 600
    assert alarms[2] / 600 > 0.15, "why clusters are counted, and not pairs"
    assert alarms[1] / 600 > 0.03

"""Losses on pairs that read scores or win rates."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from prospect.losses.paired import dpo, sppo_hard
from prospect.losses.paired_scores import Distance, backward_kl, forward_kl, reward_aware, sppo, squared
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

DISTANCES = {distance.__name__: distance for distance in (backward_kl, forward_kl, squared)}
CASES = {
    **{name: Case(partial(reward_aware, distance=distance), "rrm") for name, distance in DISTANCES.items()},
    "sppo": Case(sppo, "rrww"),
}
CHOSEN, REJECTED = f64(3, -1, 0), f64(-1.5, 1.5, 0)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (backward_kl, [0.18155641, 0.00747727, 0]),
        (forward_kl, [0.23718825, 0.00759344, 0]),
        (squared, [2.4025, 0.0625, 0]),
    ],
)
def test_golden_reward_aware(distance: Distance, expected: list[float]) -> None:
    """Log-ratios (3, -1.5), (-1, 1.5), (0, 0) at beta 0.1, scores apart by 2, -0.5, 0."""
    got = reward_aware(CHOSEN, REJECTED, f64(2, -0.5, 0), distance=distance)
    assert got.tolist() == pytest.approx(expected, abs=5e-9)
    halved = reward_aware(CHOSEN, REJECTED, f64(4, -1, 0), distance=distance, reward_scale=0.5)
    torch.testing.assert_close(halved, got)


@pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)
def test_reward_aware_is_least_where_the_margins_agree(distance: Distance) -> None:
    """Zero with no slope at z = g, positive on both sides."""
    loss = partial(reward_aware, distance=distance)
    at = [loss(f64(x), f64(0), f64(0.8)).item() for x in (-40.0, 7.9, 8.0, 8.1, 40.0)]
    assert at[2] == pytest.approx(0, abs=1e-15) and min(at[:2] + at[3:]) > 0
    assert slopes(lambda c, r: loss(c, r, f64(0.8)), 8.0, 0.0) == pytest.approx([0, 0], abs=1e-15)


def test_reward_aware_tends_to_dpo_for_scores_far_apart() -> None:
    """With the backward KL, up to the entropy of the goal, which vanishes."""
    chosen, rejected = draw("rr")
    got = reward_aware(chosen, rejected, torch.full_like(chosen, 60.0))
    torch.testing.assert_close(got, dpo(chosen, rejected))


def test_golden_sppo() -> None:
    """Beta 0.001, win rates of the chosen 0.8, 0.6, 0.5, the rejected's what is left."""
    rates = f64(0.8, 0.6, 0.5)
    got = sppo(CHOSEN, REJECTED, rates, 1 - rates)
    assert got.tolist() == pytest.approx([177311.25, 20503.25, 0], rel=1e-12, abs=1e-20)


def test_sppo_with_certain_wins_is_the_hard_one() -> None:
    chosen, rejected = draw("rr")
    sure = torch.ones_like(chosen)
    torch.testing.assert_close(sppo(chosen, rejected, sure, 0 * sure, beta=0.1), sppo_hard(chosen, rejected, beta=0.1))

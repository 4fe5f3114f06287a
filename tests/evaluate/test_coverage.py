"""Every interval that an evaluation gives covers the truth as often as it says, on simulated data of known truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from prospect.evaluate.heldout import Heldout, measure
from prospect.evaluate.statistics import Interval

RUNS = 200
WORLDS: dict[str, tuple[float, float, float]] = {
    "calibrated": (1.0, 1.0, 0.0),
    "too extreme": (3.0, 1.0, 0.0),
    "too timid, length tells": (0.1, 1.0, 3.0),
    "no ranking at all": (1.0, 0.0, 0.0),
}
"""How far the reward is stretched beyond the log-odds, how much those differ, by how much liked answers are longer."""


def draw(seed: int, groups: int, stretch: float, spread: float, longer: float) -> dict[str, Any]:
    """Answers in groups of one to five that share part of their reward, thumb and length."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
    n = len(group)
    score = rng.normal(0, 0.8, groups)[group] + rng.normal(0, 0.8, n)
    liked = rng.random(n) < expit(spread * score)
    length = rng.integers(4, 30, n) + (longer * liked).astype(int) + rng.integers(0, 9, groups)[group]
    reference = -1.2 * length + rng.normal(0, 4, n)
    reward = stretch * score
    return {
        "reward": reward, "desirable": liked, "prompt": group, "length": length, "reference_logp": reference,
        "logp": reference + reward / 0.1, "z0": 0.0, "beta": 0.1,
    }  # fmt: skip


def intervals(found: Heldout) -> dict[str, Interval]:
    """Whatever in an evaluation is an interval, by its name."""
    flat: dict[str, Interval] = {}
    for name in found.__slots__:
        value = getattr(found, name)
        parts = value if isinstance(value, dict) else {"": value}
        flat |= {f"{name} {part}".strip(): each for part, each in parts.items() if isinstance(each, Interval)}
    return flat


@pytest.mark.parametrize("world", WORLDS)
def test_every_interval_covers_the_truth(world: str) -> None:
    truth = {
        name: each.value for name, each in intervals(measure(**draw(99, 60_000, *WORLDS[world]), resamples=0)).items()
    }
    assert {"auc", "accuracy", "margin", "nll", "auc_difference length", "auc_difference reference_logp"} <= set(truth)
    hits = dict.fromkeys(truth, 0)
    for seed in range(RUNS):
        found = measure(**draw(seed, 60, *WORLDS[world]), seed=seed, resamples=200)
        for name, each in intervals(found).items():
            hits[name] += each.low <= truth[name] <= each.high
    coverage = {name: hit / RUNS for name, hit in hits.items()}
    assert all(0.90 <= share <= 0.985 for share in coverage.values()), coverage

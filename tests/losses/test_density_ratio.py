"""Losses that match a density ratio: published values, the identity they come from, and what they reduce to."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses.density_ratio import Generator, basu, bpo, kliep, logistic, lsif, scaled_basu, tbpo_q
from prospect.losses.paired import dpo
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

GENERATORS: dict[str, Generator] = {
    "logistic": logistic,
    "kliep": kliep,
    "lsif": lsif,
    "basu": basu,
    "scaled_basu": scaled_basu,
    "scaled_basu 0.5": partial(scaled_basu, power=0.5),
}
CASES = {name: Case(partial(bpo, generator=generator), "rr") for name, generator in GENERATORS.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("generator", "expected"),
    [
        (logistic, [0.49324895, 0.82593942, 0.69314718]),
        (kliep, [0.18762815, 1.53402542, 1]),
        (lsif, [-2.73005471, 0.09111970, -1]),
        (partial(basu, power=0.5), [-3.24781173, -1.19249929, -2]),
        (partial(scaled_basu, power=0.5), [-0.54130195, -0.19874988, -1 / 3]),
        (scaled_basu, [0.04690704, 0.38350635, 0.25]),
    ],
)
def test_golden_points(generator: Generator, expected: list[float]) -> None:
    """(3, -1.5), (-1, 1.5), (0, 0) at beta 0.1, so that u is -0.45, 0.25, 0."""
    got = bpo(f64(3, -1, 0), f64(-1.5, 1.5, 0), generator=generator)
    assert got.tolist() == pytest.approx(expected, abs=5e-9)


@pytest.mark.parametrize(
    ("generator", "h"),
    [
        (kliep, lambda x: x * x.log() - x),
        (lsif, lambda x: x**2),
        (basu, lambda x: (x**1.5 - x) / 0.5),
        (partial(scaled_basu, power=0.5), lambda x: (x**1.5 - x) / 0.5 / 6),
    ],
)
def test_each_is_its_bregman_divergence(generator: Generator, h: Callable[[Tensor], Tensor]) -> None:
    """h'(R) R - h(R) - h'(1 / R) but for a constant."""
    u = torch.linspace(-2, 2, 41, dtype=torch.float64)
    ratio = u.exp()

    def slope(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(h(x).sum(), x)[0]

    expected = slope(ratio) * ratio - h(ratio) - slope(1 / ratio)
    difference = generator(u) - expected
    torch.testing.assert_close(difference, difference[:1].expand(41), rtol=0, atol=1e-12)


@pytest.mark.parametrize("generator", GENERATORS.values(), ids=GENERATORS)
def test_a_wrong_pair_always_costs_more(generator: Generator) -> None:
    """Every one rises in u, even where it is continued; LSIF as released would not."""
    u = torch.linspace(-400, 400, 801, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(generator(u).sum(), u)
    assert (slope >= 0).all() and slope[400] > 0


def test_reductions() -> None:
    chosen, rejected = draw("rr")
    assert torch.equal(bpo(chosen, rejected, generator=logistic), dpo(chosen, rejected))
    near, at = (basu(f64(0.3), power=power) + shift for power, shift in ((1e-7, 1e7 + 1), (0.0, 0.0)))
    assert near.item() == pytest.approx(at.item(), abs=1e-6)
    assert slopes(bpo, 0.0, 0.0) == pytest.approx([-0.05, 0.05], abs=1e-15), "DPO's slope at the start"
    assert math.isclose(bpo(f64(0), f64(0)).item(), 0.25)


TOKENS = (
    ([0.5, -0.2, 1], [-0.3, 0.4], [0.1, 0.2, 0.3], [0, 0.5]),
    ([1, 2], [0, -1], [0, 0], [0, 0]),
    ([0, 0], [0, 0], [0.1, 0.4], [0.3, 0]),
)
"""Token log-ratios of chosen and rejected, and the head's values of both, of three pairs."""


def flat(pairs: Sequence[Sequence[Sequence[float]]]) -> list[Tensor]:
    """The inputs of tbpo_q for these pairs."""
    columns = [[torch.tensor(pair[k], dtype=torch.float64) for pair in pairs] for k in range(4)]
    offsets = [torch.tensor([0, *(len(x) for x in column)]).cumsum(0) for column in columns[:2]]
    return [torch.cat(column) for column in columns] + offsets


def test_golden_tbpo_q() -> None:
    """Together and one by one; the third token of the first chosen answer has no partner and no part."""
    together = tbpo_q(*flat(TOKENS))
    assert together.tolist() == pytest.approx([0.24601556, 0.15570695, 0.25011251], abs=5e-9)
    torch.testing.assert_close(torch.cat([tbpo_q(*flat([pair])) for pair in TOKENS]), together)
    swapped = [(low, high, b, a) for high, low, a, b in TOKENS]
    assert tbpo_q(*flat(swapped)).tolist()[1] == pytest.approx((math.exp(0.1) + 0.1 + math.exp(0.3) + 0.3) / 8)


def test_gradients_of_tbpo_q() -> None:
    """Against finite differences, of log-ratios and of the head; a constant of the head changes nothing."""
    *learnt, chosen_offsets, rejected_offsets = flat(TOKENS)

    def function(*inputs: Tensor) -> Tensor:
        return tbpo_q(*inputs, chosen_offsets, rejected_offsets)

    inputs = [x.requires_grad_() for x in learnt]
    assert torch.autograd.gradcheck(function, inputs)
    slopes = torch.autograd.grad(function(*inputs).sum(), inputs)
    assert slopes[0][2] == 0 and slopes[2][2] == 0 and (slopes[0][[0, 1, 3, 4]] < 0).all()
    torch.testing.assert_close(function(inputs[0], inputs[1], inputs[2] + 3, inputs[3]), function(*inputs))
    empty = torch.zeros(0, dtype=torch.float64)
    assert tbpo_q(empty, empty, empty, empty, torch.zeros(1).long(), torch.zeros(1).long()).shape == (0,)
    huge = [1e4 * x.detach() for x in inputs]
    assert function(*huge).isfinite().all()


def test_tbpo_q_bounds_the_advantage() -> None:
    """Beyond `limit` nats the head has no part in the slope."""
    chosen = torch.tensor([0.0, 30.0], dtype=torch.float64, requires_grad=True)
    none, offsets = torch.zeros(2, dtype=torch.float64), torch.tensor([0, 2])
    (slope,) = torch.autograd.grad(tbpo_q(none, none, chosen, none, offsets, offsets, limit=10.0).sum(), chosen)
    assert slope.tolist() == [0, 0]

"""Losses on pairs that know the answers' lengths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from prospect.losses.paired import (
    dpo,
    dpo_norm,
    ipo,
    ipo_sum,
    ld_dpo,
    rdpo,
)
from tests.helpers.loss_checks import Case, draw, f64, general_properties, slopes

CASES = {
    "ipo": Case(ipo, "rrnn"),
    "ipo_sum": Case(ipo_sum, "rr"),
    "dpo_norm": Case(dpo_norm, "rrnn"),
    "rdpo": Case(rdpo, "rrnn"),
}
GOLDEN = f64(3), f64(-1.5), torch.tensor([10]), torch.tensor([12])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_general_properties(case: Case) -> None:
    general_properties(case)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda c, r, *_: ipo_sum(c, r), 0.25),
        (ipo, 20.930625),
        (partial(dpo_norm, beta=0.1), 0.67212294),
        (partial(rdpo, alpha=0.1), math.log1p(math.exp(-0.25))),
    ],
)
def test_golden_point(loss: Callable[..., Tensor], expected: float) -> None:
    """r_w = 3 over 10 tokens, r_l = -1.5 over 12."""
    assert loss(*GOLDEN).item() == pytest.approx(expected, abs=5e-9)


def test_at_the_reference() -> None:
    lengths = torch.tensor([10]), torch.tensor([12])
    at = [f64(0), f64(0), *lengths]
    assert ipo(*at).item() == pytest.approx(25)
    assert ipo_sum(*at[:2]).item() == pytest.approx(25)
    assert dpo_norm(*at).item() == pytest.approx(math.log(2))
    assert slopes(lambda c, r: ipo(c, r, *lengths), 0.0, 0.0) == pytest.approx([-1, 10 / 12])
    assert slopes(ipo_sum, 0.0, 0.0) == pytest.approx([-10, 10])
    assert slopes(lambda c, r: dpo_norm(c, r, *lengths), 0.0, 0.0) == pytest.approx([-0.25, 2.5 / 12])


def test_one_token_each() -> None:
    c, r = draw("rr")
    one = torch.ones(len(c), dtype=torch.int64)
    assert torch.equal(ipo(c, r, one, one, tau=0.3), ipo_sum(c, r, tau=0.3))
    assert torch.equal(dpo_norm(c, r, one, one, beta=0.1), dpo(c, r))
    assert torch.equal(rdpo(c, r, one, one, alpha=7.0), dpo(c, r))


def test_rdpo_is_what_a_penalty_on_length_gives() -> None:
    """pi* for r* - alpha |y| has beta r = r* - alpha |y| and a constant, so r*'s margin is z + alpha (|w| - |l|)."""
    c, r, n, m = draw("rrnn")
    reward = [0.1 * x + 0.02 * length for x, length in ((c, n), (r, m))]
    torch.testing.assert_close(rdpo(c, r, n, m, alpha=0.02), dpo(*reward, beta=1.0))


LENGTHS = ((3, 5), (4, 4), (6, 1))


def tokens(side: int) -> tuple[Tensor, Tensor]:
    lengths = [pair[side] for pair in LENGTHS]
    g = torch.Generator().manual_seed(side)
    return torch.randn(sum(lengths), generator=g, dtype=torch.float64), torch.tensor([0, *lengths]).cumsum(0)


def test_ld_dpo_by_hand() -> None:
    (up, up_offsets), (down, down_offsets) = tokens(0), tokens(1)
    expected = []
    for k, (n, m) in enumerate(LENGTHS):
        sides = (up[up_offsets[k] :][:n].tolist(), down[down_offsets[k] :][:m].tolist())
        a, b = (sum(x if t < min(n, m) else 0.3 * x for t, x in enumerate(side)) for side in sides)
        expected.append(math.log1p(math.exp(-0.7 * (a - b))))
    got = ld_dpo(up, down, up_offsets, down_offsets, beta=0.7, alpha=0.3)
    assert got.tolist() == pytest.approx(expected, rel=1e-13)


def test_ld_dpo_with_alpha_one_is_dpo() -> None:
    (up, up_offsets), (down, down_offsets) = tokens(0), tokens(1)
    sums = [
        torch.stack([x[a:b].sum() for a, b in itertools.pairwise(o)])
        for x, o in ((up, up_offsets), (down, down_offsets))
    ]
    torch.testing.assert_close(ld_dpo(up, down, up_offsets, down_offsets, alpha=1.0), dpo(*sums))


def test_ld_dpo_gradient() -> None:
    (up, up_offsets), (down, down_offsets) = tokens(0), tokens(1)
    inputs = (up.requires_grad_(), down.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: ld_dpo(a, b, up_offsets, down_offsets, beta=0.5), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ld_dpo_extremes_and_nothing(dtype: torch.dtype) -> None:
    offsets = torch.tensor([0, 2, 4])
    r = torch.tensor([1e4, -1e4, 1e4, 1e4], dtype=dtype, requires_grad=True)
    loss = ld_dpo(r, -r, offsets, offsets)
    assert loss.isfinite().all() and loss.dtype == dtype
    assert torch.autograd.grad(loss.sum(), r)[0].isfinite().all()
    none, start = torch.zeros(0, dtype=dtype), torch.zeros(1, dtype=torch.int64)
    empty = ld_dpo(none, none, start, start)
    assert empty.shape == (0,) and empty.dtype == dtype


def test_ld_dpo_pairs_are_alone() -> None:
    (up, up_offsets), (down, down_offsets) = tokens(0), tokens(1)
    whole = ld_dpo(up, down, up_offsets, down_offsets)
    last = ld_dpo(up[7:], down[9:], up_offsets[2:] - 7, down_offsets[2:] - 9)
    torch.testing.assert_close(last, whole[2:])

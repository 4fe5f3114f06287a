"""The value functions: shape, slope at the reference point, accuracy where they saturate."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from prospect.losses.unpaired import Value, _lost, hinge, identity, logistic, logsigmoid, power
from tests.helpers.loss_checks import f64, slopes

VALUES: dict[str, Value] = {
    "logistic": logistic,
    "logsigmoid": logsigmoid,
    "identity": identity,
    "hinge": hinge,
    "power": power,
    "power, straight": partial(power, alpha=0.5, loss_aversion=1.0, floor=0.1),
}
each = pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)


@pytest.mark.parametrize(
    ("value", "at_0", "slope"),
    [
        (logistic, 0.5, 0.25),
        (logsigmoid, -math.log(2), 0.5),
        (identity, 0, 1),
        (hinge, 0, 1),
        (power, 0, 0.88 * 0.01**-0.12),
    ],
)
def test_at_the_reference_point(value: Value, at_0: float, slope: float) -> None:
    assert value(f64(0)).item() == pytest.approx(at_0, abs=1e-15)
    assert slopes(value, 0.0) == pytest.approx([slope])


@each
def test_gradient(value: Value) -> None:
    u = f64(-7, -2.3, -0.4, 0.3, 0.9, 1.4, 8).requires_grad_()
    assert torch.autograd.gradcheck(value, u)


@each
def test_never_decreasing_and_concave_in_gains(value: Value) -> None:
    """Definition 3.4 of the KTO paper."""
    u = torch.linspace(-30, 30, 601, dtype=torch.float64)
    v = value(u)
    assert (v.diff() >= 0).all()
    assert (v[u >= 0].diff().diff() <= 1e-14).all()


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes(value: Value, dtype: torch.dtype) -> None:
    u = torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4], dtype=dtype, requires_grad=True)
    v = value(u)
    assert v.dtype == dtype and v.isfinite().all()
    assert torch.autograd.grad(v.sum(), u)[0].isfinite().all()


@each
def test_lost_is_one_minus_value(value: Value) -> None:
    u = f64(-9, -1, 0, 0.5, 9)
    torch.testing.assert_close(_lost(value, u), 1 - value(u), rtol=0, atol=1e-15)


def test_lost_keeps_its_digits() -> None:
    assert _lost(logistic, f64(50)).item() == pytest.approx(math.exp(-50), rel=1e-12)


def test_power_is_tversky_and_kahnemans() -> None:
    """Away from the floor: x^0.88, and losses 2.25 times as heavy."""
    for x in (3.0, 50.0):
        gain, loss = power(f64(x, -x), floor=1e-9).tolist()
        assert gain == pytest.approx(x**0.88, rel=1e-6)
        assert loss == pytest.approx(-2.25 * gain, rel=1e-12)


def test_hinge_stops_at_one() -> None:
    assert hinge(f64(-2, 0.5, 3)).tolist() == [-2, 0.5, 1]

"""Elementary functions in the form that keeps their digits and their finiteness."""

from __future__ import annotations

import math

import torch
from torch import Tensor

EXPONENT = 30.0
"""Where exponentials are continued by their tangent. e^30 is 1e13, whose square is still a float32, so the norm of a
gradient stays finite."""


def exp(u: Tensor) -> Tensor:
    """e^u up to u = 30, from there on its tangent: value and gradient are continuous, convex and finite."""
    bounded = u.clamp(max=EXPONENT)
    return torch.exp(bounded) * (1 + (u - bounded))


def expm1(u: Tensor) -> Tensor:
    """e^u - 1 without cancellation near 0, continued by its tangent from u = 30 on, as `exp` is."""
    bounded = u.clamp(max=EXPONENT)
    return torch.expm1(bounded) + torch.exp(bounded) * (u - bounded)


def log1mexp(a: Tensor) -> Tensor:
    """log(1 - e^a) for a < 0, without cancellation on either side of -log 2; -inf at a = 0."""
    half = -math.log(2)
    # Each branch sees only its own half of the axis: where() would multiply the other's infinite slope by 0.
    near = torch.log(-torch.expm1(a.clamp(min=half)))
    far = torch.log1p(-torch.exp(a.clamp(max=half)))
    return torch.where(a > half, near, far)

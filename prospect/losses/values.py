"""Value functions of KTO: what an outcome u = +-beta * (r - z0) is worth to a person. (N,) -> (N,), unreduced.

All are non-decreasing, 0 or 1/2 or log(1/2) at the reference point, and concave in gains.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

Value = Callable[[Tensor], Tensor]


def logistic(u: Tensor) -> Tensor:
    """sigmoid(u), as published: arXiv 2402.01306 Eq. 8. Concave in gains, convex in losses, saturating in both.

    Use: the default; answers far from the reference point on either side no longer move the policy.
    """
    return torch.sigmoid(u)


def logsigmoid(u: Tensor) -> Tensor:
    """log sigmoid(u), the "concave" ablation of arXiv 2402.01306: concave everywhere, so losses are never forgiven.

    Gradient: tends to 1 in losses where the logistic's tends to 0, as DPO's does; mislabelled answers keep pulling.
    """
    return F.logsigmoid(u)


def identity(u: Tensor) -> Tensor:
    """u itself, the "risk-neutral" ablation of arXiv 2402.01306: no saturation at all.

    Use: ablations only. The loss has no lower bound, and the paper finds it to ruin the model (BBH 6.1 against 52.6).
    """
    return u


def hinge(u: Tensor) -> Tensor:
    """min(u, 1): gains count up to 1 and no further; losses count in full.

    Choice: not in the paper. It is the value function whose loss max(0, 1 - u) is the hinge loss.
    """
    return u.clamp(max=1)


def power(u: Tensor, *, alpha: float = 0.88, loss_aversion: float = 2.25, floor: float = 1e-2) -> Tensor:
    """Tversky and Kahneman's value function of 1992: f(u) in gains, -loss_aversion * f(-u) in losses, with

        f(x) = (x + floor)^alpha - floor^alpha

    Source: Eq. 4 of arXiv 2402.01306, with the median fits alpha 0.88 and loss aversion 2.25.
    Choice: the published f(x) = x^alpha has an infinite slope at the reference point, where training starts. `floor`
    makes the slope alpha * floor^(alpha - 1), 1.53 by default.
    """
    gain = u >= 0
    # where() rather than abs(): the slope of abs at 0 is 0, and nothing would be learnt from an untrained policy.
    size = torch.where(gain, u, -u)
    felt = (size + floor) ** alpha - floor**alpha
    return torch.where(gain, felt, -loss_aversion * felt)


def lost(value: Value, u: Tensor) -> Tensor:
    """1 - value(u); the logistic's as sigmoid(-u), which keeps its digits where the loss saturates."""
    return torch.sigmoid(-u) if value is logistic else 1 - value(u)

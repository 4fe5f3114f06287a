"""What an argument of a loss can be: the value functions of KTO and the divergences of f-DPO. (N,) -> (N,), unreduced.

A value function says what an outcome u = +-beta * (r - z0) is worth to a person. All are non-decreasing, 0 or 1/2 or
log(1/2) at the reference point, and concave in gains.

A divergence other than the reverse KL, which ties the policy to its reference, has a score s(r) in the place of the
log-ratio r in nats: f'(e^r) up to a constant, which cancels in the pair. All are increasing. Source: arXiv 2309.16240.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from prospect.losses import numerics
from prospect.losses.registry import choice

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Value: TypeAlias = "Callable[[Tensor], Tensor]"
Divergence: TypeAlias = Value


@choice("value")
def logistic(u: Tensor) -> Tensor:
    """sigmoid(u), as published: arXiv 2402.01306 Eq. 8. Concave in gains, convex in losses, saturating in both.

    Use: the default; answers far from the reference point on either side no longer move the policy.
    """
    return u.sigmoid()


@choice("value")
def logsigmoid(u: Tensor) -> Tensor:
    """log sigmoid(u), the "concave" ablation of arXiv 2402.01306: concave everywhere, so losses are never forgiven.

    Gradient: tends to 1 in losses where the logistic's tends to 0, as DPO's does; mislabelled answers keep pulling.
    """
    return numerics.logsigmoid(u)


@choice("value")
def identity(u: Tensor) -> Tensor:
    """u itself, the "risk-neutral" ablation of arXiv 2402.01306: no saturation at all.

    Use: ablations only. The loss has no lower bound, and the paper finds it to ruin the model (BBH 6.1 against 52.6).
    """
    return u


@choice("value")
def hinge(u: Tensor) -> Tensor:
    """min(u, 1): gains count up to 1 and no further; losses count in full.

    Choice: not in the paper. It is the value function whose loss max(0, 1 - u) is the hinge loss.
    """
    return u.clamp(max=1)


@choice("value")
def power(u: Tensor, *, alpha: float = 0.88, loss_aversion: float = 2.25, floor: float = 1e-2) -> Tensor:
    """Tversky and Kahneman's value function of 1992: f(u) in gains, -loss_aversion * f(-u) in losses, with

        f(x) = (x + floor)^alpha - floor^alpha

    Source: Eq. 4 of arXiv 2402.01306, with the median fits alpha 0.88 and loss aversion 2.25.
    Choice: the published f(x) = x^alpha has an infinite slope at the reference point, where training starts. `floor`
    makes the slope alpha * floor^(alpha - 1), 1.53 by default.
    """
    gain = u >= 0
    # where() rather than abs(): the slope of abs at 0 is 0, and nothing would be learnt from an untrained policy.
    size = u.where(gain, -u)
    felt: Tensor = (size + floor) ** alpha - floor**alpha
    return felt.where(gain, -loss_aversion * felt)


def lost(value: Value, u: Tensor) -> Tensor:
    """1 - value(u); the logistic's as sigmoid(-u), which keeps its digits where the loss saturates."""
    return (-u).sigmoid() if value is logistic else 1 - value(u)


@choice("divergence")
def reverse_kl(r: Tensor) -> Tensor:
    """r: the reverse KL divergence KL(pi || pi_ref), and with it DPO itself."""
    return r


@choice("divergence")
def forward_kl(r: Tensor) -> Tensor:
    """-e^(-r): the forward KL divergence KL(pi_ref || pi), which forbids the policy to drop what the reference says.

    Choice: e^(-r) overflows by its nature: r is a sum over tokens, and -100 nats are not rare. Below r = -30 it is
    continued by its tangent, so the loss keeps rising and its slope stays at beta * e^30.
    """
    return -numerics.exp(-r)


@choice("divergence")
def jensen_shannon(r: Tensor) -> Tensor:
    """log sigmoid(r): the Jensen-Shannon divergence. Linear for unlikely answers, flat for likely ones."""
    return numerics.logsigmoid(r)


@choice("divergence")
def alpha_divergence(r: Tensor, *, alpha: float = 0.5) -> Tensor:
    """(e^((alpha - 1) * r) - 1) / (alpha - 1): between the forward KL (alpha = 0) and the reverse KL (alpha = 1, where
    it is r).

    Choice: alpha is TRL's, as is its default: 1 minus the paper's, whose score is (1 - e^(-alpha * r)) / alpha. The two
    agree at 0.5. TRL's score differs by a constant, which cancels. Exponents above 30 are continued by their tangent.
    """
    return r if alpha == 1 else numerics.expm1((alpha - 1) * r) / (alpha - 1)

"""The scores s(r) of f-DPO: what takes the place of the log-ratio where another divergence than the reverse KL ties the
policy to its reference. r in nats; s is f'(e^r) up to a constant, which cancels in the pair.

Source: arXiv 2309.16240. (N,) -> (N,), increasing.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from prospect.losses.numerics import exp, expm1

Divergence = Callable[[Tensor], Tensor]


def reverse_kl(r: Tensor) -> Tensor:
    """r: the reverse KL divergence KL(pi || pi_ref), and with it DPO itself."""
    return r


def forward_kl(r: Tensor) -> Tensor:
    """-e^(-r): the forward KL divergence KL(pi_ref || pi), which forbids the policy to drop what the reference says.

    Choice: e^(-r) overflows by its nature: r is a sum over tokens, and -100 nats are not rare. Below r = -30 it is
    continued by its tangent, so the loss keeps rising and its slope stays at beta * e^30.
    """
    return -exp(-r)


def jensen_shannon(r: Tensor) -> Tensor:
    """log sigmoid(r): the Jensen-Shannon divergence. Linear for unlikely answers, flat for likely ones."""
    return F.logsigmoid(r)


def alpha_divergence(r: Tensor, *, alpha: float = 0.5) -> Tensor:
    """(e^((alpha - 1) * r) - 1) / (alpha - 1): between the forward KL (alpha = 0) and the reverse KL (alpha = 1, where
    it is r).

    Choice: alpha is TRL's, as is its default: 1 minus the paper's, whose score is (1 - e^(-alpha * r)) / alpha. The two
    agree at 0.5. TRL's score differs by a constant, which cancels. Exponents above 30 are continued by their tangent.
    """
    return r if alpha == 1 else expm1((alpha - 1) * r) / (alpha - 1)

"""Losses on single completions with a thumb. N completions; log-ratios in nats; every result is (N,), unreduced."""

from __future__ import annotations

import torch
from torch import Tensor


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    z0: Tensor,
    *,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """KTO: lambda_y - v(x, y), the human value of each answer lost against the best one.

    `log_ratio` (N,) is r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion; `desirable` (N,) bool;
    `z0` a scalar or (N,) in nats, the reference point, expected without gradient. With lambda the weight of the class:

        desirable    lambda_D * (1 - sigmoid(beta * (r - z0)))
        undesirable  lambda_U * (1 - sigmoid(beta * (z0 - r)))

    Source: arXiv 2402.01306 (v4) Eq. 8; the gradient is its Eq. 10. 1 - sigmoid(u) is computed as sigmoid(-u), which
    keeps its digits where the loss saturates.
    """
    gain = torch.where(desirable, log_ratio - z0, z0 - log_ratio)
    return class_weight(desirable, log_ratio, desirable_weight, undesirable_weight) * torch.sigmoid(-beta * gain)


def class_weight(desirable: Tensor, like: Tensor, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """lambda_D or lambda_U per completion, (N,) in the dtype of `like`."""
    return torch.where(desirable, like.new_tensor(desirable_weight), like.new_tensor(undesirable_weight))

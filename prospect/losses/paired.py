"""Losses on pairs of answers to one prompt. P pairs; log-ratios in nats; every result is (P,), unreduced."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import softplus


def dpo(chosen: Tensor, rejected: Tensor, *, beta: float = 0.1) -> Tensor:
    """DPO: -log sigmoid(beta * (r_chosen - r_rejected)).

    `chosen`, `rejected` (P,) are the log-ratios r = log pi(y|x) - log pi_ref(y|x) in nats, summed over the completion.
    Source: arXiv 2305.18290 Eq. 7 (Eq. 3 in the KTO paper). -log sigmoid(u) is softplus(-u): finite for every u.
    """
    return softplus(-beta * (chosen - rejected))

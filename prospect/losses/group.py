"""Losses on groups: all scored answers to one prompt, compared with each other.

N answers of G groups stand one behind the other; group k's are `group[k] : group[k + 1]`. Log-probs in nats; a result
is (G,), unreduced, unless a loss says otherwise. The order of a group's answers never matters.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prospect.feedback.records import EQUAL
from prospect.losses.numerics import segment_index, segment_log_softmax, segment_mean, segment_sum
from prospect.losses.registry import loss

if TYPE_CHECKING:
    from torch import Tensor


@loss("groups", "Target Policy Optimization: imitate the old policy, tilted by standardised scores", "arXiv 2604.06159")
def tpo(logp: Tensor, old_logp: Tensor, score: Tensor, group: Tensor, *, eta: float = 1.0) -> Tensor:
    """TPO: -sum q log p in each group, (G,), with p = softmax(log pi) and q = softmax(log pi_old + u / eta).

    `logp` (N,) log pi(y|x) in nats, summed over the answer; `old_logp` (N,) the same of the policy that gave the
    answers; `score` (N,) on any scale; u is the score less its group's mean, over the group's standard deviation (of
    the population); 0 where the scores are equal. q carries no gradient. The softmax is over the group's answers.
    Source: arXiv 2604.06159 and the authors' code.

    Gradient: p - q by log pi: it ends once the group's probabilities are those of the target, and leaves their sum
    alone. Without spread of scores q is the old policy, and the loss holds the policy there.

    Use: 8 to 16 answers to a prompt. A smaller eta asks for more.
    """
    index = segment_index(group, logp)
    centred = score - segment_mean(score, group)[index]
    deviation = segment_mean(centred**2, group).sqrt()
    standardised = centred / deviation.where(deviation > EQUAL, 1)[index]
    target = segment_log_softmax(old_logp + standardised / eta, group).exp().detach()
    return -segment_sum(target * segment_log_softmax(logp, group), group)

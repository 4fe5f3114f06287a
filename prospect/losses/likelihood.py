"""Losses that read the policy's own likelihood. T completion tokens; log-probabilities in nats."""

from __future__ import annotations

from torch import Tensor


def sft(token_logp: Tensor) -> Tensor:
    """Supervised fine-tuning: the negative log-likelihood of each completion token, (T,) -> (T,).

    Its unit is the token: the objective divides by the completion tokens of the whole optimizer step, so long answers
    weigh more than short ones, as in ordinary language-model training.
    """
    return -token_logp

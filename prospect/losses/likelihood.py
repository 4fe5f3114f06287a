"""Losses that read the policy's own likelihood. T completion tokens; log-probabilities in nats; results are (T,)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from prospect.losses.numerics import log1mexp
from prospect.losses.registry import Term, loss

if TYPE_CHECKING:
    from torch import Tensor

CERTAIN = 1e-5
"""The least 1 - p that unlikelihood looks at."""


@loss(
    "binary",
    "Conditional SFT: imitate all answers behind a token that says how they were judged",
    "arXiv 2302.08582",
    name="csft",
    unit="tokens",
    learning_rate=1e-5,
    control_tokens=True,
)
@loss(
    "text", "Supervised fine-tuning on the answers nobody disliked", unit="tokens", rows="desirable", learning_rate=1e-5
)
def sft(token_logp: Tensor) -> Tensor:
    """Supervised fine-tuning: the negative log-likelihood of each completion token, (T,) -> (T,).

    Its unit is the token: the objective divides by the completion tokens of the whole optimizer step, so long answers
    weigh more than short ones, as in ordinary language-model training.

    Gradient: -1 for every token's log-prob, for ever.

    Use: before alignment, on good answers; small models need it.
    """
    return -token_logp


IMITATE = Term(sft, "tokens", ("token_logp",), rows="desirable")
"""The likelihood of the good answers as a term beside another."""


def nll(token_logp: Tensor, *, nll_weight: float = 1.0) -> Tensor:
    """Negative log-likelihood of each token, as a second term beside a preference: -nll_weight * log p, (T,) -> (T,).

    Source: the regulariser of CPO (arXiv 2401.08417), ORPO (2403.07691) and iterative RPO (2404.19733).

    Gradient: -nll_weight for every token's log-prob. It keeps a preference term from buying its margin with the good
    answer's likelihood.

    Choice: the mean is over all chosen tokens of the step, so long answers weigh more. Iterative RPO (the row `rpo`)
    and OpenRLHF take the mean of each answer first.
    """
    return -nll_weight * token_logp


NLL = Term(nll, "tokens", ("token_logp",), rows="desirable")
"""The same with a weight."""


@loss(
    "binary",
    "Imitate the good, make the bad unlikely token by token",
    "arXiv 1908.04319",
    unit="tokens",
    rows="undesirable",
    learning_rate=1e-5,
    beside=(IMITATE,),
)
def unlikelihood(token_logp: Tensor) -> Tensor:
    """Unlikelihood training: -log(1 - p) of each token of an unwanted answer, (T,) -> (T,).

    Source: arXiv 1908.04319, whose token-level loss takes words already said as unwanted; here they are the words of
    undesirable answers.

    Gradient: p / (1 - p): strong on tokens the policy is sure of, nothing on those it would hardly say.

    Use: a baseline for undesirable answers. It also unlearns the grammar they share with good ones, so it wants a
    likelihood term on good answers beside it.

    Choice: 1 - p is floored at 1e-5, which bounds the loss at 11.5 nats and leaves tokens above p = 0.99999 without
    gradient.
    """
    # Floored on the log-prob: a floor on 1 - p would come after its slope is already infinite.
    return -log1mexp(token_logp.clamp(max=math.log1p(-CERTAIN)))

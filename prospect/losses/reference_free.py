"""Losses on pairs without a reference model. P pairs; log-probs in nats; every result is (P,), unreduced.

`chosen_logp`, `rejected_logp` (P,) are L = log pi(y|x), summed over the completion, and `chosen_length`,
`rejected_length` (P,) its tokens; a = L / |y| is the mean log-prob of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prospect.losses.likelihood import NLL
from prospect.losses.numerics import expm1, log_odds, softplus
from prospect.losses.registry import loss

if TYPE_CHECKING:
    from torch import Tensor


@loss("pairs", "Sequence likelihood calibration", "arXiv 2305.10425", learning_rate=5e-7)
def slic(chosen_logp: Tensor, rejected_logp: Tensor, *, delta: float = 1.0, regularization: float = 0.1) -> Tensor:
    """SLiC-HF: max(0, delta - L_chosen + L_rejected) - regularization * L_chosen.

    `chosen_logp`, `rejected_logp` (P,) in nats, summed.
    Source: arXiv 2305.10425.

    Gradient: -+ 1 until the chosen answer is delta nats more likely, then 0, plus the likelihood of the chosen answer
    at all times.

    Choice: the regulariser is on the chosen answer, where the paper has the target of supervised fine-tuning.
    """
    return (delta - chosen_logp + rejected_logp).clamp(min=0) - regularization * chosen_logp


@loss("pairs", "Contrastive Preference Optimization", "arXiv 2401.08417", learning_rate=5e-7, beside=(NLL,))
def cpo(chosen_logp: Tensor, rejected_logp: Tensor, *, beta: float = 0.1) -> Tensor:
    """CPO, its preference term: -log sigmoid(beta * (L_chosen - L_rejected)).

    `chosen_logp`, `rejected_logp` (P,) in nats, summed. The negative log-likelihood of the chosen answer is a second
    term, over tokens.
    Source: arXiv 2401.08417: DPO with a uniform reference.

    Gradient: DPO's, but it starts from the policy's own opinion: a pair that the policy already ranks right by far is
    hardly touched, and one it ranks wrong gets the full beta.

    Use: where a reference pass is too dear; the likelihood term holds the policy in its place.
    """
    return softplus(-beta * (chosen_logp - rejected_logp))


@loss("pairs", "Simple Preference Optimization", "arXiv 2405.14734", learning_rate=5e-7)
def simpo(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
) -> Tensor:
    """SimPO: -log sigmoid(beta * (a_chosen - a_rejected) - gamma), a the mean log-prob of a token.

    `chosen_logp`, `rejected_logp` (P,) in nats, summed; `chosen_length`, `rejected_length` (P,) tokens.
    Source: arXiv 2405.14734.

    Gradient: -+ beta / length * sigmoid(-(beta * (a_chosen - a_rejected) - gamma)): the same for a short answer's mean
    as for a long one's.

    Use: one epoch at a small learning rate; nothing but the learning rate ties the policy to where it began.

    Choice: beta 2 and gamma / beta 0.25 are the defaults of the authors' code. They recommend to start at gamma / beta
    0.5 and to search from 0 to 1; their published models have 0.1 to 0.8 at beta 2 to 2.5. TRL, Liger and axolotl have
    beta 0.1 with gamma 0.5, a margin of 5 nats per token, and add a likelihood term of weight 1; HALOs has beta 10 and
    gamma / beta 0.3.
    """
    margin = chosen_logp / chosen_length - rejected_logp / rejected_length
    return softplus(gamma - beta * margin)


@loss("pairs", "SimPO with a bent reward", "arXiv 2501.03884", learning_rate=5e-7)
def alphapo(
    chosen_logp: Tensor,
    rejected_logp: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    *,
    beta: float = 2.0,
    gamma: float = 0.5,
    alpha: float = 0.25,
) -> Tensor:
    """AlphaPO: SimPO with the reward (1 - e^(-alpha * a)) / alpha in place of a, the mean log-prob of a token.

    `chosen_logp`, `rejected_logp` (P,) in nats, summed; `chosen_length`, `rejected_length` (P,) tokens.
    Source: arXiv 2501.03884.

    Gradient: SimPO's times e^(-alpha * a): unlikely answers move more for alpha > 0, less for alpha < 0. As alpha -> 0
    it is SimPO.

    Choice: computed by expm1, which keeps its digits for small alpha; exponents above 30 are continued by their
    tangent. TRL's alpha is 0.
    """
    up, down = (_alpha_reward(a, alpha) for a in (chosen_logp / chosen_length, rejected_logp / rejected_length))
    return softplus(gamma - beta * (up - down))


@loss("pairs", "Odds-ratio Preference Optimization", "arXiv 2403.07691", learning_rate=5e-6, beside=(NLL,))
def orpo(
    chosen_logp: Tensor, rejected_logp: Tensor, chosen_length: Tensor, rejected_length: Tensor, *, beta: float = 0.1
) -> Tensor:
    """ORPO, its odds-ratio term: -beta * log sigmoid(o_chosen - o_rejected), o = a - log(1 - e^a) the log-odds.

    `chosen_logp`, `rejected_logp` (P,) in nats, summed; `chosen_length`, `rejected_length` (P,) tokens; a is the mean
    log-prob of a token. The negative log-likelihood of the chosen answer is a second term, over tokens, with weight 1.
    Source: arXiv 2403.07691, where beta is lambda.

    Gradient: beta * sigmoid(o_rejected - o_chosen) / (1 - e^a) / length: it grows where the policy is certain.

    Use: alignment and supervised fine-tuning in one, from a base model.

    Choice: 1 - e^a without cancellation, and a at most one rounding step below 0, so that a certain answer has finite
    odds. The likelihood term reads the completion; the authors' code reads the prompt as well unless told otherwise.
    """
    up, down = (log_odds(a) for a in (chosen_logp / chosen_length, rejected_logp / rejected_length))
    return beta * softplus(down - up)


def _alpha_reward(a: Tensor, alpha: float) -> Tensor:
    return a if alpha == 0 else -expm1(-alpha * a) / alpha

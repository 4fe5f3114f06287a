"""Losses on pairs that read scores, and the distances of `reward_aware`. P pairs; log-ratios in nats, summed over the
completion; every result is (P,), unreduced. z is beta * (r_chosen - r_rejected)."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from prospect.losses.numerics import logsigmoid, softplus
from prospect.losses.registry import choice, loss

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

Distance: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"


@loss(
    "pairs",
    "DPO with an offset from the scores",
    "arXiv 2402.10571",
    learning_rate=5e-7,
    halo=True,
    positive_margin=True,
)
def odpo(chosen: Tensor, rejected: Tensor, margin: Tensor, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """DPO with an offset: -log sigmoid(z - alpha * log margin), z = beta * (r_chosen - r_rejected).

    `chosen`, `rejected` (P,) log-ratios in nats; `margin` (P,) > 0, the chosen answer's score minus the rejected one's.
    Source: arXiv 2402.10571.

    Gradient: DPO's, as if the pair began alpha * log margin behind: pairs far apart in score must be apart in
    likelihood too, pairs with a margin below 1 less than DPO asks. A margin of 0 gives no loss.

    Use: pairs that come with scores.

    Choice: the logarithm is the default in the authors' code. For an offset linear in the scores see `margin_dpo`.
    """
    return softplus(alpha * margin.log().to(chosen.dtype) - beta * (chosen - rejected))


@loss("pairs", "DPO with a margin linear in the scores", "arXiv 2307.09288", learning_rate=5e-7, halo=True)
def margin_dpo(chosen: Tensor, rejected: Tensor, margin: Tensor, *, beta: float = 0.1, alpha: float = 1.0) -> Tensor:
    """DPO with a linear margin: -log sigmoid(z - alpha * margin), z = beta * (r_chosen - r_rejected).

    `chosen`, `rejected` (P,) log-ratios in nats; `margin` (P,), the chosen answer's score minus the rejected one's.
    Source: the margin of Llama 2's reward model (arXiv 2307.09288), applied to DPO; arXiv 2402.10571 without its
    logarithm.

    Gradient: DPO's, as if the pair began alpha * margin behind. At margin 0 it is DPO.

    Use: pairs that come with scores on a scale of a few units.
    """
    return softplus(alpha * margin.to(chosen.dtype) - beta * (chosen - rejected))


@choice("distance")
def backward_kl(z: Tensor, goal: Tensor) -> Tensor:
    """KL between two coins, the goal's from the policy's: sigmoid(goal) and sigmoid(z) are their shares of heads, (P,).

    Gradient: sigmoid(z) - sigmoid(goal), as in cross-entropy.
    """
    up = goal.sigmoid() * (logsigmoid(goal) - logsigmoid(z))
    return up + (-goal).sigmoid() * (logsigmoid(-goal) - logsigmoid(-z))


@choice("distance")
def forward_kl(z: Tensor, goal: Tensor) -> Tensor:
    """The same KL with the two exchanged, (P,): a pair far on either side is given up."""
    return backward_kl(goal, z)


@choice("distance")
def squared(z: Tensor, goal: Tensor) -> Tensor:
    """(z - goal)^2, (P,)."""
    return (z - goal) ** 2


@loss("pairs", "Reward-aware preference optimization (Nemotron-4)", "arXiv 2406.11704", learning_rate=5e-7)
def reward_aware(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor,
    *,
    beta: float = 0.1,
    reward_scale: float = 1.0,
    distance: Distance = backward_kl,
) -> Tensor:
    """Reward-aware PO: distance(z, g) of the implied margin z from g = reward_scale * (score_chosen - score_rejected).

        backward_kl  sigmoid(g) * log(sigmoid(g) / sigmoid(z)) + sigmoid(-g) * log(sigmoid(-g) / sigmoid(-z))
        forward_kl   the same with g and z exchanged
        squared      (z - g)^2

    `chosen`, `rejected` (P,) log-ratios in nats; `margin` (P,) is the difference of the scores.
    Source: arXiv 2406.11704. Strength: B, NVIDIA's NeMo-Aligner.

    Gradient: with the backward KL -+ beta * (sigmoid(z) - sigmoid(g)): DPO's as g grows, but zero at z = g, so that a
    pair of answers almost as good is not driven apart.

    Use: pairs scored by a reward model whose scale means log-odds. Iterative RPO (`rpo`) is another method.
    """
    return distance(beta * (chosen - rejected), reward_scale * margin.to(chosen.dtype))


@loss("pairs", "Self-Play Preference Optimization with win rates", "arXiv 2405.00675, Eq. 4.7", learning_rate=5e-7)
def sppo(
    chosen: Tensor,
    rejected: Tensor,
    chosen_win_rate: Tensor,
    rejected_win_rate: Tensor,
    *,
    beta: float = 0.001,
) -> Tensor:
    """SPPO: (r_chosen - (P_chosen - 1/2) / beta)^2 + (r_rejected - (P_rejected - 1/2) / beta)^2.

    `chosen`, `rejected` (P,) log-ratios in nats; the win rates (P,) from 0 to 1 are how often a judge prefers that
    answer to the other answers sampled for the prompt.
    Source: arXiv 2405.00675 Eq. 4.7. Strength: A, the authors' code.

    Gradient: linear in the distance from the target (P - 1/2) / beta; an answer that wins half its comparisons stays
    where the reference has it.

    Use: rounds of self-play: the best and the worst of five samples, the reference of a round the model it began with.

    Choice: beta 0.001 is the authors': a win rate of 0.8 has its target 300 nats from the reference, and gradients are
    as large. `sppo_hard` has the win rates 1 and 0, and TRL's beta.
    """
    up = (chosen_win_rate.to(chosen.dtype) - 0.5) / beta
    down = (rejected_win_rate.to(rejected.dtype) - 0.5) / beta
    return (chosen - up) ** 2 + (rejected - down) ** 2

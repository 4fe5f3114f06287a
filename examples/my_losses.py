"""A loss, a reference point and a value function of one's own, for the command line:

prospect train --model M --data thumbs.jsonl --out runs/mine --loss examples/my_losses.py:exponential --loss.beta 0.2
prospect train ... --loss kto --reference-point examples/my_losses.py:median_of_partners
prospect train ... --loss kto --loss.value examples/my_losses.py:cautious
"""

import torch
from torch import Tensor

import prospect


@prospect.loss(view="binary", reads=("log_ratio", "desirable"))
def exponential(log_ratio: Tensor, desirable: Tensor, *, beta: float = 0.1) -> Tensor:
    """exp(-beta r) for desirable answers, exp(beta r) for undesirable ones, as AdaBoost would have it."""
    return torch.where(desirable, -beta * log_ratio, beta * log_ratio).exp()


@prospect.reference_point(averages="partners")
def median_of_partners(step: prospect.Statistics, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The median instead of the mean of the mismatched log-ratios: one strange partner does not move it."""
    return step.values.median() if len(step.values) else step.mean, state


def cautious(u: Tensor, *, steepness: float = 2.0) -> Tensor:
    """A logistic value that saturates `steepness` times sooner; --loss.steepness sets it."""
    return torch.sigmoid(steepness * u)

"""Estimators of KTO's reference point z0, the reward level that an answer has to beat.

An estimator is (Statistics of the step, state) -> (z0, state). z0 is a scalar or one number per completion, in nats,
and never carries gradient: the paper's theorem 4.3 holds for the detached reference point only. `state` is any tensor
or None; the loop keeps it and checkpoints it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an estimator may look at: sums over the whole optimizer step, all micro-batches and ranks together.

    `total`, `squares`, `count`: sum of r, sum of r*r, and number of the partner rows (x_i, y_j) of the step, with
    r = log pi(y_j|x_i) - log pi_ref(y_j|x_i) in nats. All are float64 scalars on the CPU.
    """

    total: Tensor
    squares: Tensor
    count: Tensor

    @property
    def mean(self) -> Tensor:
        """The raw, unclamped mean of r over the partner rows; 0 where there are none."""
        return self.total / self.count.clamp(min=1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of `mean` from the sample variance; NaN below two rows."""
        spread = (self.squares - self.count * self.mean**2).clamp(min=0)
        return (
            torch.sqrt(spread / (self.count - 1) / self.count)
            if self.count > 1
            else torch.full_like(self.mean, torch.nan)
        )


def mismatched(step: Statistics, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """max(0, mean r of mismatched pairs): arXiv 2402.01306 section 4.1, over the whole optimizer step."""
    return step.mean.clamp(min=0), state


def unclamped(step: Statistics, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The same mean without the clamp: unbiased for what it averages, but negative once the policy has moved."""
    return step.mean, state


def zero(step: Statistics, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """z0 = 0, no partner pass: right after SFT on the same data (paper 4.1); KTO is then APO-zero (unpaired)."""
    return torch.zeros_like(step.mean), state

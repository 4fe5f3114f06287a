"""Estimators of KTO's reference point z0, the reward level that an answer has to beat.

An estimator is (Statistics of the step, state) -> (z0, state). z0 is a scalar, or one number per answer of the step, in
nats. It is a function of the values alone, so that a gradient may flow through it where the user asks for one; by
default none does: the paper's theorem 4.3 holds for the detached reference point only. `state` is any tensor or None;
the loop keeps it and checkpoints it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """What an estimator may look at: the whole optimizer step, all micro-batches and ranks together.

    `values` (M,) float64, on the run's device: what the estimator averages, such as r = log pi(y_j|x_i) - log
    pi_ref(y_j|x_i) in nats of the partner rows (x_i, y_j), or of the step's own answers (of pairs: chosen and
    rejected). `desirable` (M,) bool is the answers' thumb, `prompt` (M,) int64 the same number, below M, for the
    same prompt of this step; another step numbers anew.
    """

    values: Tensor
    desirable: Tensor
    prompt: Tensor

    @property
    def mean(self) -> Tensor:
        """The raw, unclamped mean; 0 where there are no values."""
        return self.values.sum() / max(len(self.values), 1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of `mean` from the sample variance; NaN below two values."""
        return (
            self.values.detach().std() / len(self.values) ** 0.5
            if len(self.values) > 1
            else self.values.new_full((), torch.nan)
        )


State = Tensor | None


def mismatched(step: Statistics, state: State) -> tuple[Tensor, State]:
    """max(0, mean r of mismatched pairs): arXiv 2402.01306 section 4.1, over the whole optimizer step.

    At a mean of 0, where a run starts, no gradient flows through it, as below 0.
    """
    return torch.relu(step.mean), state


def unclamped(step: Statistics, state: State) -> tuple[Tensor, State]:
    """The same mean without the clamp: unbiased for what it averages, but negative once the policy has moved."""
    return step.mean, state


def zero(step: Statistics, state: State) -> tuple[Tensor, State]:
    """z0 = 0, no partner pass: right after SFT on the same data (paper 4.1); KTO is then APO-zero (unpaired)."""
    return torch.zeros_like(step.mean), state


def batch_mean(step: Statistics, state: State) -> tuple[Tensor, State]:
    """The mean over the step. Of its own answers' r it says where the reward stands, good and bad together."""
    return step.mean, state


def prompt_mean(step: Statistics, state: State) -> tuple[Tensor, State]:
    """(M,) for each answer the mean over the step's answers to its prompt, itself included.

    Theorem 4.2 needs a reference point that is fixed or shared by prompts: this one it does not cover. With one answer
    per prompt it is that answer's own r, so that the loss never saturates.
    """
    same = (step.prompt[:, None] == step.prompt).to(step.values.dtype)  # a product adds in one order, index_add in any
    return same @ step.values / same.sum(1), state


def running_mean(step: Statistics, state: State) -> tuple[Tensor, State]:
    """The mean over every answer of the run so far, this step's included: BCO's delta / beta as TRL computes it.

    The state is (sum, count).
    """
    now = torch.stack([step.values.sum(), torch.ones_like(step.values).sum()])
    state = now if state is None else state + now
    return state[0] / state[1].clamp(min=1), state.detach()


def class_means(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Half the sum of the two classes' means over the run so far: BCO's delta / beta as its paper has it (arXiv
    2404.04656), which does not shift with the share of thumbs up. The state is (sums, counts) of down and up.

    A class not seen yet leaves the other's mean.
    """
    up = step.desirable.to(step.values.dtype)
    down = 1 - up
    now = torch.stack([(step.values * down).sum(), (step.values * up).sum(), down.sum(), up.sum()])
    state = now if state is None else state + now
    sums, counts = state[:2], state[2:]
    seen = (counts > 0).to(counts.dtype)
    return (sums / counts.clamp(min=1)).sum() / seen.sum().clamp(min=1), state.detach()

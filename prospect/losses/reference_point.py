"""Estimators of KTO's reference point z0, the reward level that an answer has to beat.

An estimator is (Statistics of the step, state) -> (z0, state). z0 is a scalar, or one number per answer of the step, in
nats. It is a function of the values alone, so that a gradient may flow through it where the user asks for one; by
default none does: the paper's theorem 4.3 holds for the detached reference point only. `state` is any tensor or None;
the loop keeps it and checkpoints it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from prospect.losses.registry import reference_point

if TYPE_CHECKING:
    from torch import Tensor

State: TypeAlias = "Tensor | None"


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
        if len(self.values) < 2:
            return self.values.new_full((), math.nan)
        return self.values.detach().std() / math.sqrt(len(self.values))


@reference_point(averages="partners")
def mismatched(step: Statistics, state: State) -> tuple[Tensor, State]:
    """max(0, mean of the mismatched): the paper's.

    The mean r of mismatched pairs over the whole optimizer step: arXiv 2402.01306 section 4.1. At a mean of 0, where a
    run starts, no gradient flows through it, as below 0.
    """
    return step.mean.relu(), state


@reference_point(averages="partners")
def unclamped(step: Statistics, state: State) -> tuple[Tensor, State]:
    """The same without the clamp.

    It is unbiased for what it averages, but negative once the policy has moved.
    """
    return step.mean, state


@reference_point(averages="nothing")
def zero(step: Statistics, state: State) -> tuple[Tensor, State]:
    """0: right after SFT on the same data.

    No partner pass (paper 4.1); KTO is then APO-zero (unpaired).
    """
    return step.mean.new_zeros(()), state


@reference_point(averages="partner_logp")
def mismatched_logp(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Mean token log-prob of the mismatched, unclamped.

    For losses without a reference model, whose reward is a mean log-prob.
    """
    return step.mean, state


@reference_point(averages="matched")
def running_mean(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Mean over all answers so far (BCO in TRL).

    Every answer of the run so far, this step's included: BCO's delta / beta as TRL computes it. The state is
    (sum, count).
    """
    import torch

    now = torch.stack([step.values.sum(), torch.ones_like(step.values).sum()])
    state = now if state is None else state + now
    return state[0] / state[1].clamp(min=1), state.detach()


@reference_point(averages="matched")
def class_means(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Mean of the two classes' means so far (BCO's paper).

    Half the sum of the two classes' means over the run so far: BCO's delta / beta as its paper has it (arXiv
    2404.04656), which does not shift with the share of thumbs up. A class not seen yet leaves the other's mean. The
    state is (sums, counts) of down and up.
    """
    import torch

    up = step.desirable.to(step.values.dtype)
    down = 1 - up
    now = torch.stack([(step.values * down).sum(), (step.values * up).sum(), down.sum(), up.sum()])
    state = now if state is None else state + now
    sums, counts = state[:2], state[2:]
    classes = (counts > 0).to(counts.dtype).sum()
    return (sums / counts.clamp(min=1)).sum() / classes.clamp(min=1), state.detach()


@reference_point(averages="matched")
def batch_mean(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Mean over the step's own answers.

    It says where the reward stands, good and bad together.
    """
    return step.mean, state


@reference_point(averages="matched")
def prompt_mean(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Mean over the step's answers to the same prompt.

    (M,) for each answer, itself included. Theorem 4.2 needs a reference point that is fixed or shared by prompts: this
    one it does not cover. With one answer per prompt it is that answer's own r, so that the loss never saturates.
    """
    same = (step.prompt[:, None] == step.prompt).to(step.values.dtype)  # a product adds in one order, index_add in any
    return same @ step.values / same.sum(1), state


@reference_point(averages="token_kl")
def token_kl(step: Statistics, state: State) -> tuple[Tensor, State]:
    """Exact KL at every token of the step's answers.

    The mean over answers of the sum over their tokens of KL(pi || pi_ref), each over the whole vocabulary.
    """
    return step.mean, state


@reference_point(averages="samples")
def on_policy(step: Statistics, state: State) -> tuple[Tensor, State]:
    """KL estimated on answers that the policy gives now.

    The mean r of one fresh answer to every prompt of the step.
    """
    return step.mean, state

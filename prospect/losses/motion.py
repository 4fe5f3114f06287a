"""References that move with the policy: when, and how far."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Motion:
    """Every `every` steps the reference becomes mix * policy + (1 - mix) * reference, weight by weight: with the policy
    as it is after the step, or, where `behind`, as it was before it."""

    every: int
    mix: float
    behind: bool = False


def moving(*, every: float = 512, mix: float = 0.6) -> Motion:
    """TR-DPO: pi_ref <- mix * pi + (1 - mix) * pi_ref every `every` steps.

    Source: arXiv 2404.09656; defaults as in TRL.
    """
    return Motion(max(1, round(every)), mix)


def one_step_behind() -> Motion:
    """Humanline: the reference at step t is the policy of step t - 1. Source: arXiv 2509.24207.

    Choice: a reference synchronised after the update would be the policy itself at the next step; every ratio would be
    1 there, and the clamp idle.
    """
    return Motion(1, 1.0, behind=True)

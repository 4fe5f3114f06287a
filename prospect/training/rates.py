"""Learning rates that are usual: the one source of train's default for adapters, of what `prospect recommend` proposes
and of what a report advises, so that the three cannot contradict each other."""

from __future__ import annotations

from dataclasses import dataclass

from prospect.losses.registry import LOSSES

LORA_RATE = 10.0
"""LoRA's learning rate over that of whole models: its matrices start at zero and move a small part of the model."""
TINY = 1e7
"""Parameters below which a model bears, and needs, large steps. Our judgement: no paper covers this size."""
TINY_RATE = 40.0
"""The learning rate of a model below TINY over that of the billions that the papers train."""
DOWN, UP = 5.0, 4.0
"""How far below and above the usual rate it is worth trying."""


@dataclass(frozen=True, slots=True)
class UsualRate:
    """A learning rate to start with and the ends of what is worth trying around it."""

    low: float
    start: float
    high: float

    def below(self, rate: float) -> float | None:
        """Where to go down from `rate`: the start, or its low end, at most half of `rate`; None where neither is."""
        return next((usual for usual in (self.start, self.low) if usual <= rate / 2), None)

    def above(self, rate: float) -> float | None:
        """Where to go up from `rate`: the start, or its high end, at least twice `rate`; None where neither is."""
        return next((usual for usual in (self.start, self.high) if usual >= rate * 2), None)


def usual_rate(loss: str, parameters: float | None, *, adapter: bool) -> UsualRate | None:
    """By the loss's own rate (LOSSES), the size of the model (None: not known) and whether an adapter is trained; None
    for mixtures and own losses, which have no published rate."""
    if loss not in LOSSES:
        return None
    tiny = parameters is not None and parameters < TINY and not adapter
    start = LOSSES[loss].learning_rate * (LORA_RATE if adapter else TINY_RATE if tiny else 1.0)
    return UsualRate(start / DOWN, start, start * UP)

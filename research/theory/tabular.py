"""An exact policy: softmax logits over a few answers to each prompt. Everything is float64 and in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prospect.report.svg import Figure

Objective = Callable[[Tensor, Tensor], Tensor]
"""(log-ratios (X, K), exact KL(pi || pi_ref) of each prompt (X,), both with gradient) -> scalar loss."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One prediction and what came of it. `holds` is computed from the numbers that `measured` prints."""

    claim: str
    prediction: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Experiment:
    """A theorem, what was found, and its chart."""

    title: str
    findings: tuple[Finding, ...]
    figure: Figure


def table(rows: list[list[float]]) -> Tensor:
    """Probabilities, one prompt a row, as log-probs (X, K); rows are normalised."""
    weights = torch.tensor(rows, dtype=torch.float64)
    return torch.log(weights / weights.sum(-1, keepdim=True))


def normal(seed: int, *shape: int) -> Tensor:
    """Standard normal float64 numbers from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_ratios(logits: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """(r, KL(pi || pi_ref)) of the policy with these logits against the reference's log-probs."""
    logp = logits.log_softmax(-1)
    r = logp - reference
    return r, (logp.exp() * r).sum(-1)


def descend(reference: Tensor, objective: Objective, *, steps: int = 100, rate: float = 0.5) -> Tensor:
    """The policy's probabilities after Adam from the reference. For optima at infinity: logits move about `rate` a
    step whatever the scale of the loss. A gradient of rounding errors alone moves nothing."""
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=rate, eps=1e-12)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(*log_ratios(logits, reference)).backward()
        optimizer.step()
    return logits.detach().softmax(-1)


def minimise(reference: Tensor, objective: Objective, *, steps: int = 200) -> tuple[Tensor, float]:
    """(probabilities, loss) at the optimum that L-BFGS finds from the reference. For optima inside the simplex."""
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=steps, tolerance_grad=1e-14, tolerance_change=1e-18, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(*log_ratios(logits, reference))
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(-1), float(closure().detach())

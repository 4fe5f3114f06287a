"""Prop. 4.1 (gradient, saturation) and Thm 4.2 (same policy and preferences, different human value)."""

from __future__ import annotations

from collections.abc import Callable
from math import nan

import torch
from torch import Tensor

from prospect.losses.paired import dpo
from prospect.losses.unpaired import kto, logsigmoid
from prospect.report import svg
from prospect.report.svg import Bar, Figure, Line
from research.theory.tabular import (
    Experiment,
    Finding,
    log_ratios,
    normal,
)

BETA = 0.1


def gradient(seed: int) -> Experiment:
    """Prop. 4.1: the gradient's formula, and that it vanishes far from the reference point on both sides."""
    title = "Prop. 4.1: the gradient of KTO, and its saturation"
    return Experiment(title, (_formula(seed), _saturation(), _contrast()), _gradient_figure())


def _formula(seed: int) -> Finding:
    """Eq. 10, closed form, against central differences of the loss in the logits of a random policy."""
    beta, weights, z0 = 0.5, (1.5, 1.0), torch.tensor(0.3, dtype=torch.float64)
    reference, logits = normal(seed, 3, 4).log_softmax(-1), normal(seed + 1, 3, 4)
    desirable = normal(seed + 2, 3, 4) > 0

    def loss(at: Tensor) -> Tensor:
        r, _ = log_ratios(at, reference)
        given = r.flatten(), desirable.flatten(), z0
        return kto(*given, beta=beta, desirable_weight=weights[0], undesirable_weight=weights[1]).mean()

    z = log_ratios(logits, reference)[0] - z0
    sign, weight = torch.where(desirable, -1.0, 1.0), torch.where(desirable, *weights)
    slope = sign * weight * torch.sigmoid(beta * z) * torch.sigmoid(-beta * z) * beta / z.numel()
    closed = slope - logits.softmax(-1) * slope.sum(-1, keepdim=True)  # d log pi(y) / d logits is onehot(y) - pi
    h = 1e-5
    bumps = h * torch.eye(logits.numel(), dtype=torch.float64).reshape(-1, *logits.shape)
    numeric = torch.stack([(loss(logits + b) - loss(logits - b)) / (2 * h) for b in bumps]).reshape(logits.shape)
    error = float((closed - numeric).abs().max())
    return Finding(
        "∇L = E[d λ σ(βz)(1 − σ(βz)) β ∇log π], z = r − z0, d = −1 desirable, +1 undesirable",
        "equals finite differences: largest difference below 1e-9",
        f"largest difference {error:.1e}, largest gradient {float(closed.abs().max()):.1e}",
        error < 1e-9,
    )


def slopes(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    """d loss / d z at every z, by autograd."""
    at = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(loss(at).sum(), at)
    return found


def _kto(z: Tensor) -> Tensor:
    return kto(z, torch.ones_like(z, dtype=torch.bool), z.new_zeros(()), beta=BETA)


def _concave(z: Tensor) -> Tensor:
    return kto(z, torch.ones_like(z, dtype=torch.bool), z.new_zeros(()), beta=BETA, value=logsigmoid)


def _dpo(z: Tensor) -> Tensor:
    return dpo(z, torch.zeros_like(z), beta=BETA)


def _saturation() -> Finding:
    z = torch.tensor([0.0, 20.0, 50.0, 150.0], dtype=torch.float64)
    predicted = BETA * torch.sigmoid(BETA * z) * torch.sigmoid(-BETA * z)
    sides = [slopes(_kto, side * z).abs() for side in (1, -1)]
    error = max(float((side / predicted - 1).abs().max()) for side in sides)
    fell = float(sides[1][-1] / sides[1][0])
    return Finding(
        "the update vanishes as the implied reward goes to ±∞: hopeless and mastered answers are ignored",
        "|dL/dr| at |z| = 0, 20, 50, 150 (β = 0.1): " + _numbers(predicted) + ", on both sides",
        _numbers(sides[1]) + f"; relative difference {error:.0e}",
        error < 1e-9 and fell < 1e-5,
    )


def _contrast() -> Finding:
    z = torch.tensor([-150.0, 150.0], dtype=torch.float64)
    found = {name: slopes(loss, z).abs() for name, loss in (("DPO", _dpo), ("KTO with log σ", _concave))}
    holds = all(abs(float(s[0]) / BETA - 1) < 1e-3 and float(s[1]) < 1e-6 for s in found.values())
    return Finding(
        "a concave value (DPO, KTO with log σ) saturates in gains only: wrong labels keep pulling",
        f"|dL/dr| tends to β = {BETA:g} at z = −150 and to 0 at z = 150",
        "; ".join(f"{name}: {_numbers(s)}" for name, s in found.items()),
        holds,
    )


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{v:.2e}" for v in values.tolist())


def _gradient_figure() -> Figure:
    z = torch.linspace(-100, 100, 101, dtype=torch.float64)
    x = z.tolist()
    series = [
        Line("KTO", "main", x, slopes(_kto, z).abs().tolist()),
        Line("DPO", "base", x, slopes(_dpo, z).abs().tolist()),
    ]
    title = "How hard one desirable answer pulls"
    caption = (
        "KTO pulls hardest at the reference point and lets go on both sides. DPO, and KTO with the concave value "
        "log σ, pull with full force at answers that look hopeless. β = 0.1."
    )
    return svg.lines("theory-gradient", title, caption, series, "z = r − z0 in nats", "|dL/dr|", include=[0])


def human_value(seed: int) -> Experiment:
    """Thm 4.2: two rewards with the same optimal policy and preferences, but not the same human value."""
    beta, bonus, prompts, answers = 0.5, 2.0, 5, 4
    reference = normal(seed, prompts, answers).log_softmax(-1)
    first = normal(seed + 1, prompts, answers)
    shift = torch.zeros(prompts, 1, dtype=torch.float64)
    shift[0] = bonus
    rewards = first, first + shift
    policies = [(reference + r / beta).log_softmax(-1) for r in rewards]
    optimal = max(_slope_of_rlhf(p, r, reference, beta) for p, r in zip(policies, rewards, strict=True))
    moved = float((policies[0].exp() - policies[1].exp()).abs().max())
    preferences = [torch.exp(-dpo(r[:, :, None], r[:, None, :], beta=1.0)) for r in rewards]
    swayed = float((preferences[0] - preferences[1]).abs().max())
    same = Finding(
        "r and r + h(x) share the policy that maximises E[r] − β KL and all Bradley-Terry preferences",
        "policies and preferences equal; RLHF gradient 0 at both optima",
        f"|Δπ| {moved:.0e}, |Δ preference| {swayed:.0e}, gradient {optimal:.0e}",
        max(moved, swayed, optimal) < 1e-12,
    )
    prompt_means = [(p.exp() * r).sum(-1, keepdim=True) for p, r in zip(policies, rewards, strict=True)]
    means = {
        "fixed at 0": [torch.zeros_like(m) for m in prompt_means],
        "mean over prompts": [m.mean().expand_as(m) for m in prompt_means],
        "mean of the prompt": prompt_means,
    }
    values = {name: [_value(r, z0) for r, z0 in zip(rewards, points, strict=True)] for name, points in means.items()}
    gaps = {name: float((b - a).abs().max()) for name, (a, b) in values.items()}
    expected = shift - bonus / prompts
    inside = float(
        (torch.logit(values["mean over prompts"][1]) - torch.logit(values["mean over prompts"][0]) - expected)
        .abs()
        .max()
    )
    elsewhere = float((values["fixed at 0"][1] - values["fixed at 0"][0])[1:].abs().max())
    findings = (
        same,
        Finding(
            "yet human value differs, with a fixed reference point",
            f"value changes where h = {bonus:g}, and nowhere else",
            f"largest change {gaps['fixed at 0']:.3f}, elsewhere {elsewhere:.0e}",
            gaps["fixed at 0"] > 0.01 and elsewhere < 1e-12,
        ),
        Finding(
            "and with a reference point shared by prompts",
            f"inside σ a shift of {bonus * (1 - 1 / prompts):g} on that prompt and {-bonus / prompts:g} on the others",
            f"largest change {gaps['mean over prompts']:.3f}; shift off by {inside:.0e}",
            gaps["mean over prompts"] > 0.01 and inside < 1e-9,
        ),
        Finding(
            "but not with a reference point of each prompt's own: the theorem needs one of the two above",
            "E_π[r | x] moves with h and cancels it: no change",
            f"largest change {gaps['mean of the prompt']:.0e}",
            gaps["mean of the prompt"] < 1e-12,
        ),
    )
    return Experiment("Thm 4.2: the same policy and preferences, another human value", findings, _value_figure(gaps))


def _value(reward: Tensor, z0: Tensor) -> Tensor:
    """sigmoid(reward - z0), as 1 minus the value that the loss says is lost."""
    flat, points = reward.flatten(), z0.expand_as(reward).flatten()
    return (1 - kto(flat, torch.ones_like(flat, dtype=torch.bool), points, beta=1.0)).reshape(reward.shape)


def _slope_of_rlhf(logp: Tensor, reward: Tensor, reference: Tensor, beta: float) -> float:
    """The largest derivative of E[r] - beta KL in the policy's logits."""
    logits = logp.clone().requires_grad_()
    _, kl = log_ratios(logits, reference)
    gain = (logits.softmax(-1) * reward).sum() - beta * kl.sum()
    (found,) = torch.autograd.grad(gain, logits)
    return float(found.abs().max())


def _value_figure(gaps: dict[str, float]) -> Figure:
    title = "The most that an answer's human value changes"
    caption = (
        "Two rewards that no policy and no preference can tell apart. Their human value differs wherever the reference "
        "point does not move with each prompt's own mean."
    )
    rows = [Bar(f"reference point: {name}", gap, nan, nan) for name, gap in gaps.items()]
    largest = max(0.5, *gaps.values())
    return svg.bars(
        "theory-value", title, caption, rows, "change of value, between 0 and 1", x=(0.0, largest), filled=True
    )

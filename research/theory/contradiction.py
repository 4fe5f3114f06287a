"""Thm 4.3 (contradictory preferences) and its corollary on answers that got both thumbs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from prospect.losses.paired import dpo
from prospect.losses.unpaired import kto
from prospect.report import svg
from prospect.report.svg import Figure, Line
from research.theory.tabular import (
    Experiment,
    Finding,
    descend,
    log_ratios,
    minimise,
    normal,
    table,
)

REST = 0.1
"""Share of a third answer that nobody rated, where only the odds of the first two matter."""
FINAL = 0.999


def contradictory(
    up: Tensor, down: Tensor, z0: Tensor, p: Tensor, *, beta: float, desirable: float = 1.0, undesirable: float = 1.0
) -> Tensor:
    """KTO's expected loss (X,) where `up` beats `down` with probability p and loses otherwise, each pair one thumb up
    and one down."""
    lost = partial(kto, beta=beta, desirable_weight=desirable, undesirable_weight=undesirable)
    thumb = torch.ones_like(up, dtype=torch.bool)
    agreed = lost(up, thumb, z0) + lost(down, ~thumb, z0)
    against = lost(down, thumb, z0) + lost(up, ~thumb, z0)
    return p * agreed + (1 - p) * against


def contradiction(_seed: int) -> Experiment:
    """Thm 4.3: what DPO and KTO make of people who disagree."""
    title = "Thm 4.3: contradictory preferences"
    majority, shares = _dpo_sides()
    findings = (majority, _kto_majority(), _signs(), _heavy_losses(), _third_answer(), *_live_kl())
    return Experiment(title, findings, shares)


def _pair(a: float, b: float) -> list[float]:
    return [(1 - REST) * a, (1 - REST) * b, REST] if a + b == 1 else [a, b, 1 - a - b]


def _dpo_optimum(reference: Tensor, p: Tensor, beta: float) -> Tensor:
    """pi(a) / pi(b) (X,) at DPO's optimum."""
    policy, _ = minimise(
        reference,
        lambda r, _: (p * dpo(r[:, 0], r[:, 1], beta=beta) + (1 - p) * dpo(r[:, 1], r[:, 0], beta=beta)).sum() / beta,
    )
    return policy[:, 0] / policy[:, 1]


def _dpo_sides() -> tuple[Finding, Figure]:
    steep, flat = 0.1, 1.0
    grid = torch.linspace(0.5, 0.64, 15, dtype=torch.float64)
    extra = torch.tensor([0.52, 0.6, 0.6], dtype=torch.float64)
    p = torch.cat([grid, extra])
    reference = table([_pair(0.2, 0.8)] * (len(grid) + 1) + [_pair(0.01, 0.9), _pair(0.2, 0.8)])
    found = _dpo_optimum(reference, p, steep)
    predicted = (p / (1 - p)) ** (1 / steep) * (reference[:, 0] - reference[:, 1]).exp()
    one, six = table([_pair(0.2, 0.8)]), torch.tensor([0.6], dtype=torch.float64)
    found = torch.cat([found, _dpo_optimum(one, six, flat)])
    predicted = torch.cat([predicted, (six / (1 - six)) ** (1 / flat) * 0.25])
    error = float((found / predicted - 1).abs().max())
    condition = torch.cat([_against(reference, p, steep), _against(one, six, flat)])
    agree = bool((condition == (found < 1)).all())
    names = ("β=.1 p=.52 ref .2/.8", "β=.1 p=.6 ref .01/.9", "β=.1 p=.6 ref .2/.8", "β=1 p=.6 ref .2/.8")
    odds = found[len(grid) :].tolist()
    finding = Finding(
        "DPO's optimum prefers the minority's y_b exactly where p^(1/β) π_ref(a) < (1−p)^(1/β) π_ref(b)",
        "odds π(a)/π(b) = (p/(1−p))^(1/β) π_ref(a)/π_ref(b), below 1 where the condition holds",
        "; ".join(f"{n}: {o:.4g}" for n, o in zip(names, odds, strict=True)) + f"; relative difference {error:.0e}",
        error < 1e-5 and agree,
    )
    return finding, _sides_figure(grid, found[: len(grid)], reference[: len(grid)])


def _against(reference: Tensor, p: Tensor, beta: float) -> Tensor:
    """The theorem's condition for the minority to win, (X,) bool."""
    return p ** (1 / beta) * reference[:, 0].exp() < (1 - p) ** (1 / beta) * reference[:, 1].exp()


def _sides_figure(p: Tensor, odds: Tensor, reference: Tensor) -> Figure:
    policy = descend(
        reference, lambda r, kl: contradictory(r[:, 0], r[:, 1], torch.zeros_like(kl), p, beta=0.1).sum(), steps=60
    )
    share = policy[:, 0] / (policy[:, 0] + policy[:, 1])
    series = [
        Line("KTO", "main", p[1:].tolist(), share[1:].tolist()),
        Line("DPO", "bad", p.tolist(), (odds / (1 + odds)).tolist()),
    ]
    title = "The majority's answer after training"
    caption = (
        "Share of y_a among y_a and y_b, where the reference gives .2 and .8. A majority above ½ is enough for KTO; "
        "DPO stays with the minority until the majority outweighs the reference. β = 0.1."
    )
    return svg.lines(
        "theory-majority",
        title,
        caption,
        series,
        "share p of people who prefer y_a",
        "π(a) / (π(a) + π(b))",
        y=(0.0, 1.0),
    )


def _kto_majority() -> Finding:
    reference = table([_pair(0.2, 0.8), _pair(0.01, 0.9), _pair(0.2, 0.8), _pair(0.2, 0.8)])
    p = torch.tensor([0.52, 0.6, 0.6, 0.9], dtype=torch.float64)

    def ended(on: float) -> Tensor:
        """π(a) after training with z0 = on * KL, detached."""

        def loss(r: Tensor, kl: Tensor) -> Tensor:
            return contradictory(r[:, 0], r[:, 1], on * kl.detach(), p, beta=0.1).sum()

        return descend(reference, loss)[:, 0]

    zero, detached = ended(0.0), ended(1.0)
    least = min(float(zero.min()), float(detached.min()))
    return Finding(
        "KTO with λ_D = λ_U goes to the majority, whatever the reference says",
        f"π(a) → 1 with z0 = 0 and with z0 = the exact KL, detached: above {FINAL} for p = .52, .6, .9",
        f"smallest π(a): z0 = 0 {float(zero.min()):.5f}, detached KL {float(detached.min()):.5f}",
        least > FINAL,
    )


def _signs() -> Finding:
    """Who is pushed where, as λ_U / λ_D grows: y_a up below p/(1-p), y_b down above (1-p)/p."""
    p, z0 = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.4, dtype=torch.float64)
    odds = float(p / (1 - p))
    wrong = 0
    ratios = (0.5, 0.66, 0.67, 1.0, 1.49, 1.51, 2.0)
    for ratio in ratios:
        r = (5 * normal(0, 2, 20)).requires_grad_()
        loss = contradictory(r[0], r[1], z0, p, beta=0.1, undesirable=ratio).sum()
        (slope,) = torch.autograd.grad(loss, r)
        wrong += int(((slope[0] < 0) != (ratio < odds)).sum() + ((slope[1] > 0) != (ratio > 1 / odds)).sum())
    return Finding(
        "y_a's reward is pushed up iff λ_U/λ_D < p/(1−p), y_b's down iff λ_U/λ_D > (1−p)/p",
        f"at p = .6 the signs change at {odds:.3g} and {1 / odds:.3g}",
        f"{wrong} wrong signs in {len(ratios) * 40} (λ_U/λ_D = {', '.join(f'{x:g}' for x in ratios)})",
        wrong == 0,
    )


def _heavy_losses() -> Finding:
    """Both answers pushed down, y_b harder: with nothing else to say, the reference decides which survives."""
    p, undesirable = 0.6, 2.0
    up, down = (1 - p) * undesirable - p, p * undesirable - (1 - p)
    shares = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.5], dtype=torch.float64)
    reference = torch.stack([shares, 1 - shares], -1).log()
    policy = descend(
        reference,
        lambda r, kl: contradictory(
            r[:, 0], r[:, 1], torch.zeros_like(kl), kl.new_tensor(p), beta=0.1, undesirable=undesirable
        ).sum(),
    )
    flips = shares / (1 - shares) < up / down
    agree = bool(((policy[:, 0] < 1 - FINAL) == flips).all() and ((policy[:, 0] > FINAL) == ~flips).all())
    return Finding(
        "loss aversion can flip it: with λ_U = 2 at p = .6 both answers are pushed down and the reference decides",
        f"only two answers: y_b wins where π_ref(a)/π_ref(b) < {up / down:.2g}, y_a elsewhere",
        "; ".join(f"ref {a:g}: π(a) {b:.3f}" for a, b in zip(shares.tolist(), policy[:, 0].tolist(), strict=True)),
        agree,
    )


def _third_answer() -> Finding:
    reference = table([[0.2, 0.3, 0.5]])
    policy = descend(
        reference,
        lambda r, kl: contradictory(
            r[:, 0], r[:, 1], torch.zeros_like(kl), kl.new_tensor(0.6), beta=0.1, undesirable=2.0
        ).sum(),
    )[0]
    return Finding(
        "where there is a third answer that nobody rated, what is taken from both goes there",
        f"π(third) → 1: above {FINAL}",
        "π = " + ", ".join(f"{x:.4f}" for x in policy.tolist()),
        float(policy[2]) > FINAL,
    )


def _live_kl() -> list[Finding]:
    found = []
    p, beta = 0.6, 1.0
    for shares in ([0.2, 0.8], [0.01, 0.09, 0.9]):
        reference = table([shares])

        def loss(r: Tensor, kl: Tensor) -> Tensor:
            return contradictory(r[:, 0], r[:, 1], kl, kl.new_tensor(p), beta=beta).sum()

        policy, lowest = minimise(reference, loss)
        only_a = -reference[:, :1]  # r(a) = KL = -log pi_ref(a) where the policy says nothing but y_a
        alone = float(loss(torch.cat([only_a, torch.full_like(only_a, -1e4)], -1), only_a[:, 0]))
        found.append(
            Finding(
                "all this needs z0 without gradient: through the exact KL the optimum is no longer deterministic",
                f"reference {', '.join(f'{s:g}' for s in shares)}: .01 < π(a) < .99, loss below π(a) = 1's {alone:.4f}",
                f"π = {', '.join(f'{x:.3f}' for x in policy[0].tolist())}, loss {lowest:.4f}",
                0.01 < float(policy[0, 0]) < 0.99 and lowest < alone - 1e-6,
            )
        )
    return found


def both_thumbs(seed: int) -> Experiment:
    """The corollary: adjacent pairs of a ranking give its middle answers one thumb up and one down."""
    reference, logits = normal(seed, 1, 4).log_softmax(-1), normal(seed + 1, 1, 4)
    z0, beta = torch.tensor(0.2, dtype=torch.float64), 0.1

    def slope(answers: list[int], thumbs: list[bool], undesirable: float) -> Tensor:
        at = logits.clone().requires_grad_()
        r, _ = log_ratios(at, reference)
        loss = kto(r[0, answers], torch.tensor(thumbs), z0, beta=beta, undesirable_weight=undesirable).sum()
        (found,) = torch.autograd.grad(loss, at)
        return found[0]

    once = float(slope([1, 1], [True, False], 1.0).abs().max())
    ranking = float(
        (slope([0, 1, 1, 2], [True, False, True, False], 1.0) - slope([0, 2], [True, False], 1.0)).abs().max()
    )
    weights = torch.linspace(0.5, 2.5, 21, dtype=torch.float64).tolist()
    lengths = [float(slope([1, 1], [True, False], w).norm()) for w in weights]
    policy = logits.softmax(-1)[0]
    z = float(log_ratios(logits, reference)[0][0, 1] - z0)
    u = torch.tensor(beta * z, dtype=torch.float64)
    direction = float((torch.eye(4, dtype=torch.float64)[1] - policy).norm())
    size = beta * float(torch.sigmoid(u) * torch.sigmoid(-u)) * direction
    error = max(abs(length - abs(w - 1) * size) for w, length in zip(weights, lengths, strict=True))
    findings = (
        Finding(
            "one answer with both thumbs teaches nothing where λ_D = λ_U: the gradients cancel",
            "gradient 0 for the answer; for a ≻ b ≻ c as two pairs, the gradient of (a up, c down) alone",
            f"largest entry {once:.0e}; difference {ranking:.0e}",
            max(once, ranking) < 1e-15,
        ),
        Finding(
            "and it does teach where they differ",
            "length |λ_U − λ_D| β σ(βz)(1 − σ(βz)) ‖∇log π‖",
            f"{lengths[10 + 5]:.2e} at λ_U = {weights[15]:g}; largest difference {error:.0e}",
            error < 1e-12 and lengths[15] > 1e-6,
        ),
    )
    title = "What an answer with both thumbs teaches"
    caption = "Length of the gradient on the policy's logits, one thumb up and one down on the same answer, λ_D = 1."
    figure = svg.lines(
        "theory-both-thumbs",
        title,
        caption,
        [Line("", "main", weights, lengths)],
        "λ_U",
        "gradient's length",
        include=[0],
    )
    return Experiment("Corollary: the same answer once up, once down", findings, figure)

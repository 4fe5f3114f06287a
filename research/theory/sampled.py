"""What labels that lie do to three losses, and what the estimator of z0 estimates: experiments with sampling."""

from __future__ import annotations

import torch
from torch import Tensor

from prospect.losses.paired import dpo
from prospect.losses.reference_point import Statistics, mismatched, unclamped
from prospect.losses.unpaired import kto, logistic, logsigmoid
from prospect.report import svg
from prospect.report.svg import Figure, Line
from research.theory.tabular import (
    Experiment,
    Finding,
    descend,
    normal,
)

BETA = 0.5
PROMPTS, GOOD, ANSWERS = 32, 2, 4
LABELS = 5
"""Labels per answer, and judgements per pair, in the sampled runs."""
REPEATS = 5
FLIPS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.45, 0.5)
NAMES = ("KTO", "KTO with log σ", "DPO")


def noise(seed: int) -> Experiment:
    """Flip labels with growing probability; how much true reward is left? The first GOOD answers are the best."""
    reward = normal(seed, PROMPTS, ANSWERS).sort(-1, descending=True).values
    reference = normal(seed + 1, PROMPTS, ANSWERS).log_softmax(-1)
    flips = torch.tensor(FLIPS, dtype=torch.float64)
    chances = flips[:, None, None]
    exact = [g.mean(-1) for g in _gains(reference, reward, chances.expand(-1, PROMPTS, ANSWERS), chances)]
    numbers = torch.Generator().manual_seed(seed + 2)
    counts = [
        torch.stack([_share(flips, shape, numbers) for _ in range(REPEATS)])
        for shape in ((PROMPTS, ANSWERS), (PROMPTS, GOOD * (ANSWERS - GOOD)))
    ]
    sampled = _gains(reference, reward, *counts)
    kept = {name: (gain / gain[0]).tolist() for name, gain in zip(NAMES, exact, strict=True)}
    even = max(abs(k - 1) for k in kept["KTO"][:-1])
    falls = all(b < a for name in NAMES[1:] for a, b in zip(kept[name], kept[name][1:], strict=False))
    lost = max(abs(k[-1]) for k in kept.values())
    by_prompt = [gain[:, -1].mean(0) for gain in sampled]
    spread = [(g.mean(), g.std() / PROMPTS**0.5) for g in by_prompt]
    chance = max(float(m.abs() / e) for m, e in spread)
    told = [f"{name} {', '.join(f'{k:.2f}' for k in kept[name][:-1])}" for name in NAMES]
    findings = (
        Finding(
            "KTO follows the majority's label however slim the majority; concave values hedge",
            f"share of the clean gain kept at flips {', '.join(f'{q:g}' for q in FLIPS[:-1])}: KTO 1, others falling",
            "; ".join(told),
            even < 1e-3 and falls,
        ),
        Finding(
            "at even odds labels say nothing",
            "in expectation no loss leaves the reference; sampled, no gain within 4 standard errors over prompts",
            f"largest share kept {lost:.0e}; sampled: "
            + ", ".join(f"{float(m):+.3f} ± {float(e):.3f}" for m, e in spread),
            lost < 1e-4 and chance < 4,
        ),
    )
    return Experiment("Label noise: flipping thumbs until they are coins", findings, _noise_figure(sampled))


def _share(flips: Tensor, shape: tuple[int, int], numbers: torch.Generator) -> Tensor:
    """The share of LABELS labels that came out flipped, (Q, *shape)."""
    chance = torch.rand(LABELS, len(flips), *shape, generator=numbers, dtype=torch.float64)
    return (chance < flips[:, None, None]).double().mean(0)


def _gains(reference: Tensor, reward: Tensor, thumbs: Tensor, pairs: Tensor) -> list[Tensor]:
    """E[true reward] above the reference's for each loss: (..., Q, X). `thumbs` (..., Q, X, K) and
    `pairs` (..., Q, X, pairs) are the shares of flipped labels and preferences."""
    start = reference.expand(thumbs.shape)
    good = (torch.arange(ANSWERS) < GOOD).expand(thumbs.shape)
    zero = torch.zeros((), dtype=torch.float64)

    def unpaired(r: Tensor, concave: bool) -> Tensor:
        value = logsigmoid if concave else logistic
        right = kto(r, good, zero, beta=BETA, value=value)
        return ((1 - thumbs) * right + thumbs * kto(r, ~good, zero, beta=BETA, value=value)).sum()

    def paired(r: Tensor) -> Tensor:
        left = r[..., :GOOD].repeat_interleave(ANSWERS - GOOD, -1)
        right = r[..., GOOD:].repeat(*[1] * (r.dim() - 1), GOOD)
        return ((1 - pairs) * dpo(left, right, beta=BETA) + pairs * dpo(right, left, beta=BETA)).sum()

    policies = (
        descend(start, lambda r, _: unpaired(r, False), steps=150, rate=0.1),
        descend(start, lambda r, _: unpaired(r, True), steps=150, rate=0.1),
        descend(start, lambda r, _: paired(r), steps=150, rate=0.1),
    )
    return [((policy - reference.exp()) * reward).sum(-1) for policy in policies]


def _noise_figure(sampled: list[Tensor]) -> Figure:
    kinds = ("main", "base", "bad")
    series = []
    for name, kind, gain in zip(NAMES, kinds, sampled, strict=True):
        by_prompt = gain.mean(0)
        mean, error = by_prompt.mean(-1), 2 * by_prompt.std(-1) / PROMPTS**0.5
        band = ((mean - error).tolist(), (mean + error).tolist())
        series.append(Line(name, kind, list(FLIPS), mean.tolist(), band))
    title = "True reward after training on noisy labels"
    caption = (
        f"E[r*] above the reference's, {LABELS} labels per answer or pair, each flipped with the probability below; "
        f"mean of {REPEATS} draws with two standard errors over {PROMPTS} prompts. "
        f"β = {BETA:g}, z0 = 0, 150 steps of Adam."
    )
    return svg.lines("theory-noise", title, caption, series, "probability of a flipped label", "gain", include=[0])


def reference_point(seed: int) -> Experiment:
    """z0's estimator on policies that have drifted: is it the KL that the formula asks for?"""
    prompts, outputs, batch, batches = 64, 32, 8, 400
    reference = normal(seed, prompts, outputs).log_softmax(-1)
    drifts = (0.2, 0.5, 1.0, 1.5, 2.0)
    numbers = torch.Generator().manual_seed(seed + 1)
    exact, expected, raw, errors, clamped, active = [], [], [], [], [], []
    for drift in drifts:
        r = (reference + drift * normal(seed + 2, prompts, outputs)).log_softmax(-1) - reference
        exact.append(float(((reference + r).exp() * r).sum(-1).mean()))
        everyone = (r @ reference.exp().T).fill_diagonal_(0)  # r(x_i, y), y an answer of the data to x_j
        expected.append(float(everyone.sum() / (prompts * (prompts - 1))))
        found = []
        for _ in range(batches):
            x = torch.randperm(prompts, generator=numbers)[:batch]
            y = torch.multinomial(reference[x.roll(-1)].exp(), 1, generator=numbers)[:, 0]
            step = Statistics(r[x, y], torch.ones(batch, dtype=torch.bool), torch.arange(batch))
            found.append((float(unclamped(step, None)[0]), float(mismatched(step, None)[0])))
        both = torch.tensor(found, dtype=torch.float64)
        raw.append(float(both[:, 0].mean()))
        errors.append(float(both[:, 0].std()) / batches**0.5)
        clamped.append(float(both[:, 1].mean()))
        active.append(float((both[:, 1] == 0).double().mean()))
    off = max(abs(a - b) / e for a, b, e in zip(raw, expected, errors, strict=True))
    shown = [k for k, drift in enumerate(drifts) if drift in (0.2, 1.0, 2.0)]

    def told(values: list[float], form: str = "+.3f") -> str:
        return ", ".join(format(values[k], form) for k in shown)

    findings = (
        Finding(
            "the mismatched mean does not estimate KL(π‖π_ref): its answers come from the data, not from the policy",
            f"its mean is E_x,x'[E_y~ref(x') r(x, y)], negative: {told(expected)} at drifts .2, 1, 2",
            f"{told(raw)}, at most {off:.1f} standard errors off; exact KL {told(exact)}",
            off < 4 and all(v < 0 for v in expected) and all(raw[k] < 0 for k in shown),
        ),
        Finding(
            "so the clamp at 0 is what usually decides: z0 = 0 is no fault",
            "from drift .5 on active in most batches, ever more; clamped mean below the exact KL from drift 1",
            f"active {told(active, '.0%')}; clamped mean {told(clamped)}",
            min(active[1:]) > 0.5 and active == sorted(active) and all(clamped[k] < exact[k] for k in shown[1:]),
        ),
    )
    title = "What z0 estimates as the policy moves"
    caption = (
        f"{prompts} prompts, {outputs} shared answers, {batches} batches of {batch}. The exact KL grows; the mean over "
        "mismatched answers falls, and the clamp holds it at 0."
    )
    series = [
        Line("exact KL", "good", drifts, exact),
        Line("raw", "bad", drifts, raw),
        Line("clamped", "main", drifts, clamped),
    ]
    figure = svg.lines("theory-z0", title, caption, series, "drift of the logits (standard deviation)", "nats")
    return Experiment("z0: what its estimator really estimates", findings, figure)

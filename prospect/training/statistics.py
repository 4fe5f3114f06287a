"""What a step says of itself: sums over its rows on every rank, and the means that metrics.jsonl and the bar show."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prospect.training.inputs import Batch

SATURATED = 4.0
"""|implied reward - reference point| beyond which the gradient of a logistic loss is below 7 % of its largest."""
SUMS = (
    "objective",
    "desirable",
    "undesirable",
    "reward_desirable",
    "reward_undesirable",
    "correct",
    "saturated",
    "judged",
    "decided",
)
"""What is summed, as one float64 vector, so that the ranks' shares add up in one message."""


def sums(batch: Batch, objective: Tensor, *, beta: float, pairs: bool, rounding: float) -> Tensor:
    """SUMS of one micro-batch (9,) float64, on its device and without waiting for it. Of pairs, chosen answers count as
    desirable and rejected as undesirable. A row whose log-ratios lie within `rounding` nats is undecided and half
    correct: while the policy is its own reference, that is every row."""
    values = [objective.double(), *[objective.new_zeros((), dtype=torch.float64)] * (len(SUMS) - 1)]
    if batch.sides[0].token_reference is not None:
        rewards = [beta * side.read("log_ratio").double() for side in batch.sides]
        if pairs:
            good, bad = rewards
            gap = good - bad
            counts = torch.ones_like(good), torch.ones_like(bad)
        else:
            good = bad = rewards[0]
            desirable = batch.desirable
            counts = desirable.double(), (~desirable).double()
            beaten = rewards[0] - beta * (0.0 if batch.z0 is None else batch.z0)
            gap = torch.where(desirable, beaten, -beaten)
        values[1:] = [
            counts[0].sum(),
            counts[1].sum(),
            (good * counts[0]).sum(),
            (bad * counts[1]).sum(),
            torch.where(gap.abs() > beta * rounding, (gap > 0).double(), 0.5).sum(),
            (gap.abs() > SATURATED).sum().double(),
            torch.ones_like(gap).sum(),
            (gap.abs() > beta * rounding).sum().double(),
        ]
    return torch.stack(values)


def read(values: dict[str, Any]) -> dict[str, Any]:
    """The same with numbers in place of tensors, a vector becoming a list: all in one copy from the device."""
    tensors = {name: value.detach().double() for name, value in values.items() if isinstance(value, Tensor)}
    if not tensors:
        return values
    flat = iter(torch.cat([value.reshape(-1) for value in tensors.values()]).tolist())
    numbers = {name: next(flat) if v.ndim == 0 else [next(flat) for _ in range(len(v))] for name, v in tensors.items()}
    return values | numbers


def means(totals: list[float]) -> dict[str, Any]:
    """A step's metrics from its SUMS: means over its rows on all ranks; rewards in beta * nats. A step without a
    decided row has no accuracy."""
    s = dict(zip(SUMS, totals, strict=True))
    found: dict[str, Any] = {"loss": s["objective"]}
    for side in ("desirable", "undesirable"):
        if s[side]:
            found[f"reward_{side}"] = s[f"reward_{side}"] / s[side]
    if s["desirable"] and s["undesirable"]:
        found["margin"] = found["reward_desirable"] - found["reward_undesirable"]
    if s["judged"]:
        found["saturated"] = s["saturated"] / s["judged"]
    if s["decided"]:
        found["accuracy"] = s["correct"] / s["judged"]
    return found


def line(metrics: dict[str, Any]) -> str:
    """The figures beside the progress bar."""
    shown = {
        "loss": "loss {:.4f}",
        "margin": "margin {:+.3f}",
        "z0": "z0 {:.3f}",
        "tokens_per_second": "{:,.0f} tokens/s",
        "utilisation": "{:.0%} of peak",
    }
    return "  ".join(text.format(metrics[name]) for name, text in shown.items() if name in metrics)


def both_fall(history: list[dict[str, Any]], window: int = 20, floor: float = -1.0) -> bool:
    """Whether the desirable answers' reward, too, has been below `floor` for the last `window` steps: the sign of too
    high a learning rate (arXiv 2402.01306 section 4.2)."""
    recent = [m["reward_desirable"] for m in history if m.get("reward_desirable") is not None][-window:]
    return len(recent) == window and max(recent) < floor

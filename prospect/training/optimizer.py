"""The optimizers and the learning rate over the run."""

from __future__ import annotations

import math
from typing import Any

import torch

from prospect.training.config import TrainConfig


def make_optimizer(parameters: list[tuple[str, torch.nn.Parameter]], config: TrainConfig) -> torch.optim.Optimizer:
    """AdamW, or the paper's RMSProp. Weight decay acts on matrices only: norms and biases have no scale to lose. Groups
    with "value_head" are those of a learned value."""
    groups: list[dict[str, Any]] = []
    for head in (False, True):
        mine = [p for name, p in parameters if name.startswith("value_head.") == head]
        for matrices, decay in ((True, config.weight_decay), (False, 0.0)):
            some = [p for p in mine if (p.ndim >= 2) == matrices]
            groups += [{"params": some, "weight_decay": decay, "value_head": head}] if some else []
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups)
    return torch.optim.AdamW(groups, betas=(config.adam_beta1, config.adam_beta2), fused=True)


def reserve(optimizer: torch.optim.Optimizer) -> None:
    """Make the state before the first step, as a step makes it that changes nothing and does not count.

    For CPUs: made in the first step, it would lie in the memory that this step's activations have just left, and the
    next step's would find no room between its pieces. A parameter that never has a gradient gets a state, too.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for state in optimizer.state.values():  # RMSprop has squared the weight decay, and both have counted the step
        for value in state.values():
            value.zero_()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def learning_rate(step: int, steps: int, peak: float, config: TrainConfig) -> float:
    """The rate of step 1..steps: linear warm-up to `peak`, then constant, or down to 0 at the end linearly or by
    cosine."""
    warm = config.warmup if config.warmup >= 1 else config.warmup * steps
    if step < warm:
        return peak * step / warm
    if config.decay == "constant" or steps <= warm:
        return peak
    passed = (step - warm) / (steps - warm + 1)
    return peak * (1 - passed if config.decay == "linear" else (1 + math.cos(math.pi * passed)) / 2)

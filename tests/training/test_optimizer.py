"""State that is made before the first step changes no step, and gradients are cut where they are too long."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prospect.training import loop
from prospect.training.config import from_dict
from prospect.training.optimizer import make_optimizer, reserve
from tests.helpers.training import MakeJob, thumbs


@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_a_reserved_state_takes_the_same_steps(optimizer: str) -> None:
    """To the same bits, with weight decay, and one parameter that never has a gradient."""
    config = from_dict({"optimizer": optimizer, "weight_decay": 0.1})
    ends = []
    for reserved in (True, False):
        torch.manual_seed(0)
        parameters = [(name, nn.Parameter(torch.randn(4, 3))) for name in ("matrix", "idle")]
        parameters.append(("vector", nn.Parameter(torch.randn(3))))
        before = [p.detach().clone() for _, p in parameters]
        found = make_optimizer(parameters, config)
        if reserved:
            reserve(found)
            assert all(torch.equal(p, old) and p.grad is None for (_, p), old in zip(parameters, before, strict=True))
            assert len(found.state) == 3
            assert not any(value.any() for state in found.state.values() for value in state.values())
        for group in found.param_groups:
            group["lr"] = 0.01
        for _ in range(3):
            for name, p in parameters:
                p.grad = None if name == "idle" else torch.randn_like(p)
            found.step()
        ends.append([p.detach() for _, p in parameters])
        assert not torch.equal(ends[-1][0], before[0]) and torch.equal(ends[-1][1], before[1])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_rates_stay() -> None:
    found = make_optimizer([("w", nn.Parameter(torch.ones(2, 2)))], from_dict({}))
    found.param_groups[0]["lr"] = 0.5
    reserve(found)
    assert found.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("share", [0.25, 4.0, float("inf")])
def test_a_gradient_is_cut_to_the_clip(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """`clip` at so many times the norm: its length is the smaller of both, its direction stays; below it, every bit."""
    taken: list[list[Tensor]] = []

    class Recorder(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            taken.append([p.grad.clone() for group in self.param_groups for p in group["params"]])

    monkeypatch.setattr(loop, "make_optimizer", lambda parameters, _: Recorder([p for _, p in parameters]))
    monkeypatch.setattr(loop, "reserve", lambda _: None)
    loop.fit(make_job(thumbs(8), "whole", clip=1e9))
    norm = float(torch.cat([g.flatten() for g in taken[0]]).norm())
    loop.fit(make_job(thumbs(8), "cut", clip=share * norm))
    whole, cut = (torch.cat([g.flatten() for g in grads]) for grads in taken)
    if share > 1:
        assert torch.equal(whole, cut)
    else:
        torch.testing.assert_close(cut, share * whole, rtol=1e-5, atol=0)

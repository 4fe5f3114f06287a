"""The exact KL of reference and policy at every token, with its gradient, a part of the vocabulary's rows at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prospect.engine import head
from prospect.engine.lora import LoraSpec, attach_lora
from prospect.engine.packing import Branches, forward
from prospect.engine.policy import Policy
from prospect.engine.reference import LiveReference, reference_kl, token_kl

Build = Callable[..., Any]
SHAPES = [(5, [3, 1, 4]), (1, [6]), (9, [2, 2])]


def moved(policy: Policy) -> LiveReference:
    """The weights as they are, before they are moved."""
    live = LiveReference(policy)
    torch.manual_seed(1)
    with torch.no_grad():
        for _, p in policy.trainable():
            p.add_(0.05 * torch.randn_like(p))
    return live


def whole(policy: Policy, branches: list[Branches]) -> Tensor:
    """All log-probs at every completion token (M, V) by the model's own forward, one sequence at a time."""
    every = []
    for tree in branches:
        for completion in tree.completions:
            ids = torch.tensor([[*tree.prompt.tolist(), *completion.tolist()]])
            logits = policy.model(input_ids=ids).logits[0].double()
            every.append(logits.log_softmax(-1)[len(tree.prompt) - 1 : -1])
    return torch.cat(every)


def gradient(policy: Policy, values: Tensor) -> dict[str, Tensor]:
    """Of a weighted sum of the values, so that no token stands for another."""
    weights = torch.sin(torch.arange(len(values))).to(values)
    policy.model.zero_grad()
    (values * weights).sum().backward(retain_graph=True)
    return {name: p.grad.to_dense().clone() for name, p in policy.trainable() if p.grad is not None}


@pytest.mark.parametrize("rows", [3, 1000])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "cohere", "lora", "lora head"])
def test_kl_of_reference_and_policy(
    tiny: Build, trees: Build, monkeypatch: pytest.MonkeyPatch, name: str, rows: int
) -> None:
    """Values and gradients are those of the whole distributions, however many rows of logits are held at once; the
    policy's own weights are back in place."""
    policy, branches = tiny("llama" if name.startswith("lora") else name, "fp64"), trees(SHAPES)
    if name.startswith("lora"):
        attach_lora(
            policy, LoraSpec(r=4, targets=("lm_head", "q_proj") if name == "lora head" else ("q_proj",)), seed=0
        )
    monkeypatch.setitem(head.CHUNK, "cpu", rows * policy.head.vocabulary)
    live = moved(policy)
    with torch.no_grad(), live.in_place():
        theirs = whole(policy, branches)
    mine = whole(policy, branches)
    expected = (theirs.exp() * (theirs - mine)).sum(-1), (mine.exp() * (mine - theirs)).sum(-1)
    before = {key: p.detach().clone() for key, p in policy.trainable()}

    hidden = forward(policy, branches, want_hidden=True).hidden
    values = reference_kl(policy, live, branches, hidden), token_kl(policy, live, branches)[0]
    for got, wanted in zip(values, expected, strict=True):
        assert got.sum() > 0
        rough = 1e5 if name in ("gemma2", "cohere") else 1.0  # their own forward normalises in float32
        torch.testing.assert_close(got, wanted, rtol=1e-10 * rough, atol=1e-12 * rough)
        slopes, right = gradient(policy, got), gradient(policy, wanted)
        assert slopes.keys() == right.keys() and slopes
        for key in slopes:
            torch.testing.assert_close(slopes[key], right[key], rtol=1e-9 * rough, atol=1e-11 * rough, msg=key)
    assert all(torch.equal(p, before[key]) for key, p in policy.trainable())


def test_nothing_has_moved_nothing_is_lost(tiny: Build, trees: Build) -> None:
    """Where the policy is the reference, the KL is 0, and so is its gradient."""
    policy, branches = tiny("llama", "fp64"), trees(SHAPES)
    hidden = forward(policy, branches, want_hidden=True).hidden
    values = reference_kl(policy, LiveReference(policy), branches, hidden)
    assert values.abs().max() < 1e-14
    assert max(g.abs().max() for g in gradient(policy, values).values()) < 1e-14


def test_backward_holds_a_chunk_of_logits(tiny: Build, trees: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward leaves no numbers of (tokens x vocabulary) behind for backward, and neither wants more than ten rows of
    logits at once."""
    policy, branches = tiny("llama", "fp64"), trees([(4, [60, 60])])
    monkeypatch.setitem(head.CHUNK, "cpu", 10 * policy.head.vocabulary)
    live = moved(policy)
    hidden = forward(policy, branches, want_hidden=True).hidden
    at_once: list[int] = []
    logits = head.Head.logits

    def count(self: head.Head, states: Tensor, **options: Any) -> Tensor:
        at_once.append(len(states))
        return logits(self, states, **options)

    def kept(work: Callable[[], Tensor]) -> int:
        """Rows of the vocabulary's width that the graph of `work` keeps."""
        rows = 0

        def pack(saved: Tensor) -> Tensor:
            nonlocal rows
            rows += len(saved) if saved.shape[1:] == (policy.head.vocabulary,) else 0
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            work().sum().backward(retain_graph=True)
        return rows

    def all_at_once() -> Tensor:
        return policy.head.logits(hidden, compute_dtype=torch.float64).log_softmax(-1).exp()

    assert kept(all_at_once) >= len(hidden) == 120
    monkeypatch.setattr(head.Head, "logits", count)
    assert kept(lambda: reference_kl(policy, live, branches, hidden)) == 0
    assert set(at_once) == {10} and len(at_once) == 4 * 12, "of both models, forward and again backward"

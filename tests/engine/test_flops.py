"""Operations counted by hand, and utilisation in every run's log (test_loop)."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from prospect.engine.device import matmul_peak
from prospect.engine.packing import Branches, forward, forward_more, forward_padded, pack
from prospect.engine.policy import Policy, cost_of

BODY = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)  # q; k and v of 2 heads of 8; o; gate, up, down; 2 layers
HEAD = 101 * 32
PAIR = 2 * 4 * 8 * 2
"""Attention's multiplications for a query and a key: scores and sums, 4 heads of 8, 2 layers."""


def spent(policy: Policy, work: Callable[[], object]) -> float:
    before = policy.flops
    work()
    return policy.flops - before


def test_by_hand(tiny: Callable[..., Policy], trees: Callable[..., list[Branches]]) -> None:
    """A prompt of 3, answers of 2 and 4 tokens: 3 + 1 + 3 tokens computed, 6 predicted; pairs of a query and a key that
    it sees: 1 + 2 + 3 in the prompt, 4 in the first answer, 4 + 5 + 6 in the second."""
    policy, tree = tiny("llama"), trees([(3, [2, 4])])
    forward_only = 2 * (BODY * 7 + HEAD * 6 + PAIR * (6 + 4 + 15))
    assert pack(tree).segments.pairs == 25
    with torch.no_grad():
        assert spent(policy, lambda: forward(policy, tree)) == forward_only
    assert spent(policy, lambda: forward(policy, tree)) == 3 * forward_only
    padded = 2 * (BODY * 2 * 6 + HEAD * 6 + PAIR * 2 * 21)  # two rows of 6
    with torch.no_grad():
        assert spent(policy, lambda: forward_padded(policy, tree)) == padded


def test_remembered_prompts_cost_nothing_again(
    tiny: Callable[..., Policy], trees: Callable[..., list[Branches]]
) -> None:
    policy, tree = tiny("llama"), trees([(3, [2, 4])])
    found = forward(policy, tree, want_prompts=True)
    assert found.prompts is not None
    more = spent(policy, lambda: forward_more(policy, found.prompts, [tree[0].completions[1:]]))
    assert more == 2 * (BODY * 3 + HEAD * 4 + PAIR * 15)


def test_frozen_weights_cost_half_of_backward(
    tiny: Callable[..., Policy], trees: Callable[..., list[Branches]]
) -> None:
    policy, tree = tiny("llama"), trees([(3, [2, 4])])
    policy.model.requires_grad_(False)
    gate = policy.decoder.layers[0].mlp.gate_proj.weight.requires_grad_()
    policy.adopt(policy.model)
    own = 2 * (BODY * 7 + HEAD * 6 + PAIR * 25)
    assert spent(policy, lambda: forward(policy, tree)) == 2 * own + 2 * (gate.numel() * 7 + PAIR * 25)


def test_of_experts_only_the_chosen_count(tiny: Callable[..., Policy]) -> None:
    """Two of four experts; the router is met by every token."""
    policy = tiny("mixtral")
    experts = sum(p.numel() for n, p in policy.decoder.named_parameters() if "expert" in n)
    every = sum(p.numel() for n, p in policy.decoder.named_parameters() if p.ndim > 1 and "embed" not in n)
    assert experts > 0
    assert policy.cost.body == pytest.approx(every - experts / 2)


def test_the_peak_is_measured_once() -> None:
    found = matmul_peak(torch.device("cpu"), torch.float32)
    assert 1e8 < found < 1e15
    assert matmul_peak(torch.device("cpu"), torch.float32) == found


def test_models_of_other_kinds_have_a_cost() -> None:
    """Without attention, or with experts chosen layer by layer: half of eight met on average."""
    layer = torch.nn.Module()
    layer.experts = torch.nn.Linear(4, 6, bias=False)
    words, head = torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False)
    plain = cost_of(layer, words, head, SimpleNamespace(num_hidden_layers=2, hidden_size=4))
    assert (plain.body, plain.head, plain.attention) == (24, 20, 0)
    config = SimpleNamespace(num_hidden_layers=2, hidden_size=4, num_attention_heads=2, num_experts=8)
    config.num_experts_per_tok = [2, 6]
    mixed = cost_of(layer, words, head, config)
    assert (mixed.body, mixed.attention) == (12, 2 * 2 * 2 * 2)

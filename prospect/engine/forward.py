"""The engine's front door: trees of token ids in, the log-prob of every completion token out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prospect.engine.forest import Branches, Output, pack
from prospect.engine.padded import forward_padded

if TYPE_CHECKING:
    from prospect.engine.models import Policy

__all__ = ["Branches", "Output", "forward", "forward_padded", "forward_tree"]


def forward(
    policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False, want_hidden: bool = False
) -> Output:
    """Score the completions of at least one tree on the path that the checks at load allow.

    Gradients flow to every trainable parameter; call it under `torch.no_grad()` where none is wanted.
    """
    longest = max(len(tree.prompt) + max(map(len, tree.completions)) for tree in trees)
    if policy.path == "tree" and longest <= policy.checked_length:
        return forward_tree(policy, trees, want_sum_p2=want_sum_p2, want_hidden=want_hidden)
    return forward_padded(policy, trees, want_sum_p2=want_sum_p2, want_hidden=want_hidden)


def forward_tree(
    policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False, want_hidden: bool = False
) -> Output:
    """Score packed trees: no padding, every prompt computed once."""
    forest = pack(trees, policy.device)
    inputs = {"input_ids": forest.input_ids, "position_ids": forest.position_ids, "segments": forest.segments}
    with policy.tree_attention():
        scores = policy.score(inputs, forest.predict, forest.targets, want_sum_p2=want_sum_p2, want_hidden=want_hidden)
    return Output(scores.logp, forest.offsets, scores.sum_p2, scores.hidden)

"""The engine's front door: trees of token ids in, the log-prob of every completion token out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prospect.engine.attention import Memory
from prospect.engine.packing import (
    Branches,
    Forest,
    Ids,
    Output,
    Prompts,
    pack,
    pack_more,
)
from prospect.engine.padded import forward_padded
from prospect.engine.transfer import move

if TYPE_CHECKING:
    from prospect.engine.policy import Policy, Scored

__all__ = ["Branches", "Output", "forward", "forward_more", "forward_padded", "forward_tree", "on_trees"]


def forward(
    policy: Policy,
    trees: Sequence[Branches],
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    want_prompts: bool = False,
) -> Output:
    """Score the completions of at least one tree on the path that the checks at load allow.

    Gradients flow to every trainable parameter; call it under `torch.no_grad()` where none is wanted. Prompts are
    remembered only where `on_trees` holds.
    """
    if on_trees(policy, trees):
        return forward_tree(policy, trees, want_sum_p2=want_sum_p2, want_hidden=want_hidden, want_prompts=want_prompts)
    return forward_padded(policy, trees, want_sum_p2=want_sum_p2, want_hidden=want_hidden)


def on_trees(policy: Policy, trees: Sequence[Branches]) -> bool:
    """Whether these are computed as packed trees."""
    longest = max(len(tree.prompt) + max(map(len, tree.completions)) for tree in trees)
    return policy.path == "tree" and longest <= policy.checked_length


def forward_tree(
    policy: Policy,
    trees: Sequence[Branches],
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    want_prompts: bool = False,
) -> Output:
    """Score packed trees: no padding, every prompt computed once."""
    memory = Memory() if want_prompts else None
    forest = pack(trees, policy.device, memory)
    scores = _score(policy, forest, want_sum_p2=want_sum_p2, want_hidden=want_hidden or want_prompts)
    prompts = None
    if memory is not None and scores.hidden is not None:
        memory.full = True
        counts = np.array([len(tree.completions) for tree in trees])
        first = np.cumsum(counts) - counts
        last = scores.hidden.detach()[move(forest.offsets[first], policy.device)]
        prompts = Prompts(
            forest.segments.prompt_starts[first], forest.segments.prompt_lengths[first], last, memory, forest.tokens
        )
    return Output(scores.logp, forest.offsets, scores.sum_p2, scores.hidden if want_hidden else None, prompts)


def forward_more(policy: Policy, prompts: Prompts, completions: Sequence[Sequence[Ids]]) -> Output:
    """Score other completions, without gradient, of prompts that a pass of `forward_tree` with the same weights
    remembers: `completions[k]` are prompt k's, maybe none, in all at least one."""
    forest = pack_more(prompts, completions, policy.device)
    with torch.no_grad():
        scores = _score(policy, forest, before=prompts.last)
    return Output(scores.logp, forest.offsets)


def _score(
    policy: Policy,
    forest: Forest,
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    before: torch.Tensor | None = None,
) -> Scored:
    inputs = {"input_ids": forest.input_ids, "position_ids": forest.position_ids, "segments": forest.segments}
    with policy.tree_attention():
        return policy.score(
            inputs, forest.predict, forest.targets, want_sum_p2=want_sum_p2, want_hidden=want_hidden, before=before
        )

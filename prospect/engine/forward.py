"""The engine's front door: trees of token ids in, the log-prob of every completion token out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prospect.engine.attention import KeyValues
from prospect.engine.packing import (
    Branches,
    Ids,
    Packed,
    PromptCache,
    TokenLogps,
    pack,
    pack_more,
    to_tensor,
)
from prospect.engine.transfer import move

if TYPE_CHECKING:
    from prospect.engine.policy import Policy, TargetScores


def forward(
    policy: Policy,
    trees: Sequence[Branches],
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    want_prompts: bool = False,
) -> TokenLogps:
    """Score the completions of at least one tree on the path that the checks at load allow.

    Gradients flow to every trainable parameter; call it under `torch.no_grad()` where none is wanted. PromptCache are
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
) -> TokenLogps:
    """Score packed trees: no padding, every prompt computed once."""
    memory = KeyValues() if want_prompts else None
    forest = pack(trees, policy.device, memory)
    scores = _score(policy, forest, want_sum_p2=want_sum_p2, want_hidden=want_hidden or want_prompts)
    prompts = None
    if memory is not None and scores.hidden is not None:
        memory.full = True
        counts = np.array([len(tree.completions) for tree in trees])
        first = np.cumsum(counts) - counts
        last = scores.hidden.detach()[move(forest.offsets[first], policy.device)]
        prompts = PromptCache(
            forest.segments.prompt_starts[first], forest.segments.prompt_lengths[first], last, memory, forest.tokens
        )
    return TokenLogps(scores.logp, forest.offsets, scores.sum_p2, scores.hidden if want_hidden else None, prompts)


def forward_more(policy: Policy, prompts: PromptCache, completions: Sequence[Sequence[Ids]]) -> TokenLogps:
    """Score other completions, without gradient, of prompts that a pass of `forward_tree` with the same weights
    remembers: `completions[k]` are prompt k's, maybe none, in all at least one."""
    forest = pack_more(prompts, completions, policy.device)
    with torch.no_grad():
        scores = _score(policy, forest, before=prompts.last)
    return TokenLogps(scores.logp, forest.offsets)


def _score(
    policy: Policy,
    forest: Packed,
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    before: torch.Tensor | None = None,
) -> TargetScores:
    inputs = {"input_ids": forest.input_ids, "position_ids": forest.position_ids, "segments": forest.segments}
    with policy.tree_attention():
        return policy.score(
            inputs, forest.predict, forest.targets, want_sum_p2=want_sum_p2, want_hidden=want_hidden, before=before
        )


def forward_padded(
    policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False, want_hidden: bool = False
) -> TokenLogps:
    """Score the completions of at least one tree, in the order given; the contract of `forward`."""
    rows = [(tree.prompt, completion) for tree in trees for completion in tree.completions]
    lengths = [len(prompt) + len(completion) - 1 for prompt, completion in rows]
    input_ids = np.zeros((len(rows), max(lengths)), np.int64)
    for ids, length, (prompt, completion) in zip(input_ids, lengths, rows, strict=True):
        ids[:length] = np.concatenate([prompt, completion[:-1]])
    inputs = {
        "input_ids": to_tensor(input_ids, policy.device),
        "attention_mask": to_tensor(np.arange(max(lengths)) < np.array(lengths)[:, None], policy.device),
    }
    starts = np.arange(len(rows)) * max(lengths)
    predict = [s + np.arange(len(p) - 1, n) for s, n, (p, _) in zip(starts, lengths, rows, strict=True)]
    scores = policy.score(
        inputs,
        to_tensor(np.concatenate(predict), policy.device),
        to_tensor(np.concatenate([completion for _, completion in rows]), policy.device),
        want_sum_p2=want_sum_p2,
        want_hidden=want_hidden,
    )
    offsets = np.cumsum([0, *(len(completion) for _, completion in rows)])
    return TokenLogps(scores.logp, torch.from_numpy(offsets), scores.sum_p2, scores.hidden)

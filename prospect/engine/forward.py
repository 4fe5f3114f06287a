"""The engine's front door: trees of token ids in, the log-prob of every completion token out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prospect.data.textids import Ids
from prospect.engine.packing import (
    Branches,
    KeyValues,
    Packed,
    PromptCache,
    TokenLogps,
    move,
    move_all,
    pack,
    pack_more,
)

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
) -> TokenLogps:
    """Score packed trees: no padding, every prompt computed once."""
    key_values = KeyValues() if want_prompts else None
    packed = pack(trees, policy.device, key_values)
    scores = _score(policy, packed, want_sum_p2=want_sum_p2, want_hidden=want_hidden or want_prompts)
    prompts = None
    if key_values is not None and scores.hidden is not None:
        key_values.full = True
        counts = np.array([len(tree.completions) for tree in trees])
        first = np.cumsum(counts) - counts
        last_hidden = scores.hidden.detach()[move(packed.offsets[first], policy.device)]
        starts, lengths = packed.segments.prompt_starts[first], packed.segments.prompt_lengths[first]
        prompts = PromptCache(starts, lengths, last_hidden, key_values, packed.tokens)
    return TokenLogps(scores.logp, packed.offsets, scores.sum_p2, scores.hidden if want_hidden else None, prompts)


def forward_more(policy: Policy, prompts: PromptCache, completions: Sequence[Sequence[Ids]]) -> TokenLogps:
    """Score other completions, without gradient, of prompts that a pass of `forward_tree` with the same weights
    remembers: `completions[k]` are prompt k's, maybe none, in all at least one."""
    packed = pack_more(prompts, completions, policy.device)
    with torch.no_grad():
        scores = _score(policy, packed, before=prompts.last_hidden)
    return TokenLogps(scores.logp, packed.offsets)


def _score(
    policy: Policy,
    packed: Packed,
    *,
    want_sum_p2: bool = False,
    want_hidden: bool = False,
    before: Tensor | None = None,
) -> TargetScores:
    inputs = {"input_ids": packed.input_ids, "position_ids": packed.position_ids, "segments": packed.segments}
    wants = {"want_sum_p2": want_sum_p2, "want_hidden": want_hidden}
    with policy.tree_attention():
        return policy.score(inputs, packed.predict, packed.targets, packed.segments.pairs, **wants, before=before)


def forward_padded(
    policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False, want_hidden: bool = False
) -> TokenLogps:
    """The slow oracle, with the contract of `forward`: every prompt with one completion is a right-padded row under the
    model's own attention. Trees are checked against it, and models that cannot be trusted with trees run on it."""
    rows = [(tree.prompt, completion) for tree in trees for completion in tree.completions]
    lengths = [len(prompt) + len(completion) - 1 for prompt, completion in rows]
    longest = max(lengths)
    input_ids = np.zeros((len(rows), longest), np.int64)
    for ids, length, (prompt, completion) in zip(input_ids, lengths, rows, strict=True):
        ids[:length] = np.concatenate([prompt, completion[:-1]])
    mask = np.arange(longest) < np.array(lengths)[:, None]
    starts = np.arange(len(rows)) * longest
    predict = [s + np.arange(len(p) - 1, n) for s, n, (p, _) in zip(starts, lengths, rows, strict=True)]
    targets = [completion for _, completion in rows]
    arrays = [input_ids, mask, np.concatenate(predict), np.concatenate(targets)]
    tokens, attention_mask, index, to_score = move_all(arrays, policy.device, np.int64)
    inputs = {"input_ids": tokens, "attention_mask": attention_mask}
    pairs = len(rows) * longest * (longest + 1) // 2
    scores = policy.score(inputs, index, to_score, pairs, want_sum_p2=want_sum_p2, want_hidden=want_hidden)
    offsets = np.cumsum([0, *map(len, targets)])
    return TokenLogps(scores.logp, torch.from_numpy(offsets), scores.sum_p2, scores.hidden)

"""The slow oracle: every (prompt, completion) is one right-padded row under the model's own attention. The tree path is
checked against it, and models that cannot be trusted with trees run on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prospect.engine.packing import Branches, Output, to_tensor

if TYPE_CHECKING:
    from prospect.engine.policy import Policy


def forward_padded(
    policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False, want_hidden: bool = False
) -> Output:
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
    return Output(scores.logp, torch.from_numpy(offsets), scores.sum_p2, scores.hidden)

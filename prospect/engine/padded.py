"""The slow oracle: every (prompt, completion) one right-padded row, the model's own attention. What the tree path is checked
against, and what models run on that no tree can be trusted with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from prospect.engine.forest import Branches, Output

if TYPE_CHECKING:
    from prospect.engine.models import Policy


def forward_padded(policy: Policy, trees: Sequence[Branches], *, want_sum_p2: bool = False) -> Output:
    """Token log-probs of every completion, in the order given; same contract as `forward`."""
    rows = [(tree.prompt, completion) for tree in trees for completion in tree.completions]
    lengths = np.array([len(c) for _, c in rows], np.int64)
    width = max((len(p) + len(c) for p, c in rows), default=0) - 1
    input_ids = np.zeros((len(rows), width), np.int64)
    attention_mask = np.zeros_like(input_ids)
    predict, targets = [], []
    for i, (prompt, completion) in enumerate(rows):
        length = len(prompt) + len(completion) - 1
        input_ids[i, :length] = np.concatenate([prompt, completion[:-1]])
        attention_mask[i, :length] = 1
        predict.append(i * width + np.arange(len(prompt) - 1, length))
        targets.append(completion)
    empty = np.zeros(0, np.int64)
    logp, sum_p2 = policy.score(
        {
            "input_ids": torch.from_numpy(input_ids).to(policy.device),
            "attention_mask": torch.from_numpy(attention_mask).to(policy.device),
        },
        torch.from_numpy(np.concatenate([empty, *predict])).to(policy.device),
        torch.from_numpy(np.concatenate([empty, *targets])).to(policy.device),
        want_sum_p2=want_sum_p2,
    )
    return Output(logp, torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])), sum_p2)

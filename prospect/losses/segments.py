"""Sums and means over completions that lie one behind the other in one row of tokens.

Completion k's tokens are token_x[offsets[k] : offsets[k + 1]]; `offsets` is (N+1,) int64 and starts at 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_index(offsets: Tensor, like: Tensor) -> Tensor:
    """The number of the completion that each token belongs to, (T,), on the device of `like`."""
    lengths = offsets.diff().to(like.device)
    # With the number of tokens told, a device needs not be asked for it.
    return torch.repeat_interleave(torch.arange(len(lengths), device=like.device), lengths, output_size=len(like))


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sums of consecutive runs of `values` (T, ...), bounded by `offsets` (N+1,): (N, ...).

    Every run is added in one fixed order. (index_add adds in any order on CUDA, so that no two sums are the same.)
    """
    lengths = offsets.diff().to(values.device)
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Means of such runs: (N, ...). An empty run has no mean: NaN."""
    lengths = offsets.diff().to(values.device)
    return segment_sum(values, offsets) / lengths.view(-1, *[1] * (values.ndim - 1))

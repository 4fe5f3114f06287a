"""Attention as matrix products, for CPUs, whose fused kernel is slow at short sequences and in bfloat16.

Queries go in blocks, so that the scores of a block stay in the cache, and under a causal mask the keys behind a block
are never touched. Backward finds the weights kept, in the dtype of the values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = 128
"""Queries at once."""
PLAIN_KEYS = 1024
"""Keys up to which this beats the fused kernel, forward and backward together (`python -m
benchmarks.attention`: in bfloat16 by 3.6 at 60 and 1.4 at 1000; in float32 by 1.1 to 1.3). Beyond, its memory would
grow by their square."""


def plain_is_faster(query: Tensor, key: Tensor) -> bool:
    """Both (B, H, length, D)."""
    return query.device.type == "cpu" and key.shape[2] <= PLAIN_KEYS


def plain_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """softmax(scaling * q k^T, where mask) v: query (B, H, Q, D), key and value (B, H, K, D), mask (B, 1, Q, K) bool or
    None for query i seeing the keys up to i -> (B, H, Q, D). Scores and softmax are float32 at least."""
    found: Tensor = _Plain.apply(query, key, value, mask, scaling)  # type: ignore[no-untyped-call]
    return found


class _Plain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Any:
        wide = torch.promote_types(query.dtype, torch.float32)
        q, k, v = (x.flatten(0, 1) for x in (query, key, value))
        output, kept = v.new_empty(*q.shape[:2], v.shape[2]), []
        with torch.autocast(query.device.type, enabled=False):
            q_wide, k_wide = q.to(wide) * scaling, k.to(wide).transpose(1, 2)
            for rows, keys in _blocks(q, k, mask is None):
                scores = q_wide[:, rows] @ k_wide[:, :, keys]
                if mask is None:
                    scores[:, :, rows].add_(_hidden(torch.ones_like(scores[0, :, rows], dtype=torch.bool).tril(), wide))
                else:
                    # Adding the small mask once made is several times faster than filling by a broadcast one.
                    scores.unflatten(0, query.shape[:2]).add_(_hidden(mask[:, :, rows], wide))
                weights = scores.softmax(-1).to(v.dtype)
                output[:, rows] = weights @ v[:, keys]
                if any(ctx.needs_input_grad):
                    kept.append(weights)
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scaling, ctx.causal, ctx.shape = scaling, mask is None, query.shape[:2]
        return output.unflatten(0, query.shape[:2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *kept = ctx.saved_tensors
        g = grad.flatten(0, 1)
        wide = torch.promote_types(q.dtype, torch.float32)
        by_query = torch.empty_like(q)
        by_key, by_value = (torch.zeros_like(x, dtype=wide) for x in (k, v))
        with torch.autocast(q.device.type, enabled=False):
            for (rows, keys), weights in zip(_blocks(q, k, ctx.causal), kept, strict=True):
                by_value[:, keys] += weights.transpose(1, 2) @ g[:, rows]
                p = weights.to(wide)
                by_weights = (g[:, rows] @ v[:, keys].transpose(1, 2)).to(wide)
                by_scores = by_weights.sub_((by_weights * p).sum(-1, keepdim=True)).mul_(p).mul_(ctx.scaling)
                narrow = by_scores.to(q.dtype)
                by_query[:, rows] = narrow @ k[:, keys]
                by_key[:, keys] += narrow.transpose(1, 2) @ q[:, rows]
        found = (by_query, by_key.to(k.dtype), by_value.to(v.dtype))
        return *(x.unflatten(0, ctx.shape) for x in found), None, None


def _blocks(query: Tensor, key: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Queries and the keys that they may see, of states (B * H, length, D)."""
    for begin in range(0, query.shape[1], BLOCK):
        end = min(begin + BLOCK, query.shape[1])
        yield slice(begin, end), slice(0, end if causal else key.shape[1])


def _hidden(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores: 0 where the mask is True, else minus infinity."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))

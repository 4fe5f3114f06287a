"""Tree attention in plain PyTorch, on CPUs and for whatever flash does not take: segment after segment, of its queries
a block at a time, whose scores stay in a CPU's cache. Keys behind a block are never touched.

Backward computes the weights again: nothing is kept that grows by the square of a length. The longest segments get
PyTorch's fused kernel, which is slow on short ones (`python -m benchmarks.attention`).

Shapes: T tokens with queries, S with keys, H query heads, G key heads of size D; a block has Q queries and K keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine.packing import Span

QUERIES = 192
"""Queries of a block."""
FUSED = 1024
"""Tokens of a segment from which the fused kernel is as fast."""


class Scoring(NamedTuple):
    """How a query scores a key, `softcap * tanh(scaling * q k / softcap)`, of states rounded to `dtype`. A query sees
    its own key and the `window` - 1 before, with None all before."""

    dtype: torch.dtype
    scaling: float
    window: int | None = None
    softcap: float | None = None

    @property
    def wide(self) -> torch.dtype:
        """The dtype of products and sums."""
        return torch.promote_types(self.dtype, torch.float32)


class Block(NamedTuple):
    """Queries of one segment, and the keys that one of them may see, up to the last query's own: of the prompt, then of
    the branch; `before` of them stand before the first query's own."""

    queries: slice
    keys: tuple[slice, ...]
    before: int


def attend_blocks(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scoring: Scoring) -> Tensor:
    """query (1, H, T, D), key and value (1, G, T or more, D) -> (1, T, H, D) in `scoring.dtype`. Spans come in the
    row's order, and every query is one span's own. Where there are more keys than queries, the last T are theirs."""
    past = key.shape[2] - query.shape[2]
    fusable = scoring.softcap is None and query.shape[3] == value.shape[3]

    def is_fused(span: Span) -> bool:
        sees_all = scoring.window is None or scoring.window >= span.length
        return fusable and sees_all and not span.prompt and span.length >= FUSED

    parts: list[Tensor] = []
    for fused, run in groupby(spans, is_fused):
        some = tuple(run)
        if fused:
            parts += [_fused(query, key, value, span, past, scoring) for span in some]
        else:
            begin, end = some[0].start - past, some[-1].start + some[-1].length - past
            every = tuple(blocks(some, past + begin, scoring.window))
            part: Any = _Attention.apply(query[:, :, begin:end], key, value, every, scoring)  # type: ignore[no-untyped-call]
            parts.append(part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _fused(query: Tensor, key: Tensor, value: Tensor, span: Span, past: int, scoring: Scoring) -> Tensor:
    """One segment that needs no prompt, (1, length, H, D)."""
    q = query.narrow(2, span.start - past, span.length).to(scoring.dtype)
    k, v = (states.narrow(2, span.start, span.length).to(scoring.dtype) for states in (key, value))
    shared = q.shape[1] != k.shape[1]
    output = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scoring.scaling, enable_gqa=shared)
    return output.transpose(1, 2)


def blocks(spans: Iterable[Span], past: int, window: int | None) -> Iterator[Block]:
    """All queries of the spans. They count from `past` on, keys from 0."""
    for prompt_start, prompt, start, length in spans:
        for begin in range(0, length, QUERIES):
            end = min(begin + QUERIES, length)
            unseen = 0 if window is None else max(0, prompt + begin + 1 - window)
            of_prompt = slice(prompt_start + unseen, prompt_start + prompt)
            own = slice(start + max(0, unseen - prompt), start + end)
            keys = (of_prompt, own) if unseen < prompt else (own,)
            yield Block(slice(start + begin - past, start + end - past), keys, prompt + begin - unseen)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, every: tuple[Block, ...], scoring: Scoring
    ) -> Tensor:
        q, k, v = (states[0].to(scoring.dtype) for states in (query, key, value))
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.scoring, ctx.dtypes = every, scoring, [x.dtype for x in (query, key, value)]
        output = q.new_empty(q.shape[1], q.shape[0], v.shape[2])
        with torch.autocast(q.device.type, enabled=False):
            for block in every:
                weights, *_ = _weights(q, k, block, scoring)
                output[block.queries] = (
                    torch.bmm(weights, _keys(v, block, scoring.wide)).view(len(q), -1, v.shape[2]).transpose(0, 1)
                )
        return output[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v), scoring, by_output = ctx.saved_tensors, ctx.scoring, grad[0].transpose(0, 1)
        by_query = torch.empty_like(q, dtype=ctx.dtypes[0])
        by_key, by_value = (torch.zeros_like(states, dtype=scoring.wide) for states in (k, v))
        with torch.autocast(q.device.type, enabled=False):
            for block in ctx.blocks:
                weights, bent, queries, keys = _weights(q, k, block, scoring)
                pull = _queries(by_output, block, len(k), scoring.wide)
                slope = torch.bmm(pull, _keys(v, block, scoring.wide).transpose(1, 2))
                slope.sub_((slope * weights).sum(-1, keepdim=True)).mul_(weights)
                if bent is not None:
                    slope.mul_(1 - bent.square())
                by_query[:, block.queries] = torch.bmm(slope, keys).mul_(scoring.scaling).view(len(q), -1, q.shape[2])
                _add(by_key, block, torch.bmm(slope.transpose(1, 2), queries))
                _add(by_value, block, torch.bmm(weights.transpose(1, 2), pull))
        grads = zip((by_query, by_key, by_value), ctx.dtypes, strict=True)
        return *(states[None].to(dtype) for states, dtype in grads), None, None


def _weights(q: Tensor, k: Tensor, block: Block, scoring: Scoring) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of a block the weights (G, H / G * Q, K), tanh of soft-capped scores, the scaled queries, and the keys."""
    queries, keys = _queries(q, block, len(k), scoring.wide) * scoring.scaling, _keys(k, block, scoring.wide)
    bent = None
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if scoring.softcap is not None:
        bent = scores.div_(scoring.softcap).tanh_()
        scores = bent * scoring.softcap
    size = keys.shape[1] - block.before
    by_head = scores.view(len(q), size, -1)
    by_head[:, :, block.before :].add_(_later(QUERIES, scoring.wide, q.device)[:size, :size])
    if scoring.window is not None and scoring.window < keys.shape[1]:
        too_early = torch.ones(by_head.shape[1:], dtype=torch.bool, device=q.device).tril(block.before - scoring.window)
        by_head.masked_fill_(too_early, float("-inf"))
    return scores.softmax(-1), bent, queries, keys


@lru_cache(8)
def _later(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What to add to the scores of a block's own keys: minus infinity where a key is later than the query."""
    return torch.full((size, size), float("-inf"), dtype=dtype, device=device).triu(1)


def _queries(states: Tensor, block: Block, key_heads: int, dtype: torch.dtype) -> Tensor:
    """(H, T, D) -> (G, H / G * Q, D): heads that share keys, one behind the other."""
    return states[:, block.queries].to(dtype).reshape(key_heads, -1, states.shape[2])


def _keys(states: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """(G, S, D) -> (G, K, D)"""
    parts = [states[:, rows].to(dtype) for rows in block.keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _add(total: Tensor, block: Block, part: Tensor) -> None:
    """Add what a block's keys get, (G, K, D), to (G, S, D)."""
    sizes = [rows.stop - rows.start for rows in block.keys]
    for rows, some in zip(block.keys, part.split(sizes, 1), strict=True):
        total[:, rows].add_(some)

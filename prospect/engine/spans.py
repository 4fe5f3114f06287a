"""Tree attention on a CPU: segment after segment, short ones of one shape together, as matrix products, because
PyTorch's fused kernel is slow there at short sequences and in bfloat16. The longest segments it gets, where it can.

Backward finds the weights of short segments kept, in the dtype of the inputs; it computes those of longer ones and of
soft-capped scores again. What is kept grows by the square of the length.

Shapes as in gather.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine.gather import (
    Block,
    Layout,
    Shape,
    Span,
    Spans,
)

KEPT_KEYS = 384
"""Keys of a segment up to which its weights are kept."""
FUSED_KEYS = 1024
"""Keys of a segment from which the fused kernel is as fast in bfloat16 (`python -m benchmarks.attention`; in float32 it
is at any length, and gets the same)."""


class How(NamedTuple):
    """Inputs are rounded to `dtype`, and so are weights; scores and softmax are float32 at least. A query sees its own
    key and the `window` - 1 before, None: all before."""

    dtype: torch.dtype
    scaling: float
    window: int | None = None
    softcap: float | None = None

    @property
    def wide(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)


def attend_spans(query: Tensor, key: Tensor, value: Tensor, spans: Spans, how: How) -> Tensor:
    """query (1, H, T, D), key and value (1, G, T or more, D) -> (1, T, H, D) in `how.dtype`. Spans come in the row's
    order, and every query is one span's own. Where there are more keys than queries, they are those of tokens in front
    of the first query."""
    fusable = how.softcap is None and query.shape[3] == value.shape[3]
    (heads, tokens), (key_heads, keys) = query.shape[1:3], key.shape[1:3]
    layout = spans.layout(Shape(heads, tokens, key_heads, keys, how.window, how.wide, FUSED_KEYS if fusable else None))
    output: Any = None  # where every span is a fused one
    if layout.blocks:
        output = _Attend.apply(query, key, value, layout, how)  # type: ignore[no-untyped-call]
    found: Tensor = _with_fused(query, key, value, layout.fused, how, output) if layout.fused else output
    return found


def _with_fused(
    query: Tensor, key: Tensor, value: Tensor, fused: Sequence[Span], how: How, others: Tensor | None
) -> Tensor:
    """What `others` (1, T, H, D) has of the row, and the `fused` spans in between, by the kernel of that name."""
    past = key.shape[2] - query.shape[2]
    key, value = key[:, :, past:], value[:, :, past:]
    edges = [0, *(edge - past for span in fused for edge in (span.own.start, span.own.stop)), query.shape[2]]
    sizes = [stop - start for start, stop in pairwise(edges)]  # what is between them, and they: every second one
    pieces: list[Any] = [None] * len(sizes) if others is None else list(others.split(sizes, 1))
    for n, states in enumerate(zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)):
        if n % 2:
            q, k, v = (x.to(how.dtype) for x in states)
            shared = q.shape[1] != k.shape[1]
            found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=how.scaling, enable_gqa=shared)
            pieces[n] = found.transpose(1, 2)
    return torch.cat([piece for piece in pieces if piece is not None], 1)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: Layout, how: How) -> Tensor:
        q, k, v = (
            by.take(x, how.dtype) for by, x in ((layout.queries, query), (layout.keys, key), (layout.keys, value))
        )
        output = q.new_zeros(len(q) + 1, v.shape[1])
        kept: list[Tensor] = []
        with torch.autocast("cpu", enabled=False):
            for block in layout.blocks:
                weights, _ = _weights(q, k, block, how)
                torch.bmm(weights, block.of_keys(v), out=block.of_queries(output))
                kept += [weights] if any(ctx.needs_input_grad) and _keeps(block, how) else []
        ctx.save_for_backward(q, k, v, *kept)
        ctx.layout, ctx.how, ctx.inputs = layout, how, [(x.shape[2], x.dtype) for x in (query, key, value)]
        return layout.queries.give(output, query.shape[2])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v, *saved), layout, how = ctx.saved_tensors, ctx.layout, ctx.how
        kept = iter(saved)
        pull = layout.queries.take(grad.transpose(1, 2), grad.dtype).index_fill_(0, layout.padding, 0)
        by_query = q.new_zeros(len(q) + 1, q.shape[1])
        by_key, by_value = (x.new_zeros(len(x) + 1, x.shape[1], dtype=how.wide) for x in (k, v))
        with torch.autocast("cpu", enabled=False):
            for block in layout.blocks:
                w, bent = (next(kept), None) if _keeps(block, how) else _weights(q, k, block, how)
                g = block.of_queries(pull)
                slope = torch.bmm(g, block.of_keys(v).transpose(1, 2)).to(how.wide)
                # The mean from the same rounded numbers: where a query sees one key, the rest is 0 and not a rounding.
                slope.sub_((slope * w).sum(-1, keepdim=True)).mul_(w)
                if bent is not None:
                    slope *= 1 - bent.square()
                narrow = slope.to(how.dtype)
                torch.bmm(narrow, block.of_keys(k), out=block.of_queries(by_query))
                block.of_keys(by_key).add_(torch.bmm(narrow.transpose(1, 2), block.of_queries(q)))
                block.of_keys(by_value).add_(torch.bmm(w.transpose(1, 2), g))
        places = ((by_query, layout.queries), (by_key, layout.keys), (by_value, layout.keys))
        found = [by.give(x, n).to(how.wide) for (x, by), (n, _) in zip(places, ctx.inputs, strict=True)]
        for x in found[:2]:
            x *= how.scaling
        return *(x.transpose(1, 2).to(dtype) for x, (_, dtype) in zip(found, ctx.inputs, strict=True)), None, None


def _weights(q: Tensor, k: Tensor, block: Block, how: How) -> tuple[Tensor, Tensor | None]:
    """(n * G, H / G * Q, K) in `how.dtype`, of all queries and keys; and tanh of soft-capped scores."""
    queries, keys = block.of_queries(q).to(how.wide), block.of_keys(k).to(how.wide).transpose(1, 2)
    hidden, bent = block.hidden, None
    if how.softcap is None:
        scores = queries.new_empty(*queries.shape[:2], keys.shape[2])
        scores.view(len(hidden), -1, *hidden.shape[2:]).copy_(hidden)
        scores.baddbmm_(queries, keys, alpha=how.scaling)
    else:
        bent = torch.bmm(queries, keys).mul_(how.scaling / how.softcap).tanh_()
        scores = bent * how.softcap
        scores.view(len(hidden), -1, *hidden.shape[2:]).add_(hidden)
    return scores.softmax(-1).to(how.dtype), bent


def _keeps(block: Block, how: How) -> bool:
    keys = (block.keys.stop - block.keys.start) // block.batch
    return keys <= KEPT_KEYS and how.softcap is None

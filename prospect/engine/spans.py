"""Tree attention on a CPU: segment after segment as matrix products, because PyTorch's fused kernel is slow there at
short sequences and in bfloat16. It gets the longest segments, where it can.

Of a segment's queries a block goes at a time, so that its scores stay in the cache, and keys behind a block are never
touched. Lengths are rounded up with zeros, so that shapes come again: a product in bfloat16 is built anew for each.
Backward finds the weights of short segments kept, in the dtype of the inputs; it computes those of longer ones and of
soft-capped scores again. What is kept grows by the square of the length.

Shapes: T packed tokens, H query heads and G key heads of size D; Q queries and K keys of a segment or a block of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

BLOCK = 192
"""Queries at once."""
KEPT_KEYS = 384
"""Keys of a segment up to which its weights are kept."""
FUSED_KEYS = 1024
"""Keys of a segment from which the fused kernel is as fast in bfloat16 (`python -m benchmarks.attention`)."""
ROUND = 32
"""What lengths are multiples of."""


class Span(NamedTuple):
    """A segment: `length` own tokens from `start` on see each other causally, and all of `prompt` tokens before."""

    prompt_start: int
    prompt: int
    start: int
    length: int

    @property
    def own(self) -> slice:
        return slice(self.start, self.start + self.length)

    @property
    def before(self) -> slice:
        return slice(self.prompt_start, self.prompt_start + self.prompt)


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

    def among(self, keys: int) -> How:
        """The same without a window where it is as wide as these."""
        return self if self.window is None or self.window < keys else self._replace(window=None)


class Block(NamedTuple):
    """Some queries of a segment and the keys that they may see, number `first` of which is the first query's own."""

    rows: slice
    keys: slice
    first: int


Row = tuple[Tensor, Tensor]
"""Keys and values of a packed row, (1, G, T, D) each."""


def attend_spans(
    query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], how: How, prompts: Row | None = None
) -> Tensor:
    """query (1, H, T, D), key and value (1, G, T, D) -> (1, T, H, D) in `how.dtype`. Spans come in the row's order, and
    every token is one span's own. `prompts` is another row, in which the prompts lie and to which no gradient flows."""
    fusible = how.softcap is None and query.shape[-1] == value.shape[-1]
    long = [span for span in spans if fusible and _fused(span, how)]
    short = [span for span in spans if span not in long] if long else spans
    output: Any = None
    if short:
        output = _Spans.apply(query, key, value, short, how, prompts)  # type: ignore[no-untyped-call]
    found: Tensor = _with_fused(query, key, value, long, how, output) if long else output
    return found


def _fused(span: Span, how: How) -> bool:
    return span.length >= FUSED_KEYS and not span.prompt and how.among(span.length).window is None


def _with_fused(
    query: Tensor, key: Tensor, value: Tensor, long: Sequence[Span], how: How, others: Tensor | None
) -> Tensor:
    """What `others` (1, T, H, D) has of the row, and between it the `long` spans by the fused kernel."""
    edges = [0, *(edge for span in long for edge in (span.own.start, span.own.stop)), query.shape[2]]
    sizes = [stop - start for start, stop in pairwise(edges)]  # what is between them, and they: every second one
    pieces: list[Any] = [None] * len(sizes) if others is None else list(others.split(sizes, 1))
    for n, states in enumerate(zip(*(x.split(sizes, 2) for x in (query, key, value)), strict=True)):
        if n % 2:
            q, k, v = (x.to(how.dtype) for x in states)
            shared = q.shape[1] != k.shape[1]
            found = scaled_dot_product_attention(q, k, v, is_causal=True, scale=how.scaling, enable_gqa=shared)
            pieces[n] = found.transpose(1, 2)
    return torch.cat([piece for piece in pieces if piece is not None], 1)


class _Spans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], how: How, prompts: Row | None
    ) -> Tensor:
        output = query.new_zeros(query.shape[2], query.shape[1], value.shape[3], dtype=how.dtype)
        prompt_key, prompt_value = prompts or (key, value)
        pulled = any(ctx.needs_input_grad)
        kept: list[Tensor] = []
        with torch.autocast(query.device.type, enabled=False):
            for span in spans:
                q = _rows(how.dtype, query[0, :, span.own])
                k = _rows(how.dtype, prompt_key[0, :, span.before], key[0, :, span.own])
                v = _rows(how.dtype, prompt_value[0, :, span.before], value[0, :, span.own])
                kept += [q, k, v] if pulled else []
                asked, wide = how.among(span.prompt + span.length), _widened(q, k, how)
                for block in _blocks(span.prompt, span.length, asked.window):
                    weights, _ = _weights(*wide, block, asked)
                    _put(output[span.own], block, torch.bmm(weights, v[:, block.keys]))
                    kept += [weights] if pulled and _keeps(k, how) else []
        ctx.save_for_backward(*kept)
        ctx.spans, ctx.how, ctx.prompts_are_here = spans, how, prompts is None
        ctx.inputs = [(x.shape[1:], x.dtype) for x in (query, key, value)]
        return output[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        how, saved, grad = ctx.how, iter(ctx.saved_tensors), grad[0].transpose(0, 1)
        found = [grad.new_zeros(shape[1], shape[0], shape[2], dtype=how.wide) for shape, _ in ctx.inputs]
        by_query, by_key, by_value = found
        with torch.autocast(grad.device.type, enabled=False):
            for span in ctx.spans:
                q, k, v = next(saved), next(saved), next(saved)
                asked = how.among(span.prompt + span.length)
                blocks = _blocks(span.prompt, span.length, asked.window)
                weights = [next(saved) for _ in blocks] if _keeps(k, how) else []
                pull = _rows(how.dtype, grad[:, span.own])
                by_k, by_v = _pull(q, k, v, pull, blocks, weights, by_query[span.own], asked)
                for total, part in ((by_key, by_k), (by_value, by_v)):
                    part = part.transpose(0, 1)
                    total[span.own] += part[span.prompt : span.prompt + span.length]
                    if span.prompt and ctx.prompts_are_here:
                        total[span.before] += part[: span.prompt]
        by_query *= how.scaling
        by_key *= how.scaling
        given = zip(found, ctx.inputs, strict=True)
        return *(x.transpose(0, 1)[None].to(dtype) for x, (_, dtype) in given), None, None, None


def _pull(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    blocks: Sequence[Block],
    weights: Sequence[Tensor],
    by_query: Tensor,
    how: How,
) -> tuple[Tensor, Tensor]:
    """Derivatives of a segment, but for the scaling: by queries into `by_query` (length, H, D), by keys and values
    (G, K, D). `grad` (H, Q, D) is 0 where queries are padding, and so is what comes of it. Without `weights` they are
    computed again."""
    wide, by_k, by_v = None if weights else _widened(q, k, how), None, None
    for n in reversed(range(len(blocks))):  # the last one sees all keys, unless there is a window
        rows, keys, _ = block = blocks[n]
        w, bent = _weights(*wide, block, how) if wide else (weights[n], None)
        g = _grouped(grad[:, rows], k)
        by_v = _add(by_v, torch.bmm(w.transpose(1, 2), g), keys, v, how)
        slope = torch.bmm(g, v[:, keys].transpose(1, 2)).to(how.wide)
        # The mean from the same rounded numbers: where a query sees one key, what is left is 0 and not a rounding.
        slope = slope.sub_((slope * w).sum(-1, keepdim=True)).mul_(w)
        if bent is not None:
            slope *= 1 - bent.square()
        narrow = slope.to(how.dtype)
        _put(by_query, block, torch.bmm(narrow, k[:, keys]))
        by_k = _add(by_k, torch.bmm(narrow.transpose(1, 2), _grouped(q[:, rows], k)), keys, k, how)
    assert by_k is not None and by_v is not None
    return by_k, by_v


def _weights(q: Tensor, k: Tensor, block: Block, how: How) -> tuple[Tensor, Tensor | None]:
    """(G, H / G * Q, K) in `how.dtype` of scaled queries and keys in the wide one; and tanh of soft-capped scores."""
    heads, keys, bent = len(q), block.keys, None
    scores = torch.bmm(_grouped(q[:, block.rows], k), k[:, keys].transpose(1, 2))
    if how.softcap is not None:
        bent = torch.tanh(scores / how.softcap)
        scores = bent * how.softcap
    of_head = scores.view(heads, -1, scores.shape[2])
    if how.window is None:
        diagonal = of_head[:, :, block.first :]
        diagonal.add_(_later(how.wide)[: diagonal.shape[1], : diagonal.shape[2]])
    else:
        of_head.add_(_hidden(of_head.shape[1], of_head.shape[2], block.first, how))
    return scores.softmax(-1).to(how.dtype), bent


@lru_cache(4096)
def _blocks(prompt: int, length: int, window: int | None) -> tuple[Block, ...]:
    """A segment in blocks of queries."""
    found, queries, keys = [], _up(length), _up(prompt + length)
    for begin in range(0, queries, BLOCK):
        end, at = min(begin + BLOCK, queries), prompt + begin
        low = 0 if window is None else max(0, at - window + 1) // ROUND * ROUND
        found.append(Block(slice(begin, end), slice(low, min(_up(prompt + end), keys)), at - low))
    return tuple(found)


@lru_cache
def _later(dtype: torch.dtype) -> Tensor:
    """What to add to the scores of a block by its own keys: minus infinity behind the diagonal, else 0."""
    return torch.full((BLOCK, BLOCK + ROUND), float("-inf"), dtype=dtype).triu_(1)


def _hidden(queries: int, keys: int, first: int, how: How) -> Tensor:
    """The same, for all keys of a block and with a window."""
    at = (first + torch.arange(queries)).clamp(max=keys - 1)  # padding sees something, too: no softmax of nothing
    back = at[:, None] - torch.arange(keys)
    seen = (back >= 0) & (back < (how.window or keys))
    return torch.zeros(queries, keys, dtype=how.wide).masked_fill_(~seen, float("-inf"))


def _keeps(k: Tensor, how: How) -> bool:
    return k.shape[1] <= KEPT_KEYS and how.softcap is None


def _widened(q: Tensor, k: Tensor, how: How) -> tuple[Tensor, Tensor]:
    return q.to(how.wide) * how.scaling, k.to(how.wide)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """(H, Q, D) -> (G, H / G * Q, D): heads that share keys, one behind the other."""
    return x.reshape(len(k), -1, x.shape[2])


def _put(into: Tensor, block: Block, found: Tensor) -> None:
    """A block's (G, H / G * Q, D) to its place in (length, H, D), without the padding."""
    rows = into[block.rows]
    rows.copy_(found.view(into.shape[1], -1, into.shape[2]).transpose(0, 1)[: len(rows)])


def _add(total: Tensor | None, part: Tensor, keys: slice, like: Tensor, how: How) -> Tensor:
    """`part` for these keys added to the sum for all, which is wide where it is one of several."""
    if total is None:
        if part.shape[1] == like.shape[1]:
            return part
        total = torch.zeros_like(like, dtype=how.wide)
    total = total.to(how.wide)
    total[:, keys] += part
    return total


def _rows(dtype: torch.dtype, *parts: Tensor) -> Tensor:
    """Parts (H, some, D) one behind the other, in one piece of memory, with zeros up to a rounded length."""
    length = sum(part.shape[1] for part in parts)
    joined = parts[0].new_empty(len(parts[0]), _up(length), parts[0].shape[2], dtype=dtype)
    begin = 0
    for part in parts:
        end = begin + part.shape[1]
        if end > begin:
            joined[:, begin:end] = part
        begin = end
    if begin < joined.shape[1]:
        joined[:, begin:] = 0
    return joined


def _up(length: int) -> int:
    return -(-length // ROUND) * ROUND

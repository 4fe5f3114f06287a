"""Tree attention: a branch attends to its prompt and itself, and to nothing else in the row.

`attend_plainly` is the definition, which tests compare with. Two implementations compute it: `attend_flash` in half
precision on CUDA, `attend_blocks` everywhere else. transformers knows their choice, `attend`, as "prospect_tree", and
the segments travel to it as a keyword of the model call.

Shapes: T tokens with queries, S with keys, H query heads, G key heads of size D.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from prospect.engine.packing import Segments, Span, VarlenLayout, move

NAME = "prospect_tree"
LARGEST_HEAD = 256
WIDE_BACKWARD = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities whose flash kernel has a backward for heads above 192; others lack the shared memory."""

QUERIES = 192
"""Queries of a block."""
SHORT, TOGETHER, ROUND = 64, 32, 32
"""Segments of up to SHORT keys go together where their lengths, rounded up to ROUND, are equal, TOGETHER at most."""
HIDDEN = -1e30
"""Added to scores of padding: with minus infinity, the softmax of what sees nothing would be no number."""
FUSED = 1024
"""Tokens of a segment from which the fused kernel is as fast."""

Places = slice | Tensor


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


def attend_plainly(query: Tensor, key: Tensor, value: Tensor, segments: Segments, scoring: Scoring) -> Tensor:
    """query (1, H, T, D), key and value (1, H or fewer, T, D) -> (1, T, H, D), as one would write it down."""
    visible = torch.zeros(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
    for span in segments.spans:
        prompt = range(span.prompt_start, span.prompt_start + span.prompt)
        branch = torch.tensor([*prompt, *range(span.start, span.start + span.length)])
        for place in range(span.prompt, len(branch)):
            first = 0 if scoring.window is None else max(0, place + 1 - scoring.window)
            visible[branch[place] - segments.past, branch[first : place + 1]] = True
    share = query.shape[1] // key.shape[1]  # query heads that have one key head in common
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = query @ key.transpose(2, 3) * scoring.scaling
    if scoring.softcap is not None:
        scores = scoring.softcap * torch.tanh(scores / scoring.softcap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return (weights @ value).transpose(1, 2)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Segments,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers calls, with shapes as above. The result has the dtype of autocast, to which queries and keys
    are rounded: norms and rotations have widened them."""
    dtype = computed_in(query)
    segments.remember(module, key, value, dtype)
    key, value = segments.with_past(module, key, value)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    scoring = Scoring(dtype, scaling, sliding_window or None, softcap)
    if suits(query, value, dtype, softcap):
        return attend_flash(query, key, value, segments.varlen, scoring), None
    return attend_blocks(query, key, value, segments.spans, scoring), None


def suits(query: Tensor, value: Tensor, dtype: torch.dtype, softcap: float | None) -> bool:
    """Whether the flash kernel takes these states, (1, H, T, D) each, rounded to `dtype`."""
    size = query.shape[-1]
    if query.device.type != "cuda" or softcap is not None or dtype not in (torch.bfloat16, torch.float16):
        return False
    capability = _capability(query.device)
    limit = LARGEST_HEAD if capability in WIDE_BACKWARD else 192
    return capability >= (8, 0) and size % 8 == 0 and size <= limit and size == value.shape[-1]


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if torch.version.cuda else (0, 0)


def computed_in(states: Tensor) -> torch.dtype:
    """The dtype that products get: inside autocast its own."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


AttentionInterface.register(NAME, attend)
# No mask function beside it: without one transformers makes no mask and, what costs more, looks for none in the
# positions, which would make the host wait for the device in every forward pass.


@contextmanager
def by_tree(configs: Sequence[Any]) -> Iterator[None]:
    """Inside, the layers that read `configs` attend by trees. Outside the model attends as its authors wrote it, so
    that generation and the padded oracle need no thought."""
    native = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in zip(configs, native, strict=True):
            config._attn_implementation = name


def attention_is_by_tree(configs: Sequence[Any]) -> bool:
    return all(config._attn_implementation == NAME for config in configs)


# On CPUs, and for whatever flash does not take, in plain PyTorch: segment after segment, of its queries a block at a
# time, whose scores stay in a CPU's cache, and short segments together. Keys behind a block are never touched. Backward
# computes the weights again: nothing is kept that grows by the square of a length. The longest segments get PyTorch's
# fused kernel, which is slow on short ones (`python -m benchmarks.attention`).


class Block(NamedTuple):
    """Q queries of one segment, and the K keys that one of them may see, up to the last query's own: of the prompt,
    then of the branch. Or those of n short segments, one behind the other, padded in front with tokens of their own."""

    queries: tuple[Places, ...]
    keys: tuple[Places, ...]
    padding: tuple[Tensor, Tensor] | None = None  # of queries (n, 1, Q, 1) bool, of keys (n, 1, 1, K) to be added

    @property
    def segments(self) -> int:
        """n"""
        return 1 if self.padding is None else len(self.padding[0])


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
            every = blocks(some, past + begin, scoring.window, query.device, QUERIES, TOGETHER)
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


@lru_cache(8)  # all layers want the same
def blocks(
    spans: Sequence[Span], past: int, window: int | None, device: torch.device, queries: int, together: int
) -> tuple[Block, ...]:
    """All queries of the spans, so many of one span in a block, so many short spans in one. They count from `past` on,
    keys from 0."""
    every: list[Block] = []
    alike: defaultdict[tuple[int, int], list[Span]] = defaultdict(list)
    for span in spans:
        if together > 1 and span.prompt + span.length <= SHORT and span.length <= queries:
            alike[-(-span.length // ROUND), -(-(span.prompt + span.length) // ROUND)].append(span)
        else:
            every += _cut(span, past, window, queries)
    for some in alike.values():
        every += [_gather(some[n : n + together], past, device) for n in range(0, len(some), together)]
    return tuple(every)


def _cut(span: Span, past: int, window: int | None, queries: int) -> Iterator[Block]:
    prompt_start, prompt, start, length = span
    for begin in range(0, length, queries):
        end = min(begin + queries, length)
        unseen = 0 if window is None else max(0, prompt + begin + 1 - window)
        of_prompt = slice(prompt_start + unseen, prompt_start + prompt)
        own = slice(start + max(0, unseen - prompt), start + end)
        keys = (of_prompt, own) if unseen < prompt else (own,)
        yield Block((slice(start + begin - past, start + end - past),), keys)


def _gather(some: Sequence[Span], past: int, device: torch.device) -> Block:
    prompt_start, prompt, start, length = torch.tensor(some).T[..., None]  # (n, 1) each
    own = torch.arange(-max(span.length for span in some), 0) + length  # (n, Q) places in a branch; below 0 is padding
    at = (
        torch.arange(-max(span.prompt + span.length for span in some), 0) + prompt + length
    )  # (n, K) places in a segment
    keys = torch.where(at.clamp(min=0) < prompt, prompt_start, start - prompt) + at.clamp(min=0)
    queries = start - past + own.clamp(min=0)
    padding = (own < 0)[:, None, :, None], (at < 0)[:, None, None] * HIDDEN
    queries, keys, *fills = (move(tensor, device) for tensor in (queries.flatten(), keys.flatten(), *padding))
    return Block((queries,), (keys,), (fills[0], fills[1]))


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, every: tuple[Block, ...], scoring: Scoring
    ) -> Tensor:
        q, k, v = (states[0].to(scoring.dtype) for states in (query, key, value))
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.scoring, ctx.dtypes = every, scoring, [x.dtype for x in (query, key, value)]
        output = q.new_zeros(q.shape[1], len(q), v.shape[2])
        with torch.autocast(q.device.type, enabled=False):
            for block in every:
                weights, *_ = _weights(q, k, block, scoring)
                values = _take(v, block.keys, block.segments, len(k), scoring.wide)
                _add(output.transpose(0, 1), block.queries, block.segments, torch.bmm(weights, values))
        return output[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (q, k, v), scoring, by_output = ctx.saved_tensors, ctx.scoring, grad[0].transpose(0, 1)
        by_query = torch.zeros_like(q, dtype=ctx.dtypes[0])
        by_key, by_value = (torch.zeros_like(states, dtype=scoring.wide) for states in (k, v))
        with torch.autocast(q.device.type, enabled=False):
            for block in ctx.blocks:
                weights, bent, queries, keys = _weights(q, k, block, scoring)
                pull, values = (
                    _take(states, places, block.segments, len(k), scoring.wide)
                    for states, places in ((by_output, block.queries), (v, block.keys))
                )
                slope = torch.bmm(pull, values.transpose(1, 2))
                slope.sub_((slope * weights).sum(-1, keepdim=True)).mul_(weights)
                if bent is not None:
                    slope.mul_(1 - bent.square())
                _add(by_query, block.queries, block.segments, torch.bmm(slope, keys).mul_(scoring.scaling))
                _add(by_key, block.keys, block.segments, torch.bmm(slope.transpose(1, 2), queries))
                _add(by_value, block.keys, block.segments, torch.bmm(weights.transpose(1, 2), pull))
        grads = zip((by_query, by_key, by_value), ctx.dtypes, strict=True)
        return *(states[None].to(dtype) for states, dtype in grads), None, None


def _weights(q: Tensor, k: Tensor, block: Block, scoring: Scoring) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Of a block the weights (G * n, H / G * Q, K), tanh of soft-capped scores, the scaled queries, and the keys."""
    queries = _take(q, block.queries, block.segments, len(k), scoring.wide) * scoring.scaling
    keys, bent = _take(k, block.keys, block.segments, len(k), scoring.wide), None
    scores = torch.bmm(queries, keys.transpose(1, 2))
    if scoring.softcap is not None:
        bent = scores.div_(scoring.softcap).tanh_()
        scores = bent * scoring.softcap
    size = queries.shape[1] * len(k) // len(q)
    before = keys.shape[1] - size  # keys before the first query's own
    by_head = scores.view(-1, size, keys.shape[1])
    by_head[:, :, before:].add_(_later(QUERIES, scoring.wide, q.device)[:size, :size])
    if scoring.window is not None and scoring.window < keys.shape[1]:
        too_early = torch.ones(by_head.shape[1:], dtype=torch.bool, device=q.device).tril(before - scoring.window)
        by_head.masked_fill_(too_early, float("-inf"))
    if block.padding is None:
        return scores.softmax(-1), bent, queries, keys
    of_queries, of_keys = block.padding
    by_segment = scores.view(len(k), block.segments, -1, size, keys.shape[1]).add_(of_keys)
    return by_segment.softmax(-1).masked_fill_(of_queries, 0).view_as(scores), bent, queries, keys


@lru_cache(8)
def _later(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What to add to the scores of a block's own keys: minus infinity where a key is later than the query."""
    return torch.full((size, size), float("-inf"), dtype=dtype, device=device).triu(1)


def _take(states: Tensor, places: Sequence[Places], segments: int, key_heads: int, dtype: torch.dtype) -> Tensor:
    """States (heads, T, D) of n segments, L places of each -> (G * n, heads / G * L, D): heads that share keys, one
    behind the other."""
    parts = [states[:, at] if isinstance(at, slice) else states.index_select(1, at) for at in places]
    rows = (parts[0] if len(parts) == 1 else torch.cat(parts, 1)).to(dtype)
    if segments == 1:
        return rows.reshape(key_heads, -1, rows.shape[2])
    by_head = rows.view(key_heads, -1, segments, rows.shape[1] // segments, rows.shape[2])
    return by_head.transpose(1, 2).reshape(key_heads * segments, -1, rows.shape[2])


def _add(total: Tensor, places: Sequence[Places], segments: int, part: Tensor) -> None:
    """Add to (heads, T, D) what stands as `_take` gives it."""
    if segments > 1:
        share = len(total) * segments // len(part)
        part = part.view(-1, segments, share, part.shape[1] // share, part.shape[2]).transpose(1, 2)
    rows, begin = part.reshape(len(total), -1, total.shape[2]), 0
    for at in places:
        if isinstance(at, slice):
            size = at.stop - at.start
            total[:, at].add_(rows[:, begin : begin + size])
            begin += size
        else:
            total.index_add_(1, at, rows.to(total.dtype))


# On CUDA, in bfloat16 or float16: one call of PyTorch's flash kernel, without any padding.


def attend_flash(query: Tensor, key: Tensor, value: Tensor, layout: VarlenLayout, scoring: Scoring) -> Tensor:
    """query (1, H, T, D), key and value (1, H or fewer, T or more, D) -> (1, T, H, D) in `scoring.dtype`. Of a segment
    the last query sees the last key and those of the window before it, as every earlier query its own."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (states[0].transpose(0, 1).to(scoring.dtype) for states in (query, key, value))
    if layout.keys is not None:
        k, v = k.index_select(0, layout.keys), v.index_select(0, layout.keys)
    # torch 2.11 knows shared key heads without being told, later ones want to be told.
    shared: dict[str, Any] = {"enable_gqa": q.shape[1] != k.shape[1]} if _asks_for_sharing() else {}
    window = (scoring.window - 1 if scoring.window else -1, 0)
    lengths = layout.query_ends, layout.key_ends, layout.most_queries, layout.most_keys
    result: Any = varlen_attn(q, k, v, *lengths, scale=scoring.scaling, window_size=window, **shared)
    output: Tensor = result[None]
    return output


@lru_cache
def _asks_for_sharing() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters

"""How attention on a CPU takes a packed row apart: which tokens' queries and keys stand together in one piece, heads
before tokens.

Of a segment's queries a block goes at a time, so that its scores stay in the cache, and keys behind a block are never
touched. Short segments of one shape go together. Lengths are rounded up, so that shapes come again: a product in
bfloat16 is built anew for each. What stands in the padding is never seen.

Shapes: T packed tokens, H query heads and G key heads of size D; n segments with Q queries and K keys each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prospect.engine.transfer import Ints

BLOCK = 192
"""Queries at once, a multiple of ROUND."""
TOGETHER = 1 << 15
"""Query-key pairs that short segments of one shape may have together in one product, for each head."""
ROUND = 32
"""What lengths are multiples of."""
HIDDEN = -1e30
"""Added to the score of a key that a query may not see. Not minus infinity: padding may see no key at all, and its
softmax must be a number."""

OWN, PROMPT, PADDING = 0, 1, 2
"""What a gathered row is to its segment."""


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


class Block(NamedTuple):
    """Some queries of segments that have one shape, in one piece of the gathered queries, and the segments' keys in one
    piece of those; `seen` are the keys of a segment that these queries may see, but for the `hidden` ones."""

    batch: int  # n * G
    queries: slice
    keys: slice
    seen: slice
    hidden: Tensor  # (n or 1, 1, Q, K), what to add to scores

    def of_queries(self, rows: Tensor) -> Tensor:
        """(n * G, H / G * Q, D): heads that share keys, one behind the other."""
        return rows[self.queries].view(self.batch, -1, rows.shape[1])

    def of_keys(self, rows: Tensor) -> Tensor:
        """(n * G, K, D)"""
        return rows[self.keys].view(self.batch, -1, rows.shape[1])[:, self.seen]


class Index(NamedTuple):
    """How rows of (token, head), number token * heads + head, are gathered, and put back."""

    rows: Tensor  # of the row, for each that is gathered
    places: Tensor  # of the gathered, for each of the row where a segment owns it: one behind the last where none does
    prompts: tuple[Tensor, Tensor] | None  # rows that are others' prompts, and where they were gathered to

    def take(self, states: Tensor, dtype: torch.dtype) -> Tensor:
        """(1, heads, T, D) -> (gathered, D)"""
        return states[0].transpose(0, 1).reshape(-1, states.shape[3]).to(dtype).index_select(0, self.rows)

    def give(self, found: Tensor, tokens: int) -> Tensor:
        """(gathered and a zero, D) -> (1, T, heads, D); what prompts get is added up."""
        rows = found.index_select(0, self.places)
        if self.prompts is not None:
            rows.index_add_(0, self.prompts[0], found.index_select(0, self.prompts[1]))
        return rows.view(1, tokens, -1, found.shape[1])


class Layout(NamedTuple):
    """How a row is taken apart."""

    queries: Index
    keys: Index
    padding: Tensor  # gathered queries that fill a segment up
    blocks: tuple[Block, ...]
    fused: tuple[Span, ...]  # which are not gathered


class Shape(NamedTuple):
    """What one layout serves: so many queries and keys, how far a query sees back, the dtype of scores, and from which
    length on a segment goes to the fused kernel, which knows neither a prompt elsewhere nor a window."""

    heads: int
    tokens: int
    key_heads: int
    keys: int
    window: int | None
    wide: torch.dtype
    fused_from: int | None

    def fuses(self, span: Span) -> bool:
        if self.fused_from is None or span.length < self.fused_from or span.prompt:
            return False
        return self.window is None or self.window >= span.length


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """A row's segments in order, at least one, and how the row is taken apart, computed once for all layers."""

    all: tuple[Span, ...]
    layouts: dict[Shape, Layout] = field(default_factory=dict, init=False)

    def layout(self, shape: Shape) -> Layout:
        if shape not in self.layouts:
            self.layouts[shape] = _lay_out(self.all, shape)
        return self.layouts[shape]


def _lay_out(spans: Sequence[Span], shape: Shape) -> Layout:
    queries, keys, blocks = _Gathered(shape.heads), _Gathered(shape.key_heads), []
    past, window = shape.keys - shape.tokens, shape.window
    for some in _alike([span for span in spans if not shape.fuses(span)]):
        length, most = _up(some[0].length), _up(some[0].prompt + some[0].length)
        piece = keys.add([np.r_[span.before, span.own] for span in some], [span.prompt for span in some], most)
        for begin in range(0, some[0].length, BLOCK):
            end = min(begin + BLOCK, length)
            asked = queries.add([np.r_[span.own][begin:end] - past for span in some], [0] * len(some), end - begin)
            at = [span.prompt + begin for span in some]
            low = 0 if window is None else max(0, min(at) - window + 1) // ROUND * ROUND
            seen = slice(low, min(_up(max(at) + end - begin), most))
            each = at if len(set(at)) > 1 else at[:1]
            size = end - begin, seen.stop - low
            hidden = [_hidden(first - low, *size, window, shape.wide)[None, None] for first in each]
            joined = torch.cat(hidden) if len(hidden) > 1 else hidden[0]  # the latter is a view of one band
            blocks.append(Block(len(some) * shape.key_heads, asked, piece, seen, joined))
    padding, fused = torch.from_numpy(queries.of_kind(PADDING)), tuple(filter(shape.fuses, spans))
    return Layout(queries.index(shape.tokens), keys.index(shape.keys), padding, tuple(blocks), fused)


def _alike(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Those of one shape, as many as go together."""
    shapes: dict[tuple[int, int], list[Span]] = {}
    for span in spans:
        shapes.setdefault((_up(span.length), _up(span.prompt + span.length)), []).append(span)
    for (queries, keys), some in shapes.items():
        size = max(1, TOGETHER // (queries * keys)) if queries <= BLOCK else 1  # several blocks are one segment's
        yield from (some[n : n + size] for n in range(0, len(some), size))


class _Gathered:
    """Which (token, head) of a row stands where, piece after piece of n segments, (n, heads, length) each."""

    def __init__(self, heads: int) -> None:
        self.heads, self.count = heads, 0
        self.rows: list[Ints] = [np.zeros(0, np.int64)]  # (token, head)
        self.kinds: list[Ints] = [np.zeros(0, np.int64)]  # OWN, PROMPT or PADDING

    def add(self, tokens: Sequence[Ints], prompts: Sequence[int], length: int) -> slice:
        """Where a piece of these tokens stands, the first of which are a prompt. Segments are filled up with their own,
        so that what is not a number stays in its segment."""
        at, of_head = np.arange(length), np.arange(self.heads)[:, None]
        some = np.stack([own[np.where(at < len(own), at, 0)] for own in tokens])
        ends = np.array([[len(own)] for own in tokens])
        kinds = np.where(at < ends, np.where(at < np.array(prompts)[:, None], PROMPT, OWN), PADDING)
        rows = some[:, None] * self.heads + of_head
        self.rows.append(rows.ravel())
        self.kinds.append(np.broadcast_to(kinds[:, None], rows.shape).ravel())
        begin, self.count = self.count, self.count + rows.size
        return slice(begin, self.count)

    def index(self, tokens: int) -> Index:
        """For a row of so many tokens."""
        rows, own, prompts = np.concatenate(self.rows), self.of_kind(OWN), self.of_kind(PROMPT)
        places = np.full(tokens * self.heads, self.count)
        places[rows[own]] = own
        shared = (torch.from_numpy(rows[prompts]), torch.from_numpy(prompts)) if len(prompts) else None
        return Index(torch.from_numpy(rows), torch.from_numpy(places), shared)

    def of_kind(self, kind: int) -> Ints:
        return np.flatnonzero(self._all_kinds == kind)

    @cached_property
    def _all_kinds(self) -> Ints:
        """Asked for when everything has been added."""
        return np.concatenate(self.kinds)


def _hidden(first: int, queries: int, keys: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(queries, keys) What to add to scores where the first query's own key is number `first`."""
    before = 1 << max(10, first.bit_length())
    return _band(BLOCK, before, window, dtype)[:queries, before - first :][:, :keys]


@lru_cache(16)
def _band(queries: int, before: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """(queries, before + queries + ROUND) The same for all blocks: column `before` is the first query's own key."""
    back = before + torch.arange(queries)[:, None] - torch.arange(before + queries + ROUND)
    seen = (back >= 0) & (back < (window or len(back) + before))
    return torch.zeros(back.shape, dtype=dtype).masked_fill_(~seen, HIDDEN)


def _up(length: int) -> int:
    return -(-length // ROUND) * ROUND

"""Tree attention: a branch attends to its prompt and itself, and to nothing else in the row.

Registered with transformers as "prospect_tree". The segments travel as a keyword of the model call through every
layer to `attend`. Shapes: T packed tokens, N branches, H query heads of size D, and in a group B segments with Q
queries and K keys each.

A segment is a branch with its prompt; the first branch of a tree also answers for the prompt's own tokens. On CUDA, in
half precision, one kernel call computes them all (varlen.py). Elsewhere segments of similar length are computed
together, padded to the longest of them: one kernel call per segment would cost a small model more than its arithmetic.
That padding exists in attention only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from prospect.engine.plain import plain_attention, plain_is_faster
from prospect.engine.transfer import move
from prospect.engine.varlen import Flat, attend_flat, computed_in, lay_out, suits

NAME = "prospect_tree"
CALL_COST = 4096
"""A kernel call costs about as much as this many padded query-key pairs (CPU, forward and backward; flat optimum)."""

ROUND = 16
"""Lengths in a group are multiples of this, so that shapes come again: a product in bfloat16 is built anew for each."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """Segments of similar length. In a `causal` group query i is key i, so that padding on the right is never seen; the
    others are masked by position, padded keys having one that no query reaches."""

    query_positions: Tensor  # (B, Q)
    key_positions: Tensor  # (B, K)
    causal: bool
    masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """(B, 1, Q, K), True where a query sees a key: not later than itself, and less than `window` positions back.

        None where plain causal attention says the same. Computed once for all layers.
        """
        window = window if window and window < self.key_positions.shape[1] else 0
        if self.causal and not window:
            return None
        if window not in self.masks:
            back = self.query_positions[:, :, None] - self.key_positions[:, None, :]
            seen = (back >= 0) & (back < window) if window else back >= 0
            self.masks[window] = seen[:, None]
        return self.masks[window]


@dataclass(frozen=True, slots=True)
class Grouped:
    """How to take a packed row apart and put it together again: `queries` and `keys` are packed indices, group after
    group; `order` (T,) is where each packed token stands in the concatenated outputs of the groups."""

    queries: Tensor
    keys: Tensor
    groups: tuple[Group, ...]
    order: Tensor


@dataclass(slots=True)
class Memory:
    """Keys and values of every layer for a packed row, kept for more branches of its prompts."""

    layers: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    full: bool = False

    def note(self, layer: nn.Module, key: Tensor, value: Tensor) -> None:
        """While the row is computed, a layer's keys and values (1, H, T, D); not when backward computes it again."""
        if not self.full:
            self.layers[layer] = key.detach(), value.detach()

    def before(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What was noted, and behind it these keys and values."""
        noted = self.layers[layer]
        return torch.cat([noted[0], key], 2), torch.cat([noted[1], value], 2)


@dataclass(frozen=True, eq=False)
class Segments:
    """Where the prompt and the own tokens of each branch are; all (N,), tree after tree. What a kernel needs of them is
    laid out when one first asks for it, for all layers.

    They are places in the row, or behind a remembered row of `past` tokens: prompts lie in that one, and there is
    nothing to answer for but the branches' own tokens.
    """

    prompt_starts: Ints
    prompt_lengths: Ints
    starts: Ints
    lengths: Ints
    device: torch.device | str = "cpu"
    memory: Memory | None = None
    past: int = 0

    @cached_property
    def grouped(self) -> Grouped:
        """For kernels that take rectangles."""
        where = self.prompt_starts, self.prompt_lengths, self.starts, self.lengths
        return segment(*where, self._answers, self.past, self.device)

    @cached_property
    def flat(self) -> Flat:
        """For the kernel that takes rows."""
        return lay_out(self.prompt_starts, self.prompt_lengths, self.starts, self.lengths, self._answers, self.device)

    @property
    def pairs(self) -> int:
        """How many keys all queries together see."""
        own = self.lengths * self.prompt_lengths + self.lengths * (self.lengths + 1) // 2
        prompts = self.prompt_lengths * (self.prompt_lengths + 1) // 2
        return int(own.sum() + prompts[self._answers].sum())

    @property
    def _answers(self) -> npt.NDArray[np.bool_]:
        """(N,) Whether a branch answers for its prompt's tokens: the first of a tree does."""
        return (np.diff(self.prompt_starts, prepend=-1) > 0) & (self.past == 0)


def segment(
    prompt_starts: Ints,
    prompt_lengths: Ints,
    starts: Ints,
    lengths: Ints,
    is_first: npt.NDArray[np.bool_],
    past: int,
    device: torch.device | str,
) -> Grouped:
    """Groups from what `Segments` tells."""
    key_lengths = prompt_lengths + lengths
    groups, queries, keys, real = [], [], [], []
    for causal, chosen in ((True, is_first), (False, ~is_first & (lengths > 0))):
        query_lengths = key_lengths if causal else lengths
        for rows in _group(np.flatnonzero(chosen), query_lengths, key_lengths):
            q, k, prompt = query_lengths[rows, None], key_lengths[rows, None], prompt_lengths[rows, None]
            query_slots, key_slots = (np.arange(-(-n.max() // ROUND) * ROUND) for n in (q, k))
            query_is_real, key_is_real = query_slots < q, key_slots < k
            query_positions = np.where(query_is_real, query_slots + k - q, 0)
            key_positions = np.where(key_is_real, key_slots, 0)
            # From a position in the branch to an index in the row.
            at_prompt, at_own = prompt_starts[rows, None], starts[rows, None] - prompt
            query = query_positions + np.where(query_positions < prompt, at_prompt, at_own) - past
            queries.append(np.maximum(query, 0))  # padding may stand anywhere in the row
            keys.append(key_positions + np.where(key_positions < prompt, at_prompt, at_own))
            real.append(query_is_real)
            key_positions[~key_is_real] = np.iinfo(np.int64).max // 2
            groups.append(Group(_tensor(query_positions, device), _tensor(key_positions, device), causal))
    flat, stays = _flat(queries), _flat(real)
    order = np.empty(np.count_nonzero(stays), np.int64)
    order[flat[stays]] = np.flatnonzero(stays)
    return Grouped(_tensor(flat, device), _tensor(_flat(keys), device), tuple(groups), _tensor(order, device))


def _group(rows: Ints, query_lengths: Ints, key_lengths: Ints) -> Iterator[Ints]:
    """Longest first, a segment joins the group while the padding that this brings costs less than a call of its own."""
    group: list[int] = []
    queries = keys = 0
    for row in rows[np.lexsort((query_lengths[rows], key_lengths[rows]))[::-1]].tolist():
        q, k = int(query_lengths[row]), int(key_lengths[row])
        widest = max(queries, q)
        padding = (widest - queries) * keys * len(group) + widest * keys - q * k
        if group and padding > CALL_COST:
            yield np.array(group)
            group = []
        queries, keys = (widest, keys) if group else (q, k)
        group.append(row)
    if group:
        yield np.array(group)


def _flat(arrays: list[Any]) -> Any:
    return np.concatenate([array.ravel() for array in arrays])


def _tensor(array: Ints, device: torch.device | str) -> Tensor:
    return move(torch.from_numpy(array), device)


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
    """What transformers calls: query (1, H, T, D), key and value (1, H or fewer, T, D) -> (1, T, H, D), computed in the
    dtype of autocast, which norms and rotations of queries and keys have widened."""
    dtype = computed_in(query)
    query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    if segments.memory is not None and segments.past:
        key, value = segments.memory.before(module, key, value)
    elif segments.memory is not None:
        segments.memory.note(module, key, value)
    if suits(query, value, softcap):
        return attend_flat(query, key, value, segments.flat, scaling, sliding_window), None
    grouped = segments.grouped
    q, k, v = _take(query, grouped.queries), _take(key, grouped.keys), _take(value, grouped.keys)
    q_sizes = [group.query_positions.numel() for group in grouped.groups]
    k_sizes = [group.key_positions.numel() for group in grouped.groups]
    outputs = []
    parts = torch.split(q, q_sizes), torch.split(k, k_sizes), torch.split(v, k_sizes)
    for group, *states in zip(grouped.groups, *parts, strict=True):
        # (B * length, H, D) -> (B, H, length, D)
        q, k, v = (s.view(len(group.query_positions), -1, *s.shape[1:]).transpose(1, 2) for s in states)
        output = _attention(q, k, v, group.mask(sliding_window), scaling, softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, grouped.order)[None], None


def _take(states: Tensor, index: Tensor) -> Tensor:
    """(1, H, T, D) -> (index, H, D)"""
    return states[0].transpose(0, 1).index_select(0, index)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """query (B, H, Q, D), key and value (B, H or fewer, K, D), mask as `Group.mask` -> (B, H, Q, D)."""
    plain = softcap is None and plain_is_faster(query, key)
    # CUDA has fast kernels for masks and for shared key heads, but none for both.
    if softcap is not None or plain or (mask is not None and query.is_cuda):
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    if softcap is None and not plain:
        return scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if plain:
        return plain_attention(query, key, value, mask, scaling)
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    assert softcap is not None, "without one the fused kernel or the plain one has answered"
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, float("-inf")).softmax(-1)
    return weights.to(value.dtype) @ value


AttentionInterface.register(NAME, attend)
# No mask function beside it: without one transformers makes no mask and, what costs more, looks for none in the
# positions, which would make the host wait for the device in every forward pass.


@contextmanager
def by_tree(configs: Sequence[Any]) -> Iterator[None]:
    """Inside, the layers that read `configs` attend by trees. Outside the model attends as its authors wrote it, so
    that generation and the padded oracle need no thought."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = NAME
        yield
    finally:
        for config, native in zip(configs, before, strict=True):
            config._attn_implementation = native


def attention_is_by_tree(configs: Sequence[Any]) -> bool:
    return all(config._attn_implementation == NAME for config in configs)

"""Tree attention through PyTorch's fused kernel for rectangles: on devices other than CPUs, where flash does not suit
(float32, soft-capped scores, older cards).

Segments of similar length are computed together, padded to the longest of them: one kernel call per segment would cost
a small model more than its arithmetic. Shapes: T packed tokens, H query heads of size D, and in a group B segments with
Q queries and K keys each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from prospect.engine.transfer import Ints, move

CALL_COST = 4096
"""A kernel call costs about as much as this many padded query-key pairs (measured on a CPU, when those went in groups;
flat optimum)."""


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
            query_slots, key_slots = np.arange(q.max()), np.arange(k.max())
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


def attend_groups(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    grouped: Grouped,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """query (1, H, T, D), key and value (1, H or fewer, T, D), all in one dtype -> (1, T, H, D)."""
    q, k, v = _take(query, grouped.queries), _take(key, grouped.keys), _take(value, grouped.keys)
    q_sizes = [group.query_positions.numel() for group in grouped.groups]
    k_sizes = [group.key_positions.numel() for group in grouped.groups]
    outputs = []
    parts = torch.split(q, q_sizes), torch.split(k, k_sizes), torch.split(v, k_sizes)
    for group, *states in zip(grouped.groups, *parts, strict=True):
        # (B * length, H, D) -> (B, H, length, D)
        q, k, v = (s.view(len(group.query_positions), -1, *s.shape[1:]).transpose(1, 2) for s in states)
        output = _attention(q, k, v, group.mask(window), scaling, softcap)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).index_select(0, grouped.order)[None]


def _take(states: Tensor, index: Tensor) -> Tensor:
    """(1, H, T, D) -> (index, H, D)"""
    return states[0].transpose(0, 1).index_select(0, index)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    """query (B, H, Q, D), key and value (B, H or fewer, K, D), mask as `Group.mask` -> (B, H, Q, D)."""
    # CUDA has fast kernels for masks and for shared key heads, but none for both.
    if softcap is not None or (mask is not None and query.is_cuda):
        share = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    if softcap is None:
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
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scaling / softcap)
    weights = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(~mask, float("-inf")).softmax(-1)
    return weights.to(value.dtype) @ value

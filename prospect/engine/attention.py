"""Tree attention: a branch attends to its prompt and itself, and to nothing else in the row.

Registered with transformers as "prospect_tree". The segments travel as a keyword of the model call through every layer to
`attend`; the mask function builds nothing. Shapes: T packed tokens, H query heads, D their size, B segments of a group with
Q queries and K keys each.

Segments are computed in groups of similar length, padded to the longest inside the group: one kernel call per segment would
cost a small model more than its arithmetic. The padding lives in this file only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "prospect_tree"
CALL_COST = 4096
"""A kernel call costs as much as this many padded query-key pairs (measured on CPU, forward and backward)."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Group:
    """B segments of similar length. A root (prompt and first branch) is `causal`: query i is key i, so padding on the right
    is never seen. Other branches take their mask from positions; padded keys have a position that no query reaches."""

    query_positions: Tensor  # (B, Q)
    key_positions: Tensor  # (B, K)
    causal: bool
    longest: int
    masks: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor | None:
        """(B, 1, Q, K), True where query sees key: not later, and less than `window` positions back. None where plain
        causal attention says the same. Layers share it."""
        window = window if window and window < self.longest else 0
        if self.causal and not window:
            return None
        if window not in self.masks:
            back = self.query_positions[:, :, None] - self.key_positions[:, None, :]
            seen = (back >= 0) & (back < window) if window else back >= 0
            self.masks[window] = seen[:, None]
        return self.masks[window]


@dataclass(frozen=True, slots=True)
class Segments:
    """How to take a packed row apart and put it together again. `queries` and `keys` are packed indices, group after group;
    `order` (T,) says where in the concatenated group outputs each packed token stands."""

    queries: Tensor
    keys: Tensor
    groups: tuple[Group, ...]
    order: Tensor


def segment(
    prompt_starts: Ints, prompt_lengths: Ints, starts: Ints, lengths: Ints, device: torch.device | str = "cpu"
) -> Segments:
    """Segments of a row from the prompt and the own tokens of each branch, all (N,), branches of a tree side by side."""
    roots = np.flatnonzero(np.diff(prompt_starts, prepend=-1))
    others = np.setdiff1d(np.flatnonzero(lengths), roots)
    queries: list[Ints] = []
    keys: list[Ints] = []
    groups: list[Group] = []
    where: list[tuple[Ints, Ints]] = []  # packed index, index into the concatenated outputs
    done = 0
    for chosen, causal in ((roots, True), (others, False)):
        key_lengths = prompt_lengths[chosen] + lengths[chosen]
        query_lengths = key_lengths if causal else lengths[chosen]
        for members in _group(query_lengths, key_lengths):
            rows, q, k = chosen[members], query_lengths[members][:, None], key_lengths[members][:, None]
            query_slot, key_slot = np.arange(q.max()), np.arange(k.max())
            p, prompt, branch = prompt_lengths[rows][:, None], prompt_starts[rows][:, None], starts[rows][:, None]
            query_position = np.where(query_slot < q, query_slot + (k - q), 0)
            key_position = np.where(key_slot < k, key_slot, np.iinfo(np.int32).max)
            query_index = _packed(query_position, p, prompt, branch)
            groups.append(Group(_tensor(query_position, device), _tensor(key_position, device), causal, int(k.max())))
            queries.append(query_index.ravel())
            keys.append(_packed(np.where(key_slot < k, key_slot, 0), p, prompt, branch).ravel())
            real = (query_slot < q).ravel()
            where.append((queries[-1][real], done + np.flatnonzero(real)))
            done += real.size
    order = np.zeros(sum(len(packed) for packed, _ in where), np.int64)
    for packed, output in where:
        order[packed] = output
    empty = np.zeros(0, np.int64)
    return Segments(
        _tensor(np.concatenate([empty, *queries]), device),
        _tensor(np.concatenate([empty, *keys]), device),
        tuple(groups),
        _tensor(order, device),
    )


def _packed(position: Ints, prompt_length: Ints, prompt_start: Ints, branch_start: Ints) -> Ints:
    """Packed index of a position of a branch: in its prompt, or in its own tokens."""
    return np.where(position < prompt_length, prompt_start + position, branch_start + position - prompt_length)


def _group(query_lengths: Ints, key_lengths: Ints) -> Iterable[Ints]:
    """Longest first, segments join a group as long as padding one more costs less than a kernel call of its own."""
    order = np.lexsort((query_lengths, key_lengths))[::-1]
    members: list[int] = []
    q = k = 0
    for i in order.tolist():
        wider = max(q, int(query_lengths[i]))
        waste = wider * k - int(query_lengths[i]) * int(key_lengths[i]) + (wider - q) * k * len(members)
        if members and waste > CALL_COST:
            yield np.array(members)
            members, wider = [], int(query_lengths[i])
        if not members:
            k = int(key_lengths[i])
        q = wider
        members.append(i)
    if members:
        yield np.array(members)


def _tensor(array: Ints, device: torch.device | str) -> Tensor:
    return torch.from_numpy(array).to(device)


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
    """transformers' attention function. query (1, H, T, D), key and value (1, H / groups, T, D) -> (1, T, H, D)."""
    q = _gather(query, segments.queries)
    k = _gather(key, segments.keys)
    v = _gather(value, segments.keys)
    outputs, q_done, k_done = [], 0, 0
    for group in segments.groups:
        (rows, q_length), k_length = group.query_positions.shape, group.key_positions.shape[1]
        q_end, k_end = q_done + rows * q_length, k_done + rows * k_length
        output = _attention(
            _split(q[q_done:q_end], rows),
            _split(k[k_done:k_end], rows),
            _split(v[k_done:k_end], rows),
            group,
            sliding_window,
            scaling,
            softcap,
        )
        outputs.append(output.transpose(1, 2).flatten(0, 1))
        q_done, k_done = q_end, k_end
    return torch.cat(outputs).index_select(0, segments.order)[None], None


def _gather(states: Tensor, index: Tensor) -> Tensor:
    """(1, H, T, D) -> (index, H, D)"""
    return states[0].transpose(0, 1).index_select(0, index)


def _split(states: Tensor, rows: int) -> Tensor:
    """(B * L, H, D) -> (B, H, L, D)"""
    return states.unflatten(0, (rows, -1)).transpose(1, 2)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    group: Group,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """One group: query (B, H, Q, D), key and value (B, H / groups, K, D) -> (B, H, Q, D)."""
    mask = group.mask(window)
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=True
        )
    if mask is None:
        mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool, device=query.device).tril()
    share = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(share, 1), value.repeat_interleave(share, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, float("-inf")).softmax(
        -1, dtype=torch.promote_types(scores.dtype, torch.float32)
    )
    return weights.to(value.dtype) @ value


def _no_mask(**_: Any) -> None:
    """Segments say it all."""


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, _no_mask)


class TreeAttention:
    """Context in which the layers that read `configs` attend by trees; outside, the model attends as its authors wrote it, so
    that generation and the padded oracle need no thought."""

    def __init__(self, configs: Iterable[Any]) -> None:
        self.configs = tuple(configs)
        self.native: list[list[str | None]] = []

    @property
    def active(self) -> bool:
        return bool(self.native)

    def __enter__(self) -> None:
        self.native.append([config._attn_implementation for config in self.configs])
        for config in self.configs:
            config._attn_implementation = NAME

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for config, native in zip(self.configs, self.native.pop(), strict=True):
            config._attn_implementation = native

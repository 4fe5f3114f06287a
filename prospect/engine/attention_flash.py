"""Tree attention in one call of PyTorch's flash kernel, without any padding: CUDA, bfloat16 or float16.

A segment is a branch with its prompt; the first branch of a tree also answers for the prompt's own tokens. As a tree
lies in the row, so lie the queries of its segments, one behind the other: nothing is gathered but the keys of prompts
with several branches. Shapes: T packed tokens, K keys of all segments, B segments, H query heads of size D.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from prospect.engine.transfer import Ints, move_all

LARGEST_HEAD = 256
WIDE_BACKWARD = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities whose flash kernel has a backward for heads above 192; others lack the shared memory."""


@dataclass(frozen=True, slots=True)
class Flat:
    """Segment b answers for the packed tokens `query_ends[b]:query_ends[b + 1]`, its keys are the packed tokens
    `keys[key_ends[b]:key_ends[b + 1]]`; the last query is the last key. Without `keys` they are all tokens, in order,
    once."""

    keys: Tensor | None  # (K,) int32
    query_ends: Tensor  # (B + 1,) int32
    key_ends: Tensor  # (B + 1,) int32
    most_queries: int
    most_keys: int


def lay_out(
    prompt_starts: Ints,
    prompt_lengths: Ints,
    starts: Ints,
    lengths: Ints,
    is_first: npt.NDArray[np.bool_],
    device: torch.device | str,
) -> Flat:
    """From what attention.Segments tells."""
    rows = np.flatnonzero(is_first | (lengths > 0))
    queries, keys = (lengths + is_first * prompt_lengths)[rows], (lengths + prompt_lengths)[rows]
    ends = [np.concatenate([[0], np.cumsum(count)]) for count in (queries, keys)]
    index = []
    if ends[0][-1] < ends[1][-1]:
        positions = np.arange(ends[1][-1]) - np.repeat(ends[1][:-1], keys)
        prompt, at_prompt, at_own = (
            np.repeat(of[rows], keys) for of in (prompt_lengths, prompt_starts, starts - prompt_lengths)
        )
        index = [positions + np.where(positions < prompt, at_prompt, at_own)]
    query_ends, key_ends, *gathered = move_all([*ends, *index], device, np.int32)
    return Flat(gathered[0] if gathered else None, query_ends, key_ends, int(queries.max()), int(keys.max()))


def computed_in(states: Tensor) -> torch.dtype:
    """What kernels receive: inside autocast its dtype."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def suits(query: Tensor, value: Tensor, softcap: float | None) -> bool:
    """Whether the flash kernel takes these states, (1, H, T, D) each."""
    size = query.shape[-1]
    if query.device.type != "cuda" or softcap is not None or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    capability = _capability(query.device)
    limit = LARGEST_HEAD if capability in WIDE_BACKWARD else 192
    return capability >= (8, 0) and size % 8 == 0 and size <= limit and size == value.shape[-1]


@lru_cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if torch.version.cuda else (0, 0)


def attend_flat(
    query: Tensor, key: Tensor, value: Tensor, flat: Flat, scaling: float | None, window: int | None
) -> Tensor:
    """query (1, H, T, D), key and value (1, H or fewer, T, D), all in one dtype -> (1, T, H, D)."""
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if flat.keys is not None:
        k, v = k.index_select(0, flat.keys), v.index_select(0, flat.keys)
    return kernel(q, k, v, flat, scaling, (window - 1 if window else -1, 0))[None]


def kernel(
    query: Tensor, key: Tensor, value: Tensor, flat: Flat, scaling: float | None, window: tuple[int, int]
) -> Tensor:
    """query (T, H, D), key and value (K, H or fewer, D) -> (T, H, D). Lower-right aligned: of a segment the last query
    sees the last key and those up to `window[0]` before it (-1: all), as every earlier query its own."""
    from torch.nn.attention.varlen import varlen_attn

    # torch 2.11 knows shared key heads without being told, later ones want to be told.
    shared: dict[str, Any] = {"enable_gqa": query.shape[1] != key.shape[1]} if _asks_for_sharing() else {}
    found: Any = varlen_attn(
        query,
        key,
        value,
        flat.query_ends,
        flat.key_ends,
        flat.most_queries,
        flat.most_keys,
        scale=scaling,
        window_size=window,
        **shared,
    )
    output: Tensor = found
    return output


@lru_cache
def _asks_for_sharing() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters

"""Tree attention in one call of PyTorch's flash kernel, without any padding: CUDA, bfloat16 or float16.

Shapes: T packed tokens, K keys of all segments, H query heads of size D.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

from torch import Tensor

from prospect.engine.attention_cpu import Scoring
from prospect.engine.packing import VarlenLayout


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

"""Tree attention: a branch attends to its prompt and itself, and to nothing else in the row.

`attend_plainly` is the definition, which tests compare with. Two implementations compute it: attention_flash.py in
half precision on CUDA, attention_cpu.py everywhere else. transformers knows their choice as "prospect_tree", and the
segments travel to it as a keyword of the model call. Shapes: T packed tokens, H query heads of size D.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from prospect.engine.attention_cpu import Scoring, attend_blocks
from prospect.engine.attention_flash import attend_flash
from prospect.engine.packing import Segments

NAME = "prospect_tree"
LARGEST_HEAD = 256
WIDE_BACKWARD = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities whose flash kernel has a backward for heads above 192; others lack the shared memory."""


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

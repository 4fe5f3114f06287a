"""Tree attention: a branch attends to its prompt and itself, and to nothing else in the row.

Registered with transformers as "prospect_tree". The segments travel as a keyword of the model call through every
layer to `attend`. Shapes: T packed tokens, N branches, H query heads of size D.

A segment is a branch with its prompt; the first branch of a tree also answers for the prompt's own tokens. A CPU
computes one after the other, or those of one shape together (gather.py, spans.py), one kernel call on CUDA all of them
(varlen.py, half precision), and whatever else there is those of similar length together (groups.py).
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
from transformers import AttentionInterface

from prospect.engine.attention_flash import (
    Flat,
    attend_flat,
    computed_in,
    lay_out,
    suits,
)
from prospect.engine.gather import Span, Spans
from prospect.engine.groups import Grouped, attend_groups, segment
from prospect.engine.spans import How, attend_spans
from prospect.engine.transfer import Ints

NAME = "prospect_tree"


@dataclass(slots=True)
class KeyValues:
    """Keys and values of every layer, (1, H, T, D) each, for a packed row, kept for more branches of its prompts; when
    it is full, backward may compute the row again."""

    layers: dict[nn.Module, tuple[Tensor, Tensor]] = field(default_factory=dict)
    full: bool = False


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
    memory: KeyValues | None = None
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

    @cached_property
    def spans(self) -> Spans:
        """For CPUs: where every segment is. A tree's first branch stands behind its prompt."""
        places = (self.prompt_starts, self.prompt_lengths, self.starts, self.lengths, self._answers)
        found = []
        for prompt_start, prompt, start, length, answers in zip(*(x.tolist() for x in places), strict=True):
            if answers:
                found.append(Span(0, 0, prompt_start, prompt + length))
            elif length:
                found.append(Span(prompt_start, prompt, start, length))
        return Spans(tuple(found))

    def with_past(self, layer: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of this row, behind those that it has of the remembered one."""
        if not self.past:
            return key, value
        assert self.memory is not None, "what is behind a row was computed from it"
        # One behind the other token by token, as what models give lies in memory.
        keys, values = (
            torch.cat([before.transpose(1, 2), own.transpose(1, 2).to(before.dtype)], 1).transpose(1, 2)
            for before, own in zip(self.memory.layers[layer], (key, value), strict=True)
        )
        return keys, values

    def remember(self, layer: nn.Module, key: Tensor, value: Tensor, dtype: torch.dtype) -> None:
        """Keep a layer's keys and values for more branches, where somebody wants them."""
        if self.memory is not None and not self.past and not self.memory.full:
            self.memory.layers[layer] = key.detach().to(dtype), value.detach().to(dtype)

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
    dtype, spans = computed_in(query), on_cpu(query)
    if not spans:  # spans round while they gather
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    segments.remember(module, key, value, dtype)
    key, value = segments.with_past(module, key, value)
    if spans:
        how = How(dtype, query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window or None, softcap)
        return attend_spans(query, key, value, segments.spans, how), None
    if suits(query, value, softcap):
        return attend_flat(query, key, value, segments.flat, scaling, sliding_window), None
    return attend_groups(query, key, value, segments.grouped, scaling, sliding_window, softcap), None


def on_cpu(states: Tensor) -> bool:
    return states.device.type == "cpu"


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

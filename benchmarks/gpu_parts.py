"""Parts measured on a device: the matrix product, and three ways to compute a packed's attention."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from benchmarks.kernels import random_trees
from benchmarks.marks import Facts, spread
from prospect.engine import attention
from prospect.engine.device import matmul_peak
from prospect.engine.packing import Packed, pack


def clock(work: Callable[[], Any], device: torch.device, repeats: int = 10, warm: int = 2) -> Facts:
    """Seconds of `work`, until the device has finished it."""
    took = []
    for repeat in range(warm + repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if repeat >= warm:
            took.append(time.perf_counter() - began)
    return spread(took)


def matmul_rate(device: torch.device, tiny: bool) -> float:
    """The fastest bfloat16 matrix product of a few sizes, FLOP/s."""
    return max(matmul_peak(device, torch.bfloat16, size) for size in ((64,) if tiny else (4096, 8192, 16384)))


def packed_trees(device: torch.device, tiny: bool, branches: int) -> Packed:
    """About 16,000 tokens of trees with this many answers each, no two of the same length."""
    trees, prompt, answer = (3, 6, 5) if tiny else (20 // branches, 256, 512)
    lengths = [answer - (answer // 8) * k for k in range(branches)]
    return pack(random_trees([prompt + k for k in range(trees)], [lengths] * trees), device)


def attentions(device: torch.device, tiny: bool) -> Facts:
    """Forward and backward of one layer's attention, 12 heads on 2 of keys, size 128 (Qwen2.5 1.5 B): milliseconds per
    kernel, for trees of one branch and of four; "blocks" is what runs where flash does not."""
    found: Facts = {}
    heads, shared, size = (4, 2, 16) if tiny else (12, 2, 128)
    for branches in (1, 4):
        packed = packed_trees(device, tiny, branches)
        shapes = [(1, h, packed.tokens, size) for h in (heads, shared, shared)]
        states = [torch.randn(s, device=device, dtype=torch.bfloat16, requires_grad=True) for s in shapes]
        ways: dict[str, Callable[[], Tensor]] = {"blocks": partial(_tree, states, packed, False)}
        if attention.suits(states[0], states[2], torch.bfloat16, None):
            ways["varlen"] = partial(_tree, states, packed, True)
        ways["flex"] = partial(_flex, states, _block_mask(packed), flex_attention if tiny else _compiled())
        for name, work in ways.items():
            try:
                value: Any = 1e3 * clock(partial(_both, work, states), device, 2 if tiny else 10)["median"]
            except Exception as error:  # flex compiles, and a compiler is not everywhere
                value = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            found[f"{name}, {branches} branches"] = value
    return found


def _both(work: Callable[[], Tensor], states: list[Tensor]) -> None:
    torch.autograd.grad(work().sum(), states)


def _tree(states: list[Tensor], packed: Packed, flash: bool) -> Tensor:
    with mock.patch.object(attention, "suits", return_value=flash):
        query, key, value = states
        return attention.attend(torch.nn.Module(), query, key, value, None, segments=packed.segments)[0]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)


def _flex(states: list[Tensor], mask: Any, kernel: Any) -> Tensor:
    found: Tensor = kernel(*states, block_mask=mask, enable_gqa=True)
    return found.transpose(1, 2)


def _block_mask(packed: Packed) -> Any:
    """For FlexAttention; made once per packed, so it is not measured."""
    piece, tree, is_prompt = _pieces(packed)

    def seen(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        mine = (piece[q] == piece[k]) | ((tree[q] == tree[k]) & is_prompt[k])
        return mine & (q >= k)

    return create_block_mask(seen, None, None, packed.tokens, packed.tokens, device=str(piece.device))


def _pieces(packed: Packed) -> tuple[Tensor, Tensor, Tensor]:
    """Of each packed token: its piece (a prompt or an answer), its tree, and whether it is in the prompt."""
    starts = packed.segments.prompt_starts
    trees = torch.zeros(packed.tokens, dtype=torch.int64)
    trees[torch.from_numpy(starts).unique()[1:]] = 1
    pieces = trees.clone()
    own = torch.from_numpy(packed.segments.starts[packed.segments.lengths > 0])
    pieces[own] = 1
    prompt = torch.zeros(packed.tokens, dtype=torch.bool)
    for start, length in zip(starts, packed.segments.prompt_lengths, strict=True):
        prompt[start : start + length] = True
    device = packed.input_ids.device
    return pieces.cumsum(0).to(device), trees.cumsum(0).to(device), prompt.to(device)

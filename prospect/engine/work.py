"""How much arithmetic the engine has done, and how fast the device could do it at best: together, utilisation.

Counted are the floating point operations of the tokens that are computed: per weight and token 2 forward and 4
backward, of a frozen weight 2; the head on completion positions only; attention's two products for each key that a
query sees. What backward computes again is not counted, nor are windows that let a query see less.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn

REPEATS = 5
SIZE = {"cpu": 1536, "cuda": 8192}
"""Rows and columns of the matrices whose product is timed: large enough to be fast, small enough to be quick."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Weights that a token meets in the decoder, how many of them are trained, the same of what may run on fewer
    tokens (last.py; part of the body) and of the head, and attention's multiplications for a query and a key."""

    body: float = 0.0
    body_trained: float = 0.0
    last: float = 0.0
    last_trained: float = 0.0
    head: float = 0.0
    head_trained: float = 0.0
    attention: float = 0.0

    def flops(self, *, tokens: int, last: int, targets: int, pairs: float, backward: bool) -> float:
        """Of a pass over `tokens`, of which the last layer computes `last`, with log-probs of `targets` and `pairs` of
        a query and a key that it sees."""
        spared, others = tokens - last, self.attention * pairs
        forward = 2 * (self.body * tokens - self.last * spared + self.head * targets + others)
        trained = 2 * (self.body_trained * tokens - self.last_trained * spared + self.head_trained * targets + others)
        return 2 * forward + trained if backward else forward


def cost_of(
    decoder: nn.Module, embeddings: nn.Module, head: nn.Module, config: Any, last: nn.Module | None = None
) -> Cost:
    """The cost of a model from its matrices and its text config, `last` being part of the decoder. Of experts a token
    meets as many as are chosen."""
    used = getattr(config, "num_experts_per_tok", None) or 1
    used = sum(used) / len(used) if isinstance(used, (list, tuple)) else used  # some name it layer by layer
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or 1
    looked_up = {id(p) for p in embeddings.parameters()}

    def met(part: nn.Module | None) -> tuple[float, float]:
        """Weights of a part that a token meets, and how many of them are trained."""
        every = trained = 0.0
        for name, p in part.named_parameters() if part is not None else ():
            if p.ndim > 1 and id(p) not in looked_up:
                size = p.numel() * (used / experts if "expert" in name and "shared" not in name else 1.0)
                every, trained = every + size, trained + size * p.requires_grad
        return every, trained

    outs = [p for p in head.parameters() if p.ndim > 1]
    heads = getattr(config, "num_attention_heads", None) or 0  # without attention there are none
    size = (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
    return Cost(
        *met(decoder),
        *met(last),
        float(sum(p.numel() for p in outs)),
        float(sum(p.numel() for p in outs if p.requires_grad)),
        2.0 * config.num_hidden_layers * heads * size,
    )


@lru_cache
def matmul_peak(device: torch.device, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s of the fastest of a few products of square matrices of `size` rows (None: SIZE), measured once in a
    process."""
    size = size or SIZE.get(device.type, SIZE["cpu"])
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    took = []
    for _ in range(1 + REPEATS):
        wait()
        began = time.perf_counter()
        torch.mm(a, b)
        wait()
        took.append(time.perf_counter() - began)
    return float(2 * size**3 / min(took[1:]))

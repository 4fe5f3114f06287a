"""From hidden states to token log-probs without ever holding (tokens x vocabulary).

The head runs on chunks of rows; backward computes each chunk's logits again. Softmax arithmetic is float32 (float64 for a
float64 model), whatever the matrix products run in. Shapes: M rows (completion tokens), H hidden size, V vocabulary.

    z = softcap * tanh(scale * (W h + b) / softcap),        log p(target) = z[target] - logsumexp(z)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 1 << 22
"""Logits held at once."""


@dataclass(frozen=True, slots=True)
class Head:
    """The output embeddings of a model and what its authors do to their logits. `module` is a plain Linear or anything
    that maps (M, H) to (M, V), such as one that carries an adapter."""

    module: nn.Module
    scale: float = 1.0
    softcap: float | None = None

    def logp(self, hidden: Tensor, targets: Tensor, *, compute_dtype: torch.dtype, want_sum_p2: bool) -> Scores:
        """Scores of hidden (M, H) at targets (M,)."""
        options: dict[str, Any] = {"scale": self.scale, "softcap": self.softcap, "want_sum_p2": want_sum_p2}
        if type(self.module) is nn.Linear:
            weight, bias = self.module.weight, self.module.bias
            return token_logp(hidden, weight, targets, bias=bias, compute_dtype=compute_dtype, **options)
        score = partial(_module_chunk, self.module, **options)
        with torch.autocast(hidden.device.type, compute_dtype, enabled=compute_dtype == torch.bfloat16):
            # The vocabulary's size is not known before the first chunk; 1 << 16 is the order of most.
            rows = max(1, CHUNK >> 16)
            chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
            parts = [checkpoint(score, h, t, use_reentrant=False) for h, t in chunks]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) if want_sum_p2 else None


Scores = tuple[Tensor, Tensor | None]
"""Log-probs (M,) and, where asked for, sum over the vocabulary of p^2 (M,)."""


def token_logp(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    compute_dtype: torch.dtype,
    want_sum_p2: bool = False,
) -> Scores:
    """Log-prob in nats of targets (M,) under the softmax of hidden (M, H) times weight (V, H); see the top of this file.

    `weight` is the stored parameter: it is cast to `compute_dtype` inside, its gradient is summed in float32, and a frozen
    one costs no gradient. Float64 in, float64 out; everything else gives float32.
    """
    logp, sum_p2 = _TokenLogp.apply(hidden, weight, bias, targets, scale, softcap, compute_dtype, want_sum_p2)
    return logp, sum_p2


class _TokenLogp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        softcap: float | None,
        compute_dtype: torch.dtype,
        want_sum_p2: bool,
    ) -> tuple[Tensor, Tensor | None]:
        wide = _wide(compute_dtype)
        logp = hidden.new_empty(len(hidden), dtype=wide)
        log_total, sum_p2 = torch.empty_like(logp), torch.empty_like(logp) if want_sum_p2 else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(compute_dtype)
            for rows in _chunks(hidden, weight):
                z, _ = _logits(hidden[rows], head, bias, scale, softcap, compute_dtype)
                log_total[rows] = z.logsumexp(-1)
                logp[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - log_total[rows]
                if sum_p2 is not None:
                    sum_p2[rows] = (z - log_total[rows, None]).exp_().square_().sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, log_total, sum_p2)
        ctx.scale, ctx.softcap, ctx.compute_dtype = scale, softcap, compute_dtype
        return logp, sum_p2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_logp: Tensor, grad_sum_p2: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_total, sum_p2 = ctx.saved_tensors
        dtype = ctx.compute_dtype
        wide = _wide(dtype)
        want_hidden, want_weight, want_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden) if want_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if want_weight else None
        grad_bias = torch.zeros_like(bias, dtype=wide) if want_bias else None
        with torch.autocast(hidden.device.type, enabled=False):
            head = weight.to(dtype)
            for rows in _chunks(hidden, weight):
                z, slope = _logits(hidden[rows], head, bias, ctx.scale, ctx.softcap, dtype)
                p = z.sub_(log_total[rows, None]).exp_()
                grad = p * -grad_logp[rows, None]
                grad.scatter_add_(-1, targets[rows, None], grad_logp[rows, None])
                if sum_p2 is not None and grad_sum_p2 is not None:
                    grad += 2 * grad_sum_p2[rows, None] * p * (p - sum_p2[rows, None])
                grad = (grad if slope is None else grad * slope).mul_(ctx.scale)
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                grad = grad.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (grad @ head).to(hidden.dtype)
                if grad_weight is not None:
                    grad_weight += grad.T @ hidden[rows].to(dtype)
        cast = (None if g is None else g.to(p.dtype) for g, p in ((grad_weight, weight), (grad_bias, bias)))
        return grad_hidden, *cast, None, None, None, None, None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows = max(1, CHUNK // len(weight))
    return [slice(i, i + rows) for i in range(0, len(hidden), rows)]


def _logits(
    hidden: Tensor, head: Tensor, bias: Tensor | None, scale: float, softcap: float | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor | None]:
    """Finished logits (rows, V) and their derivative by the scaled ones (None: 1)."""
    z = (hidden.to(dtype) @ head.T).to(_wide(dtype))
    if bias is not None:
        z = z + bias
    if scale != 1.0:
        z = z * scale
    if softcap is None:
        return z, None
    squashed = torch.tanh(z / softcap)
    return squashed * softcap, 1 - squashed.square()


def _module_chunk(
    module: nn.Module, hidden: Tensor, targets: Tensor, *, scale: float, softcap: float | None, want_sum_p2: bool
) -> Scores:
    z = module(hidden)
    z = z.to(_wide(z.dtype)) * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    logp = z.log_softmax(-1)
    return logp.gather(-1, targets[:, None]).squeeze(-1), logp.exp().square().sum(-1) if want_sum_p2 else None
